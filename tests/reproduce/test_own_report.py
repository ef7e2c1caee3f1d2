"""The report of `python -m vissl_barlow.reproduce own`: which evaluations stand beside which."""

import pytest
from pretend_runs import pretraining, start, train_config, vissl_command, write

from vissl_barlow.reproduce import report_tables
from vissl_barlow.reproduce.__main__ import main
from vissl_barlow.reproduce.own_protocol import LABELS
from vissl_barlow.reproduce.report_own import own_table
from vissl_barlow.reproduce.runs import find_runs


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def evaluation(folder, name, weights, lists, result, *overrides, images=90, tested=10):
    """One run of `own` as it is left."""
    data = {
        "train": {"images": images, "classes": 3, "paths": [], "source": "disk_filelist"},
        "test": {
            "images": tested,
            "classes": 3,
            "paths": [f"{lists}/test_images.npy"],
            "source": "disk_filelist",
        },
    }
    command = vissl_command(f"benchmark/vissl_barlow/own_{name}", *overrides)
    write(folder, start(command, weights=weights, processes=1, data=data))
    train_config(folder, batch=32, num_epochs=100)
    (folder / result[0]).parent.mkdir(exist_ok=True)
    (folder / result[0]).write_text(result[1])


def test_the_report_has_the_untrained_trunk_beside_each_number(tmp_path, capsys):
    weights = tmp_path / "c.pth"
    weights.write_text("one")
    out = tmp_path / "report" / "own"
    for trunk, top_1, m_ap in ((weights, 81.25, 0.9), (None, 40.0, 0.5)):
        name = "pretrained" if trunk else "untrained"
        neighbours = f'{{"top_1": {top_1}, "top_5": 100.0, "neighbours": 5, "images": 10}}'
        evaluation(out / "knn" / name, "knn", trunk, out, ("knn_res5avg.json", neighbours))
        mean = ("res5avg/test_ap.json", f'{{"mAP": {m_ap}}}')
        evaluation(out / "svm" / name, "svm", trunk, out, mean)
        for share in LABELS:
            meter = '{"train_phase_idx": 99, "test_accuracy_list_meter": {"top_1": {"0": %s}}}'
            evaluation(
                out / f"semi_{share}pct" / name,
                "semi",
                trunk,
                out,
                ("metrics.json", meter % (top_1 - share)),
                f"config.DATA.TRAIN.DATASET_NAMES=[own_{share}pct]",
                images=9,
            )
    assert main(["own", "--list"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # nothing is in no table
    lines = (tmp_path / "report" / "own.md").read_text().splitlines()
    assert lines[0] == "**Own images, NOT the paper's: 90 training and 10 test images**"
    assert [line.split(" | config")[0].split(" own_")[0] for line in lines[2:]] == [
        "|  | figure | untrained trunk | ours | difference",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| k-NN | top-1 | 40.0 | 81.2 | +41.2 |",
        "| k-NN | top-5 | 100.0 | 100.0 | +0.0 |  |  |  |  |",
        "| 1% of the labels | top-1 | 39.0 | 80.2 | +41.2 |",
        "| 10% of the labels | top-1 | 30.0 | 71.2 | +41.2 |",
        "| SVM | mAP | 50.0 | 90.0 | +40.0 |",
    ]


def test_two_checkpoints_and_two_folders_are_told_apart(tmp_path, monkeypatch):
    # The paper's tables are other tests', and take their time.
    monkeypatch.setattr(report_tables, "study_names", list)
    monkeypatch.setattr(report_tables, "table_names", list)
    for number, (name, lists) in enumerate((("one", "x"), ("two", "x"), ("two", "y"))):
        weights = tmp_path / f"{name}.pth"
        weights.write_text(name)
        result = ("knn_res5avg.json", f'{{"top_1": {number}.5, "top_5": 99.0}}')
        evaluation(tmp_path / "runs" / str(number), "knn", weights, tmp_path / lists, result)
    assert main(["report", "runs"]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Own images, NOT the paper" in page and "0 of the paper" in page
    assert not (tmp_path / "report" / "others.md").exists()
    table = (tmp_path / "report" / "own.md").read_text()
    labels = [line.split(" | ")[0] for line in table.splitlines() if "| top-1 |" in line]
    assert len(labels) == len(set(labels)) == 3
    assert sum("one.pth, sha256 " in label for label in labels) == 1
    assert sum(f"{tmp_path}/y" in label for label in labels) == 1


def test_what_was_there_before_a_report_was_renamed_is_of_other_images(tmp_path, monkeypatch):
    """The lists of both were in one place, where those of the second are now."""
    monkeypatch.setattr(report_tables, "study_names", list)
    monkeypatch.setattr(report_tables, "table_names", list)
    weights = tmp_path / "c.pth"
    weights.write_text("one")
    for tested, pretrained, untrained in ((10, 50.0, 20.0), (12, 70.0, 40.0)):
        for trunk, top_1 in ((weights, pretrained), (None, untrained)):
            result = ("knn_res5avg.json", f'{{"top_1": {top_1}, "top_5": 99.0}}')
            folder = tmp_path / "runs" / f"{tested}-{top_1}"
            evaluation(folder, "knn", trunk, tmp_path / "lists", result, tested=tested)
    found = find_runs(tmp_path / "runs")
    assert found.repeats == {}
    rows = [row for row in own_table(found).rows if row.figure == "top-1"]
    assert [(row.label, row.reference, row.ours) for row in rows] == [
        (f"k-NN, 10 images of {tmp_path}/lists", 20.0, 50.0),
        (f"k-NN, 12 images of {tmp_path}/lists", 40.0, 70.0),
    ]


def test_what_an_earlier_report_left_is_told(tmp_path, monkeypatch, capsys):
    """Its numbers lie beside those of these runs, which are others."""
    monkeypatch.setattr(report_tables, "study_names", list)
    monkeypatch.setattr(report_tables, "table_names", list)
    digits = pretraining(tmp_path / "a" / "digits", "digits_quickstart", batch=128, processes=1)
    pretraining(tmp_path / "b" / "main", "resnet50_in1k_1000ep")
    assert main(["report", str(digits.parent)]) == 0
    assert "earlier report" not in capsys.readouterr().err
    assert main(["report", "b"]) == 0
    told = "of an earlier report: digits/figure1.csv: nothing of these runs is in it\n"
    assert capsys.readouterr().err == told
    pictures = (tmp_path / "report" / "figure1.png", tmp_path / "report" / "report.html")
    assert all(picture.exists() for picture in pictures)
    assert main(["report", "a"]) == 0
    assert [picture.exists() for picture in pictures] == [False, True]
