"""Words of the command line that hydra does not read as they were meant: one line, with the quotes."""

import shlex
import sys

import pytest
from vissl_runs import compose, resolve

DIGITS = "pretrain/vissl_barlow/digits_quickstart"


def lines_of(words, folder, monkeypatch, config: str = DIGITS) -> list[str]:
    from hydra.errors import HydraException

    from vissl_barlow.vissl_plugin.checks.syntax import unreadable_words

    monkeypatch.setattr(sys, "argv", ["tool", f"config={config}", *words])
    with pytest.raises(HydraException) as raised:
        resolve(folder, DIGITS, *words)
    return unreadable_words(raised.value)


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
    word = f"config.OPTIMIZER.non_regularized_parameters={value}"
    [line] = lines_of([word], tmp_path, monkeypatch)
    assert line.startswith(f"{word}: ") and "\n" not in line
    (quoted,) = shlex.split(line[line.rindex(" 'config.") :])
    assert compose(DIGITS, quoted).OPTIMIZER.non_regularized_parameters == expected


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("config.DATA.TRAIN.TRANSFORMS={name:BarlowTwoViews}", "a list stands there"),
        ("config.SEED_VALUE 3", "hydra wants KEY=VALUE"),
        ("config.SEED_VALUE=1,2", "for a list, 'config.SEED_VALUE=[1,2]'"),
    ],
)
def test_other_slips(tmp_path, monkeypatch, word, remedy):
    [line] = lines_of([word], tmp_path, monkeypatch)
    assert remedy in line


def test_all_words_are_said_at_once(tmp_path, monkeypatch):
    words = ["config.LOSS.name=it's", "config.SEED_VALUE=1", "config.CHECKPOINT.DIR=a,b"]
    lines = lines_of(words, tmp_path, monkeypatch)
    assert [line.partition(":")[0] for line in lines] == [words[0], words[2]]


def test_runs_of_vissls_own_configs_are_left_alone(tmp_path, monkeypatch):
    word = "config.DATA.TRAIN.DATA_PATHS=/my/it's"
    config = "test/integration_test/quick_moco"
    assert lines_of([word], tmp_path, monkeypatch, config=config) == []
