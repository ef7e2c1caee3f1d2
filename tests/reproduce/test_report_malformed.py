"""One malformed run folder is refused with its reason; the others have their report."""

import json
import os
import shutil

import pytest
from PIL import Image
from pretend_runs import linear, pretraining, svm
from reports import report, rows

from vissl_barlow.reproduce.report_tables import all_tables, left_out
from vissl_barlow.reproduce.runs import find_runs

DEEP = "[" * 100_000


def _replaced(name, content):
    def damage(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(content)

    return damage


def _start(**changed):
    def damage(folder):
        (first,) = json.loads((folder / "barlow_run.json").read_text())
        (folder / "barlow_run.json").write_text(json.dumps([{**first, **changed}]))

    return damage


def _fifo(name):
    def damage(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def _folder(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def _sparse(name):
    def damage(folder):
        os.truncate(folder / name, 1 << 40)

    return damage


def _outside(name):
    def damage(folder):
        secret = folder.parents[1] / "secret.txt"
        secret.write_text("secret")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)

    return damage


EVALUATION = {
    "provenance 1": (_replaced("barlow_run.json", "1"), "no list of starts"),
    "provenance [1]": (_replaced("barlow_run.json", "[1]"), "start 1: no mapping"),
    "provenance [{}]": (_replaced("barlow_run.json", "[{}]"), "it has no started"),
    "provenance empty": (_replaced("barlow_run.json", ""), "cannot be read"),
    "provenance deep": (_replaced("barlow_run.json", DEEP), "cannot be read"),
    "provenance null": (_replaced("barlow_run.json", "null"), "no list of starts"),
    "no command": (_start(command=None), "its command has another shape"),
    "command of numbers": (_start(command=[1]), "its command has another shape"),
    "hours as text": (_start(hours="6"), "its hours has another shape"),
    "infinite hours": (_start(hours=float("inf")), "its hours has another shape"),
    "no seed": (_start(seed=None), "its seed has another shape"),
    "no hardware": (_start(hardware=None), "its hardware has another shape"),
    "no processes": (_start(processes=None), "its processes has another shape"),
    "versions as a list": (_start(versions=[]), "its versions has another shape"),
    "weights as text": (_start(weights="x"), "its weights has another shape"),
    "weights without a path": (_start(weights={}), "its weights has another shape"),
    "data as a list": (_start(data=[1]), "its data has another shape"),
    "images as text": (_start(data={"train": {"images": "x"}}), "its data has another shape"),
    "config empty": (_replaced("train_config.yaml", ""), "train_config.yaml is empty"),
    "config cut": (_replaced("train_config.yaml", "DATA: {TRAIN: {"), "cannot be read"),
    "config a list": (_replaced("train_config.yaml", "[1]"), "or no config"),
    "config without data": (_replaced("train_config.yaml", "A: 1"), "KeyError"),
    "config with text for a section": (_replaced("train_config.yaml", "DATA: x"), "cannot be read"),
    "config deep": (_replaced("train_config.yaml", DEEP), "cannot be read"),
    "result 1": (_replaced("metrics.json", "1"), "its result cannot be read"),
    "result deep": (_replaced("metrics.json", DEEP), "its result cannot be read"),
    "result of bytes": (lambda f: (f / "metrics.json").write_bytes(b"\xff"), "cannot be read"),
    **{
        f"{name} {kind}": (damage(name), reason)
        for name in ("barlow_run.json", "train_config.yaml", "metrics.json")
        for kind, damage, reason in (
            ("a fifo", _fifo, f"{name} is no regular file"),
            ("a folder", _folder, f"{name} is no regular file"),
            ("a terabyte", _sparse, "more than any run writes"),
            ("outside", _outside, "nothing outside"),
        )
    },
}
PRETRAINING = {
    "log 1": (_replaced("barlow.jsonl", "1\n"), "barlow.jsonl cannot be read"),
    "log of text": (
        _replaced("barlow.jsonl", '{"iteration": 1, "loss": "x"}\n'),
        "loss is no number",
    ),
    "log without steps": (_replaced("barlow.jsonl", "{}\n"), "barlow.jsonl cannot be read"),
    "log a fifo": (_fifo("barlow.jsonl"), "barlow.jsonl is no regular file"),
    "checkpoint a folder": (_folder("checkpoint.torch"), "checkpoint.torch is no regular file"),
    "checkpoint a fifo": (_fifo("checkpoint.torch"), "checkpoint.torch is no regular file"),
    "checkpoint outside": (_outside("checkpoint.torch"), "nothing outside"),
    "picture outside": (_outside("barlow.png"), "nothing outside"),
}


@pytest.fixture
def sound(tmp_path, main_run):
    """A run that has nothing to do with the malformed one."""
    return linear(tmp_path / "runs" / "sound", main_run, 72.0)


@pytest.mark.parametrize("case", EVALUATION)
def test_a_malformed_evaluation_is_refused_alone(tmp_path, main_run, sound, case):
    damage, reason = EVALUATION[case]
    folder = linear(tmp_path / "runs" / "odd", main_run, 70.0)
    damage(folder)
    _only_refused(tmp_path / "runs", folder, reason)


@pytest.mark.parametrize("case", PRETRAINING)
def test_a_malformed_pretraining_is_refused_alone(tmp_path, sound, case):
    damage, reason = PRETRAINING[case]
    folder = pretraining(tmp_path / "runs" / "odd", "resnet50_in1k_1000ep")
    damage(folder)
    _only_refused(tmp_path / "runs", folder, reason)


def _only_refused(root, folder, reason):
    found = find_runs(root)
    assert set(found.refused) == {folder} and reason in found.refused[folder]
    [row] = [r for t in all_tables(found) for r in t.rows if r.ours and r.figure == "top-1"]
    assert (row.label, row.ours) == ("ImageNet linear", 72.0)


def test_a_result_of_vissls_tool_of_another_shape(tmp_path, sound, main_run):
    for number, content in enumerate(("1", "{}", '{"mAP": null}', '{"mAP": "x"}', "[]", DEEP)):
        folder = svm(tmp_path / "runs" / f"{number}", main_run / "checkpoint.torch", 0.5)
        (folder / "res5" / "test_ap.json").write_text(content)
    assert len(find_runs(tmp_path / "runs").refused) == 6


def test_a_link_to_a_folder_elsewhere_is_not_followed_and_said(tmp_path, sound):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(sound, elsewhere)
    (tmp_path / "runs" / "linked").symlink_to(elsewhere)
    found = find_runs(tmp_path / "runs")
    assert "not followed" in left_out(found, all_tables(found))[tmp_path / "runs" / "linked"]


def test_a_configuration_of_the_users_own_has_its_row_among_the_others(tmp_path, main_run, sound):
    own = pretraining(tmp_path / "runs" / "own", "my_own")
    linear(tmp_path / "runs" / "of_own", own, 60.0)
    found = find_runs(tmp_path / "runs")
    assert found.refused == {}
    labels = [row.label for table in all_tables(found) for row in table.rows if row.ours == 60.0]
    assert labels == ["ImageNet linear (my_own with global batch=2048)"]


ODD = "<img src=x onerror=alert(1)>|\x1b[31m\u202e![a](b)$x^{$\n"


def test_odd_names_are_text_everywhere(tmp_path, main_run, capsys, monkeypatch):
    """A folder and a setting with tags, escapes, Markdown and half a formula; and bytes of no
    encoding."""
    monkeypatch.setenv("COLUMNS", "400")
    setting = f"config.OPTIMIZER.x={ODD}"
    for name in ("a", os.fsdecode(b"\xff")):
        linear(tmp_path / "runs" / (name + ODD.replace("/", "")), main_run, 60.0, setting)
    (tmp_path / "runs" / f"empty{ODD}").mkdir()
    (tmp_path / "runs" / f"empty{ODD}" / "barlow_run.json").write_text("1")
    out = report(tmp_path, status=1)
    told = capsys.readouterr()
    assert {each["ours"] for each in rows(out, "others")} == {"60.0", "78.0"}
    files = [out / name for name in ("report.html", "report.md", "others.csv", "others.md")]
    for text in (told.out, told.err, *(each.read_text() for each in files)):
        assert "\x1b" not in text and "\u202e" not in text and "\\x1b" in text
    for page in ("report.html", "report.md"):
        assert "<img src=x" not in (out / page).read_text()
    lines = (out / "report.md").read_text()
    assert "![a](b)" not in lines
    assert sum("onerror" in line for line in lines.splitlines()) >= 4


@pytest.mark.parametrize("name", ("barlow.png", "barlow_map.png"))
def test_a_picture_is_a_png_or_not_shown(tmp_path, sound, main_run, name):
    picture = main_run / name
    Image.new("RGB", (4, 4)).save(picture)
    (table, *_) = all_tables(find_runs(tmp_path / "runs"))
    assert list(table.pictures.values()) == [picture]
    whole = picture.read_bytes()
    for content in (b"\x89PNG\r\n\x1a\nsecret", b"secret", whole[:-20]):
        picture.write_bytes(content)
        found = find_runs(tmp_path / "runs")
        table, *_ = tables = all_tables(found)
        assert (found.refused, table.pictures) == ({}, {})
        assert "no PNG" in left_out(found, tables)[picture]
