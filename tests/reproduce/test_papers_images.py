"""A number on other images than the paper's is in no row of the paper's, whatever was typed."""

import pytest
from pretend_runs import detection, experiment, linear, pretraining, svm

from vissl_barlow.datasets import imagenet_subsets, places205
from vissl_barlow.reproduce.departures import data_sets
from vissl_barlow.reproduce.report_tables import left_out, report_table
from vissl_barlow.reproduce.runs import find_runs

TOP_1 = {"train": {"images": 1281167, "classes": 1000}, "test": {"images": 50000, "classes": 1000}}
UNLABELLED = {"train": {"images": 1281167, "classes": None}}
EIGHT_CLASSES = {"train": {"images": 96, "classes": 8}, "test": {"images": 48, "classes": 8}}
HALF_THE_TEST = {**TOP_1, "test": {"images": 25000, "classes": 1000}}
OTHER_CLASSES = {**TOP_1, "train": {"images": 1281167, "classes": 999}}
EPOCHS = "config.OPTIMIZER.num_epochs=1"


def table(root, name, *overrides, **options):
    return report_table(name, "imagenet", find_runs(root), overrides, **options)


def top_1(table) -> list[tuple[str, float | None, float | None]]:
    """Label, ours and the paper's number of the rows of ours."""
    return [(r.label, r.ours, r.reference) for r in table.rows if r.runs and r.figure == "top-1"]


def test_the_papers_images_count(tmp_path):
    main_run = pretraining(tmp_path / "p", "resnet50_in1k_1000ep", data=UNLABELLED)
    linear(tmp_path / "e", main_run, 73.0, data=TOP_1)
    assert top_1(table(tmp_path, "table1")) == [("ImageNet linear", 73.0, 73.2)]


@pytest.mark.parametrize("data", [EIGHT_CLASSES, HALF_THE_TEST, OTHER_CLASSES])
def test_other_images_do_not_and_it_is_said_why(tmp_path, main_run, data):
    run = linear(tmp_path / "runs" / "e", main_run, 80.0, data=data)
    found = find_runs(tmp_path / "runs")
    shown = report_table("table1", "imagenet", found)
    assert top_1(shown) == []
    told = left_out(found, [shown])[run]
    split = "test" if data is HALF_THE_TEST else "train"
    numbers = "{images:,} {split} images in {classes:,} classes".format(split=split, **data[split])
    assert f"{numbers} instead of" in told


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (16551, 4952, None),
        (16551, 8, "8 test images instead of 4,952"),
        (5011, 4952, "5,011 train images instead of 16,551"),
    ],
)
def test_detection_on_other_images_is_no_row_of_the_papers(tmp_path, main_run, train, test, told):
    """Detectron2 knows its data sets by the names of their folders alone."""
    data = {
        split: {"images": n, "classes": None} for split, n in (("train", train), ("test", test))
    }
    boxes = {"AP": 90.0, "AP50": 95.0, "AP75": 92.0}
    run = detection(tmp_path / "runs" / "v", main_run / "checkpoint.torch", boxes, data=data)
    found = find_runs(tmp_path / "runs")
    shown = report_table("table4", "imagenet", found)
    measured = {r.figure: r.ours for r in shown.rows if r.runs}
    assert measured == ({} if told else {f"box {name}": value for name, value in boxes.items()})
    assert told is None or told in left_out(found, [shown])[run]


def test_an_evaluation_of_a_pretraining_on_other_images_has_a_row_of_its_own(tmp_path):
    images = {"train": {"images": 96, "classes": None}}
    other = pretraining(tmp_path / "p", "resnet50_in1k_1000ep", data=images)
    linear(tmp_path / "e", other, 60.0, data=TOP_1)
    [(label, ours, paper)] = top_1(table(tmp_path, "table1"))
    assert label.startswith("ImageNet linear (resnet50_in1k_1000ep with 96 train images instead")
    assert (ours, paper) == (60.0, None)


def test_with_the_users_overrides_no_mean_mixes_images(tmp_path, main_run):
    linear(tmp_path / "runs" / "a", main_run, 70.0, EPOCHS, data=TOP_1)
    linear(tmp_path / "runs" / "b", main_run, 80.0, EPOCHS, data=EIGHT_CLASSES)
    small, whole = sorted(top_1(table(tmp_path / "runs", "table1", EPOCHS)), reverse=True)
    assert whole == ("ImageNet linear", 70.0, None)
    assert small[1:] == (80.0, None) and "96 train images in 8 classes" in small[0]


def study_of(root, name, point, pretrained, evaluated, *overrides, top_1=57.0):
    """An experiment of a study on these images, and its evaluation."""
    run = experiment(root, name, point, "imagenet", data=pretrained)
    linear(run / "linear", run, top_1, *overrides, data=evaluated)


@pytest.mark.parametrize(
    ("pretrained", "evaluated", "counts"),
    [
        (UNLABELLED, TOP_1, True),
        (UNLABELLED, EIGHT_CLASSES, False),
        ({"train": {"images": 96, "classes": None}}, TOP_1, False),
    ],
)
@pytest.mark.parametrize(("name", "point"), [("figure4", "16"), ("table5", "Baseline")])
def test_a_study_counts_the_papers_images(tmp_path, name, point, pretrained, evaluated, counts):
    """Also where the study's own overrides, as a width, make the experiment."""
    study_of(tmp_path, name, point, pretrained, evaluated)
    found = find_runs(tmp_path)
    shown = report_table(name, "imagenet", found)
    assert bool(top_1(shown)) == counts
    others = left_out(found, [shown, report_table("table1", "imagenet", found)])
    assert bool(others) != counts


def test_with_overrides_a_study_keeps_other_images_apart(tmp_path):
    small = {"train": {"images": 96, "classes": None}}
    study_of(tmp_path / "a", "figure4", "16", UNLABELLED, TOP_1, EPOCHS, top_1=50.0)
    study_of(tmp_path / "b", "figure4", "16", small, EIGHT_CLASSES, EPOCHS, top_1=80.0)
    found = top_1(table(tmp_path, "figure4", linear=[EPOCHS]))
    assert [ours for _, ours, _ in found] == [50.0, 80.0]
    assert {paper for *_, paper in found} == {None}
    assert "96" not in found[0][0] and "96 train images" in found[1][0]


def test_every_benchmark_knows_its_images(tmp_path, main_run):
    weights = main_run / "checkpoint.torch"
    few = {"train": {"images": 10, "classes": 2}, "test": {"images": 10, "classes": 2}}
    for name in ("imagenet1k_semi_1pct", "imagenet1k_semi_10pct", "places205_linear"):
        config = f"benchmark/vissl_barlow/{name}"
        linear(tmp_path / "runs" / name, weights, 50.0, config=config, data=few)
    linear(
        tmp_path / "runs/i", weights, 40.0, config="benchmark/vissl_barlow/inat18_linear", data=few
    )
    svm(tmp_path / "runs" / "svm", weights, 0.8, data=few)
    for name in ("table2", "table3"):
        assert not any(row.runs for row in table(tmp_path / "runs", name).rows)
    boxes = {"AP": 56.0, "AP50": 82.0, "AP75": 63.0}
    detection(tmp_path / "runs" / "voc", weights, boxes)  # its images are not counted
    assert [row.ours for row in table(tmp_path / "runs", "table4").rows if row.runs] == [56, 82, 63]


def test_the_counts_are_those_that_the_lists_are_checked_by():
    known = data_sets()
    lists = [known[f"google-imagenet1k-per{percent}"]["train"] for percent in ("01", "10")]
    assert tuple(each["images"] for each in lists) == imagenet_subsets.COUNTS
    places = known["places205_filelist"]
    assert places["train"]["images"] == places205.COUNTS["train"]
    assert places["test"]["images"] == places205.COUNTS["val"]
    assert {each["classes"] for each in lists} == {imagenet_subsets.CLASSES}
    assert places["train"]["classes"] == places205.CLASSES


def test_weights_of_unknown_origin_are_named_and_not_the_papers(tmp_path):
    weights = tmp_path / "resnet50.pth"
    weights.write_bytes(b"somebody's")
    linear(tmp_path / "runs" / "e", weights, 73.0, data=TOP_1)
    [run] = find_runs(tmp_path / "runs").runs
    label = f"ImageNet linear (resnet50.pth, sha256 {run.weights_sha256[:12]})"
    shown = table(tmp_path / "runs", "table1")
    assert top_1(shown) == [(label, 73.0, None)]
    assert ("ImageNet linear", 73.2) in [(r.label, r.reference) for r in shown.rows]
    # Unless the user says that they are: they keep their name.
    papers = [run.weights_sha256[:12]]
    assert top_1(table(tmp_path / "runs", "table1", papers=papers)) == [(label, 73.0, 73.2)]


def test_the_ablations_baseline_is_not_what_the_other_tables_evaluate(tmp_path, baseline):
    """300 epochs, where the paper transfers 1000."""
    config = "benchmark/vissl_barlow/imagenet1k_semi_1pct"
    linear(tmp_path / "runs" / "e", baseline, 50.0, config=config)
    [(label, ours, paper)] = top_1(table(tmp_path / "runs", "table2"))
    assert (label, ours, paper) == ("1% of the labels (resnet50_in1k_300ep)", 50.0, None)
