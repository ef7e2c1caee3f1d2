"""`python -m vissl_barlow.reproduce report`: which run is which row of which table."""

import shutil

import pytest
import yaml
from pretend_runs import detection, experiment, linear, pretraining, probed, svm
from reports import measured, report, row, rows

from vissl_barlow.provenance import file_sha256
from vissl_barlow.reproduce import report_tables
from vissl_barlow.reproduce.__main__ import main
from vissl_barlow.reproduce.report import _panels
from vissl_barlow.reproduce.report_tables import left_out, report_table
from vissl_barlow.reproduce.runs import find_runs

TABLES = [f"table{i}" for i in range(1, 8)]

FIGURES = [f"figure{i}" for i in range(1, 6)]


def test_what_nobody_ran_is_empty_and_the_papers_numbers_are_all_there(tmp_path, main_run):
    out = report(tmp_path)
    assert measured(out) == {}
    for name in (*TABLES, *FIGURES, "objectives"):
        assert (out / f"{name}.md").exists() and (out / f"{name}.csv").exists()
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    paper = {(r["label"], r["figure"]): r["paper"] for name in TABLES for r in rows(out, name)}
    for key, value in {
        ("ImageNet linear", "top-5"): "91.0",
        ("BYOL", "top-1"): "74.3",
        ("1% of the labels", "top-1"): "55.0",
        ("iNaturalist 2018", "top-1"): "46.5",
        ("COCO detection and segmentation", "mask AP75"): "36.5",
        ("No BN in MLP", "top-1"): "71.2",
        ("(c) stop-gradient and predictor", "top-5"): "83.5",
        ("8192-8192-8192 / 8192-8192", "top-1"): "72.3",
    }.items():
        assert paper[key] == value
    assert (
        "| ImageNet linear, 300 epochs | top-1 | 71.4 | 70.75 |  |"
        in (out / "report.md").read_text()
    )


def test_a_row_shows_all_that_lies_behind_its_number(tmp_path, main_run):
    linear(tmp_path / "runs" / "evaluated", main_run, 72.84)
    out = report(tmp_path)
    found = row(out, "table1", "ImageNet linear")
    digest = file_sha256(main_run / "checkpoint.torch")
    assert float(found["ours"]) == 72.84
    assert float(found["difference"]) == pytest.approx(-0.36)
    assert found["config"] == "imagenet1k_linear of resnet50_in1k_1000ep"
    assert found["checkpoint_sha256"] == digest
    assert found["hardware"] == "32 x Tesla V100-SXM2-32GB, 8 x Tesla V100-SXM2-32GB"
    assert found["hours"] == "124 + 6.50"
    assert found["folders"] == "evaluated"
    assert (
        "| ImageNet linear | top-1 | 73.2 | 71.8 | 72.8 | -0.4 | imagenet1k_linear of "
        f"resnet50_in1k_1000ep | {digest[:12]} | {found['hardware']} | 124 + 6.50 |"
    ) in (out / "table1.md").read_text()
    assert measured(out) == {
        ("table1", "ImageNet linear", "top-1"): 72.84,
        ("table1", "ImageNet linear", "top-5"): 90.84,
    }


def test_an_evaluation_belongs_to_the_pretraining_whose_weights_it_read(tmp_path, baseline):
    """Which is found by the weights' hash: the folders were moved together, and renamed."""
    runs = tmp_path / "runs"
    only = experiment(runs, "table5", "Only invariance term (on-diag term)", "imagenet")
    narrow = experiment(runs, "figure4", "16", "imagenet")
    for pretrained, top_1 in ((baseline, 71.0), (only, 57.0), (narrow, 60.0)):
        linear(pretrained / "linear", pretrained, top_1)
    runs.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(runs.with_name("moved"))
    shutil.copytree(tmp_path / "moved", runs)
    shutil.rmtree(tmp_path / "moved")
    found = {key: value for key, value in measured(report(tmp_path)).items() if key[2] == "top-1"}
    assert found == {
        ("table1", "ImageNet linear, 300 epochs", "top-1"): 71.0,
        **{(table, "Baseline", "top-1"): 71.0 for table in ("table5", "table6", "figure3")},
        ("table5", "Only invariance term (on-diag term)", "top-1"): 57.0,
        ("figure2", "batch size 2048 (lr 0.2)", "top-1"): 71.0,
        ("figure4", "width 16", "top-1"): 60.0,
        ("figure4", "width 8192", "top-1"): 71.0,
        ("figure4", "depth 3", "top-1"): 71.0,
        ("figure5", "lambda 0.005", "top-1"): 71.0,
        ("objectives", "Barlow Twins", "top-1"): 71.0,
    }


@pytest.mark.parametrize(
    ("overrides", "batch", "processes", "counts"),
    [
        (["config.SEED_VALUE=3", "config.CHECKPOINT.DIR=x"], 32, 8, True),
        (["config.DISTRIBUTED.NUM_PROC_PER_NODE=4"], 64, 4, True),  # 256 all the same
        (["config.DISTRIBUTED.NUM_PROC_PER_NODE=4"], 32, 4, False),
        (["config.OPTIMIZER.num_epochs=100", "config.OPTIMIZER.weight_decay=0"], 32, 8, False),
        (["+config/benchmark/vissl_barlow/overlays=digits"], 64, 1, False),
    ],
)
def test_other_settings_are_no_row_of_the_papers(
    tmp_path, main_run, overrides, batch, processes, counts
):
    options = {"batch": batch, "processes": processes}
    linear(tmp_path / "runs" / "evaluated", main_run, 70.0, *overrides, **options)
    out = report(tmp_path)
    assert {key[0] for key in measured(out)} == {"table1" if counts else "others"}
    if not counts:
        [config] = {r["config"] for r in rows(out, "others")}
        told = {"global batch=128"} if batch == 32 and processes == 4 else set()
        told |= {o.removeprefix("+").removeprefix("config.") for o in overrides if processes != 4}
        assert all(setting in config for setting in told) and told


def test_two_checkpoints_keep_their_numbers_apart(tmp_path, main_run):
    published = tmp_path / "resnet50.pth"
    published.write_bytes(b"the authors'")
    linear(tmp_path / "runs" / "a", main_run, 73.0)
    linear(tmp_path / "runs" / "b", published, 73.5)
    linear(tmp_path / "runs" / "c", None, 5.0)
    found = {
        label: value
        for (_, label, figure), value in measured(report(tmp_path)).items()
        if figure == "top-1"
    }
    assert found == {
        "ImageNet linear": 73.0,
        f"ImageNet linear (resnet50.pth, sha256 {file_sha256(published)[:12]})": 73.5,
        "ImageNet linear (the untrained trunk)": 5.0,
    }


def test_transfer_by_vissls_tools_and_by_detectron2(tmp_path, main_run):
    runs, weights = tmp_path / "runs", main_run / "checkpoint.torch"
    svm(runs / "svm", weights, 0.8617)
    for seed, ap in ((0, 56.0), (1, 57.0)):
        detection(runs / f"voc{seed}", weights, {"AP": ap, "AP50": 82.0, "AP75": 63.0}, seed=seed)
    detection(
        runs / "short", weights, {"AP": 1.0, "AP50": 2.0, "AP75": 3.0}, "SOLVER.MAX_ITER", "9"
    )
    out = report(tmp_path)
    assert float(row(out, "table3", "VOC07", "mAP")["ours"]) == pytest.approx(86.17)
    voc = row(out, "table4", "VOC07+12 detection", "box AP")
    assert (float(voc["ours"]), float(voc["sd"]), voc["seeds"]) == (
        56.5,
        pytest.approx(0.7071, rel=1e-3),
        "0 1",
    )
    assert "56.5 ± 0.7 (2 of 5 runs)" in (out / "table4.md").read_text()
    assert {r["config"] for r in rows(out, "others")} == {
        "voc0712_faster_rcnn_R50_C4_24k with SOLVER.MAX_ITER=9 of resnet50_in1k_1000ep"
    }


def test_trainings_of_detectors_without_a_seed_are_no_repetition_of_one(tmp_path, main_run):
    """Detectron2's own default, -1, draws one for each."""
    weights = main_run / "checkpoint.torch"
    for seed in (-1, -1, 0, 0):
        name = f"{seed} {len(list((tmp_path / 'runs').glob('[0-9-]*')))}"
        boxes = {"AP": 56.0 + seed, "AP50": 82.0, "AP75": 63.0}
        detection(tmp_path / "runs" / name, weights, boxes, seed=seed)
    voc = row(report(tmp_path), "table4", "VOC07+12 detection", "box AP")
    assert (voc["seeds"], float(voc["ours"])) == ("-1 -1 0", pytest.approx(166 / 3))


def test_the_digits_stand_apart(tmp_path, baseline):
    runs = tmp_path / "runs"
    probed(experiment(runs, "table5", "Baseline", "digits"), 0.97)
    probed(experiment(runs, "table5", "No BN in MLP", "digits"), 0.92)
    linear(baseline / "linear", baseline, 71.0)
    out = report(tmp_path)
    assert float(row(out, "table5", "Baseline")["ours"]) == 71.0
    digits = row(out / "digits", "table5", "No BN in MLP", "probe")
    assert (float(digits["ours"]), float(digits["untrained_trunk"]), digits["paper"]) == (
        92,
        30,
        "",
    )
    assert "digits, NOT ImageNet" in (out / "digits" / "table5.md").read_text()
    for name in (*TABLES, *FIGURES, "objectives"):
        assert {r["data"] for r in rows(out, name)} <= {"imagenet"}
    assert (
        not (out / "digits" / "table6.md").exists() or measured(out)["table6", "Baseline", "probe"]
    )


def test_an_evaluation_from_the_middle_of_a_pretraining_is_not_its_result(tmp_path):
    unfinished = pretraining(tmp_path / "runs" / "p", "resnet50_in1k_1000ep", finished=False)
    linear(tmp_path / "runs" / "evaluated", unfinished, 60.0)
    finished = pretraining(tmp_path / "runs" / "q", "resnet50_in1k_300ep")
    early = finished / "model_phase100.torch"
    early.write_bytes(b"after a third")
    linear(tmp_path / "runs" / "early", early, 61.0)
    assert {key[0] for key in measured(report(tmp_path))} == {"others"}


def test_figure_1_has_every_pretraining_under_a_name_of_its_own(tmp_path):
    for name, seed in (("a", 0), ("b", 1), ("c", 1), ("d", 1)):
        folder = tmp_path / "runs" / name
        pretraining(folder, "resnet50_in1k_1000ep", seed=seed, finished=name == "a")
    found = {r["label"]: r["folders"] for r in rows(report(tmp_path), "figure1")}
    assert found == {
        "resnet50_in1k_1000ep": "a",
        "resnet50_in1k_1000ep, unfinished": "b",
        "resnet50_in1k_1000ep, seed 1, unfinished": "c",
        f"resnet50_in1k_1000ep, seed 1, {folder}, unfinished": "d",
    }


def test_runs_below_its_own_folder_count(tmp_path, monkeypatch):
    """A study's are in `report/`, which is also where the report goes where nothing else is said."""
    monkeypatch.chdir(tmp_path)
    # The paper's tables are other tests', and take their time.
    monkeypatch.setattr(report_tables, "study_names", list)
    monkeypatch.setattr(report_tables, "table_names", list)
    runs = tmp_path / "report" / "digits" / "runs"
    pretraining(runs / "a", "digits_quickstart", batch=128, processes=1)
    for folder, name in ((".", "report/digits/runs/a"), ("report/digits", "runs/a")):
        assert main(["report", folder]) == 0
        assert {r["folders"] for r in rows(runs.parent, "figure1")} == {name}


def test_its_own_folder_may_lie_among_the_runs(tmp_path, main_run):
    linear(tmp_path / "runs" / "evaluated", main_run, 72.0)
    arguments = ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "runs" / "report")]
    assert main(arguments) == 0
    first = (tmp_path / "runs" / "report" / "report.html").read_text()
    assert main(arguments) == 0
    assert (tmp_path / "runs" / "report" / "report.html").read_text() == first


def test_figure_1_keeps_the_digits_apart(tmp_path, main_run):
    probed(experiment(tmp_path / "runs", "table5", "Baseline", "digits"), 0.97)
    out = report(tmp_path)
    assert {r["label"] for r in rows(out, "figure1")} == {"resnet50_in1k_1000ep"}
    digits = rows(out / "digits", "figure1")
    assert {r["label"] for r in digits} == {"digits_quickstart"}
    assert (
        row(out / "digits", "figure1", "digits_quickstart", "probe, accuracy in %")["ours"]
        == "97.0"
    )


def test_of_a_grid_the_best_is_shown_and_the_others_nowhere(tmp_path):
    for rate, top_1 in (("0.2", 66.0), ("0.4", 69.0), ("0.7", 67.0)):
        tried = experiment(tmp_path / "runs", "figure2", "512", "imagenet", tried=rate, batch=16)
        linear(tried / "linear", tried, top_1)
    found = measured(report(tmp_path))
    assert {key: value for key, value in found.items() if key[2] == "top-1"} == {
        ("figure2", "batch size 512 (lr 0.4)", "top-1"): 69.0
    }


def test_brackets_are_no_markup_on_the_console(tmp_path, main_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    weights = tmp_path / "trunk[red]:cat:.pth"
    weights.write_bytes(b"other")
    head = "config.MODEL.HEAD.PARAMS=[[barlow_linear,{in_dim:2048,num_classes:1000}]]"
    linear(tmp_path / "runs" / "a", main_run, 73.0, head)
    linear(tmp_path / "runs" / "b", weights, 73.5, head)
    assert main(["table1", "--list", "--out", str(tmp_path / "runs"), head]) == 0
    printed = "".join(capsys.readouterr().out.split())  # the title is wrapped
    assert f",with{head}" in printed
    assert "ImageNetlinear(trunk[red]:cat:.pth,sha256" in printed


def test_what_a_folder_of_ones_own_leaves_open_is_no_departure(tmp_path):
    """Batch, trunk and projector of `own_images` hang on images and machine."""
    folder = tmp_path / "runs" / "photos"
    images = "config.DATA.TRAIN.DATA_PATHS=[/data/photos]"
    depth = "config.MODEL.TRUNK.RESNETS.DEPTH=34"
    pretraining(folder, "own_images", images, depth, batch=64, processes=1)
    resolved = yaml.safe_load((folder / "train_config.yaml").read_text())
    head = ["barlow_projector", {"in_dim": 256, "dims": [1024] * 3}]
    trunk = {"NAME": "barlow_resnet", "RESNETS": {"DEPTH": 34, "WIDTH_MULTIPLIER": 0.5}}
    resolved["MODEL"] = {"TRUNK": trunk, "HEAD": {"PARAMS": [head]}}
    (folder / "train_config.yaml").write_text(yaml.safe_dump(resolved))
    (run,) = find_runs(tmp_path / "runs").runs
    assert run.settings == {depth, "global batch=64"} and not run.departures
    assert {found["label"] for found in rows(report(tmp_path), "own/figure1")} == {"own_images"}


def test_a_seed_that_was_run_twice_counts_once(tmp_path, main_run):
    """The run that was started last; the other is told, and there is no spread of one seed."""

    def of_table_1():
        found = find_runs(tmp_path)
        table = report_table("table1", "imagenet", found)
        (linear_top_1,) = (r for r in table.rows if r.runs and r.figure == "top-1")
        return linear_top_1.measured, left_out(found, [table])

    first = linear(tmp_path / "a", main_run, 72.0)
    linear(tmp_path / "b", main_run, 73.0)
    told = {first: f"the same as {tmp_path}/b, with the same seed 0: that one counts"}
    assert of_table_1() == ("73.0", told)
    linear(tmp_path / "c", main_run, 74.0, seed=1)
    assert of_table_1() == ("73.5 ± 0.7 (2 runs)", told)


def test_a_figure_joins_no_points_of_runs_that_depart_otherwise(tmp_path):
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"w")
    for folder, point, accuracy, begun in (
        ("a", "0.005", 0.9, None),
        ("b", "0.02", 0.8, None),
        ("c", "0.005", 0.5, weights),
    ):
        run = experiment(tmp_path / folder, "figure5", point, "digits", weights=begun)
        probed(run, accuracy)
    panels = _panels(report_table("figure5", "digits", find_runs(tmp_path)))
    points = {
        label: [(point, *values) for point, values, _ in each if values]
        for label, each in panels.items()
    }
    digest = file_sha256(weights)[:12]
    assert points == {
        "lambda": [("0.005", 90.0), ("0.02", 80.0)],
        f"lambda, begun from w.pth, sha256 {digest}": [("0.005", 50.0)],
    }


def test_a_seed_that_was_pretrained_twice_counts_once(tmp_path):
    """Another partition is another folder, and on a GPU other weights; a second seed is one."""
    evaluated = {}
    for folder, seed, top_1 in (("a", 0, 70.0), ("b", 0, 71.0), ("c", 1, 72.0)):
        run = experiment(tmp_path / folder, "table6", "Baseline", "imagenet", seed=seed)
        evaluated[folder] = linear(run / "linear", run, top_1)
    found = find_runs(tmp_path)
    table = report_table("table6", "imagenet", found)
    (top_1, _) = (row for row in table.rows if row.runs)
    assert top_1.values == (71.0, 72.0)
    assert left_out(found, [table]) == {
        evaluated["a"]: f"the same as {evaluated['b']}, with the same seed 0: that one counts"
    }
