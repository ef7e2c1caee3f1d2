"""What is not the paper's experiment is in no row of the paper's, and every row has its own label."""

import hashlib
import json
import shutil

import pytest
import yaml
from pretend_runs import experiment, linear, pretraining, probed, svm
from reports import measured, report, row, rows

from vissl_barlow.reproduce.__main__ import main
from vissl_barlow.reproduce.overrides import PRETRAIN_GROUP, compose_config
from vissl_barlow.reproduce.report import csv_row
from vissl_barlow.reproduce.report_tables import left_out, report_table
from vissl_barlow.reproduce.runs import find_runs
from vissl_barlow.reproduce.studies import BASE
from vissl_barlow.run_files import AT_ITS_START


def resolve_as(folder, **model):
    """Puts a model into a run's resolved config."""
    path = folder / "train_config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "MODEL": model}))


@pytest.mark.parametrize(
    "model",
    [
        {"TRUNK": {"RESNETS": {"DEPTH": 18}}},
        {"TRUNK": {"RESNETS": {"WIDTH_MULTIPLIER": 0.5}}},
        {"HEAD": {"PARAMS": [["barlow_linear", {"in_dim": 2048, "num_classes": 8}]]}},
    ],
)
def test_another_trunk_or_other_classes_are_not_the_papers_row(tmp_path, main_run, model):
    """Whatever the command says: the resolved config decides."""
    resolve_as(linear(tmp_path / "runs" / "a", main_run, 73.0), **model)
    assert {key[0] for key in measured(report(tmp_path))} == {"others"}


def test_a_run_of_an_edited_config_is_no_run_of_the_shipped_one(tmp_path):
    """Nor is one of a version with other values: the command is the same."""
    shipped = compose_config(f"{PRETRAIN_GROUP}/digits_quickstart").OPTIMIZER.weight_decay
    for seed, decay in enumerate((shipped, shipped, 0.5)):
        folder = experiment(tmp_path, "table6", "Baseline", "digits", seed=seed)
        path = probed(folder, 0.9 - decay) / "train_config.yaml"
        # VISSL's rates are those of the batch.
        rates = {"lr": {"start_value": 2.0, "auto_lr_scaling": {"base_value": 4.0}}}
        optimizer = {"weight_decay": decay, "param_schedulers": rates}
        path.write_text(
            yaml.safe_dump({**yaml.safe_load(path.read_text()), "OPTIMIZER": optimizer})
        )
    table = report_table("table6", "digits", find_runs(tmp_path))
    assert {row.label: len(row.runs) for row in table.rows if row.runs} == {
        "Baseline": 2,
        "Baseline, config.OPTIMIZER.weight_decay=0.5": 1,
    }


@pytest.mark.parametrize(("name", "point"), [("figure4", "16"), ("table5", "Baseline")])
def test_another_trunk_is_not_a_studys_experiment(tmp_path, name, point):
    """Also where the study's own overrides make the experiment another than its config."""
    run = experiment(tmp_path, name, point, "imagenet")
    linear(run / "linear", run, 57.0)
    assert [r.ours for r in report_table(name, "imagenet", find_runs(tmp_path)).rows if r.runs]
    resolve_as(run, TRUNK={"RESNETS": {"DEPTH": 18}})
    found = find_runs(tmp_path)
    assert not any(row.runs for row in report_table(name, "imagenet", found).rows)


def test_the_papers_own_model_is(tmp_path, main_run):
    head = [["barlow_linear", {"in_dim": 2048, "num_classes": 1000}]]
    trunk = {"NAME": "barlow_resnet", "RESNETS": {"DEPTH": 50, "WIDTH_MULTIPLIER": 1}}
    run = linear(tmp_path / "runs" / "a", main_run, 73.0)
    resolve_as(run, TRUNK=trunk, HEAD={"PARAMS": head})
    assert {key[0] for key in measured(report(tmp_path))} == {"table1"}


def test_with_overrides_no_number_stands_beside_the_papers(tmp_path, main_run):
    """One table's command, where its own overrides make the experiment another."""
    head = "config.MODEL.HEAD.PARAMS=[[barlow_linear,{in_dim:512,num_classes:8}]]"
    small = (head, "config.MODEL.TRUNK.RESNETS.DEPTH=18")
    linear(tmp_path / "runs" / "a", main_run, 80.0, *small)
    assert main(["table1", "--list", "--out", str(tmp_path / "runs"), *small]) == 0
    found = row(tmp_path / "runs", "table1", "ImageNet linear")
    assert (found["ours"], found["paper"], found["built_in"], found["difference"]) == (
        *("80.0", "", "", ""),
    )


def test_of_another_pretraining_no_number_stands_beside_the_papers(tmp_path):
    other = pretraining(
        tmp_path / "runs" / "p", "resnet50_in1k_1000ep", "config.LOSS.barlow_loss.lambda_=0.1"
    )
    linear(tmp_path / "runs" / "a", other, 60.0)
    out = report(tmp_path)
    own = row(out, "table1", "ImageNet linear")
    assert (own["ours"], own["paper"]) == ("", "73.2")
    label = "ImageNet linear (resnet50_in1k_1000ep with LOSS.barlow_loss.lambda_=0.1)"
    found = row(out, "table1", label)
    assert (found["ours"], found["paper"], found["difference"]) == ("60.0", "", "")


def test_a_pretraining_from_weights_is_none_from_a_random_start(tmp_path):
    """Nor is one from other weights in the same place, which is all that a command tells."""
    weights = tmp_path / "supervised.pth"
    word = f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={weights}"
    probed(experiment(tmp_path / "a", "table6", "Baseline", "digits"), 0.9)
    for name, accuracy in (("b", 0.5), ("c", 0.6)):
        weights.write_bytes(name.encode())
        begun = experiment(tmp_path / name, "table6", "Baseline", "digits", weights=weights)
        probed(begun, accuracy, AT_ITS_START)
    table = report_table("table6", "digits", find_runs(tmp_path))
    label = "Baseline, begun from supervised.pth, sha256"
    digests = [hashlib.sha256(name).hexdigest()[:12] for name in (b"b", b"c")]
    # Nor was their trunk ever the untrained one, which is the table's reference.
    assert {row.label: (row.ours, row.reference) for row in table.rows if row.runs} == {
        "Baseline": (90.0, 30.0),
        f"{label} {digests[0]}": (50.0, None),
        f"{label} {digests[1]}": (60.0, None),
    }
    # ImageNet's are left out, or stand, where they are asked for, beside no number of the paper's.
    linear(tmp_path / "d", pretraining(tmp_path / "e", BASE, weights=weights), 80.0)
    found = find_runs(tmp_path)
    plain = report_table("table6", "imagenet", found)
    assert not any(row.runs for row in plain.rows)
    why = left_out(found, [plain])[tmp_path / "d"]
    assert f"of a pretraining with begun from supervised.pth, sha256 {digests[1]}" in why
    asked = report_table("table6", "imagenet", found, [word]).rows
    shown = [(row.label, row.ours, row.reference) for row in asked if row.runs]
    assert shown[0] == (f"{label} {digests[1]}", 80.0, None) and len(shown) == 2


def test_a_variant_stands_in_its_table_beside_no_number_of_the_papers(tmp_path, main_run):
    name = "benchmark/vissl_barlow/imagenet1k_semi_1pct_released"
    assert "released" not in "".join(r["label"] for r in rows(report(tmp_path), "table2"))
    linear(tmp_path / "runs" / "a", main_run, 54.0, config=name)
    found = row(report(tmp_path), "table2", "1% of the labels, released rates")
    assert (found["ours"], found["paper"], found["difference"]) == ("54.0", "", "")
    assert row(report(tmp_path), "table2", "1% of the labels")["ours"] == ""


def test_of_table_3s_features_only_pirls_stand_beside_the_papers_number(tmp_path, main_run):
    weights = main_run / "checkpoint.torch"
    svm(tmp_path / "runs" / "a", weights, 0.861)
    svm(tmp_path / "runs" / "b", weights, 0.868, config="voc07_svm_2048d", layer="res5avg")
    out = report(tmp_path)
    papers, other = (
        row(out, "table3", label, "mAP") for label in ("VOC07", "VOC07, 2048-d output")
    )
    assert (papers["ours"], papers["paper"]) == ("86.1", "86.2")
    assert (other["ours"], other["paper"]) == ("86.8", "")


def test_svms_on_several_layers_are_no_result(tmp_path, main_run):
    folder = svm(tmp_path / "runs" / "a", main_run / "checkpoint.torch", 0.861)
    shutil.copytree(folder / "res5", folder / "res4")
    assert row(report(tmp_path), "table3", "VOC07", "mAP")["ours"] == ""


def test_linear_classifiers_on_several_layers_keep_their_numbers_apart(tmp_path, main_run):
    layers = "config.MODEL.FEATURE_EVAL_SETTINGS.LINEAR_EVAL_FEAT_POOL_OPS_MAP=[[res4,x],[res5,x]]"
    folder = linear(tmp_path / "runs" / "a", main_run, 0, layers)
    meter = {"top_1": {"res4": 60.0, "res5": 72.0}, "top_5": {"res4": 80.0, "res5": 90.0}}
    last = {"train_phase_idx": 99, "test_accuracy_list_meter": meter}
    (folder / "metrics.json").write_text(json.dumps(last))
    table = report_table("table1", "imagenet", find_runs(tmp_path / "runs"), [layers])
    assert [(row.figure, row.ours) for row in table.rows if row.runs] == [
        ("top-1, res4", 60.0),
        ("top-1, res5", 72.0),
        ("top-5, res4", 80.0),
        ("top-5, res5", 90.0),
    ]


def test_an_evaluation_without_a_result_is_told(tmp_path, main_run):
    """A mean may be of fewer seeds than were begun."""
    done, begun = (
        linear(tmp_path / "runs" / n, main_run, 72.0, seed=i) for i, n in enumerate("ab")
    )
    (begun / "metrics.json").unlink()
    found = find_runs(tmp_path / "runs")
    table = report_table("table1", "imagenet", found)
    assert [row.runs[0].folder for row in table.rows if row.runs] == [done, done]
    told = left_out(found, [table])
    assert list(told) == [begun] and "imagenet1k_linear without a result" in told[begun]


def test_a_mean_says_the_seeds_of_its_pretrainings(tmp_path):
    """All their evaluations have the same one."""
    for seed in (0, 1):
        run = experiment(tmp_path, "table6", "Baseline", "imagenet", seed=seed)
        linear(run / "linear", run, 71.0)
    table = report_table("table6", "imagenet", find_runs(tmp_path))
    (top_1, _) = (csv_row(table, row, tmp_path) for row in table.rows if row.runs)
    assert (top_1["runs"], top_1["seeds"], top_1["pretraining_seeds"]) == (2, "0 0", "0 1")


def test_every_row_has_a_label_of_its_own(tmp_path):
    """Several seeds' evaluations in one table, and evaluations of no table."""
    for seed in (0, 1):
        run = pretraining(tmp_path / "runs" / f"p{seed}", "resnet50_in1k_1000ep", seed=seed)
        linear(tmp_path / "runs" / f"e{seed}", run, 72.0 + seed)
        for epochs in (1, 2):
            folder = tmp_path / "runs" / f"short{seed}{epochs}"
            linear(folder, run, 50.0, f"config.OPTIMIZER.num_epochs={epochs}", seed=seed)
        linear(tmp_path / "runs" / f"again{seed}", run, 50.0, "config.OPTIMIZER.num_epochs=1")
    out = report(tmp_path)
    for name, count in (("table1", 2), ("others", 6)):
        labels = [r["label"] for r in rows(out, name) if r["ours"] and r["figure"] == "top-1"]
        assert len(set(labels)) == len(labels) == count
