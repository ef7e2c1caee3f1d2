"""Values on hydra's command line come back as they were, whatever their characters."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as some

from vissl_barlow.reproduce.overrides import fill, override, quote

PARSER = OverridesParser.create()
ODD = [
    "/data/a b,c=(d)[e]{f}",
    "/Fotos aus Köln/画像",
    '/it\'s/"quoted"',
    r"C:\data\new\\'s\\",
    "\\'",
    "/100%/~x/$HOME/@a;b#c|d?e*f!g",
    " /spaces around ",
    "/tab\tand\nline",
    *("", "null", "True", "1e3", "-.5", ".1", "1_000", "inf", "NaN", "none", "...", "/1/2", "a:b"),
]
# Interpolations are OmegaConf's, not text: `${` begins one.
TEXT = some.text(some.characters(exclude_categories=["Cs"], exclude_characters="$\0"))
VALUES = some.recursive(
    TEXT | some.integers() | some.booleans() | some.none() | some.floats(allow_nan=False),
    lambda inner: (
        some.lists(inner) | some.dictionaries(some.from_regex("[a-z_]+", fullmatch=True), inner)
    ),
    max_leaves=6,
)


def read(text: str) -> object:
    """The value of one override, as hydra hands it to the config."""
    parsed = PARSER.parse_override(text)
    assert not parsed.is_sweep_override()
    assert parsed.get_key_element() == "config.DATA.KEY"
    return parsed.value()


def same(a: object, b: object) -> bool:
    """Equal and of the same types: 1, 1.0 and True are three values."""
    return repr(plain(a)) == repr(plain(b))


def plain(value: object) -> object:
    """With hydra's quoted strings as the text that they hold."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.text if type(value).__name__ == "QuotedString" else value


@settings(max_examples=200)
@given(VALUES)
@example(ODD)
def test_what_is_quoted_is_read_back(value):
    assert same(read(override("DATA.KEY", value)), value)


@pytest.mark.parametrize("path", ODD)
def test_a_path_in_a_template_is_read_back(path):
    alone = fill("config.DATA.KEY={folder}", {"folder": path})
    assert same(read(alone), path)
    listed = fill("config.DATA.KEY=[{folder}/train,{in-put}]", {"folder": path, "in-put": "x y"})
    assert same(read(listed), [f"{path}/train", "x y"])


def test_what_hydra_does_not_read_is_not_quoted():
    assert fill("{folder}/lists", {"folder": "/a b"}) == "/a b/lists"
    assert fill("--names", {}) == "--names"


def test_plain_text_and_numbers_stay_as_they_are():
    head = ["barlow_projector", {"in_dim": 256, "dims": [512, 32], "use_bn": False}]
    assert quote([head]) == "[[barlow_projector,{in_dim:256,dims:[512,32],use_bn:False}]]"
    assert quote("/runs/seed0/checkpoint.torch") == "/runs/seed0/checkpoint.torch"
    assert quote(0.0051) == "0.0051"


@pytest.mark.parametrize("path", ODD[:6])
def test_vissl_gets_the_path_that_was_given(path):
    from vissl.utils.hydra_config import compose_hydra_configuration

    config = compose_hydra_configuration(
        [
            "config=benchmark/vissl_barlow/imagenet1k_linear",
            fill("config.DATA.TRAIN.DATA_PATHS=[{imagenet}/train]", {"imagenet": path}),
            override("CHECKPOINT.DIR", path),
        ]
    ).config
    assert config.DATA.TRAIN.DATA_PATHS == [f"{path}/train"]
    assert config.CHECKPOINT.DIR == path
