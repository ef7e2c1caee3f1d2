"""Words of the command line that hydra does not read as they were meant: one line, with the quotes."""

import shlex
import sys

import pytest
from vissl_runs import resolve

DIGITS = "pretrain/vissl_barlow/digits_quickstart"


def line_of(word: str, folder, monkeypatch, config: str = DIGITS) -> str | None:
    from vissl_barlow.vissl_plugin.checks.syntax import unreadable_word

    monkeypatch.setattr(sys, "argv", ["tool", f"config={config}", word])
    with pytest.raises(Exception, match="") as raised:
        resolve(folder, DIGITS, word)
    return unreadable_word(raised.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/my/it's", "/my/it's"),
        ("/a=b", "/a=b"),
        ("/a{b", "/a{b"),
        ("/a,b", "/a,b"),
        ("[/a{b,/it's]", ["/a{b", "/it's"]),
    ],
)
def test_the_line_has_the_quotes_that_are_missing(tmp_path, monkeypatch, value, expected):
    word = f"config.MODEL.WEIGHTS_INIT.SKIP_LAYERS={value}"
    line = line_of(word, tmp_path, monkeypatch)
    assert line.startswith(f"{word}: ") and "\n" not in line
    (quoted,) = shlex.split(line[line.rindex(" 'config.") :])
    found = resolve(tmp_path, DIGITS, quoted).MODEL.WEIGHTS_INIT.SKIP_LAYERS
    assert found == (expected if isinstance(expected, list) else [expected])


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("config.DATA.TRAIN.TRANSFORMS={name:BarlowTwoViews}", "a list stands there"),
        ("config.SEED_VALUE 3", "hydra wants KEY=VALUE"),
        ("config.SEED_VALUE=1,2", "for a list, 'config.SEED_VALUE=[1,2]'"),
    ],
)
def test_other_slips(tmp_path, monkeypatch, word, remedy):
    assert remedy in line_of(word, tmp_path, monkeypatch)


def test_runs_of_vissls_own_configs_are_left_alone(tmp_path, monkeypatch):
    word = "config.DATA.TRAIN.DATA_PATHS=/my/it's"
    assert line_of(word, tmp_path, monkeypatch, config="test/integration_test/quick_moco") is None
