"""`python -m vissl_barlow.reproduce report`: numbers that nothing vouches for are in no table."""

import json
import re
import shutil

import pytest
from pretend_runs import (
    LINEAR,
    detection,
    experiment,
    linear,
    probed,
    start,
    svm,
    vissl_command,
    write,
)
from reports import measured, report, rows

from vissl_barlow.reproduce.__main__ import main


def _no_provenance(folder):
    (folder / "barlow_run.json").unlink()
    return "no barlow_run.json"


def _broken_provenance(folder):
    (folder / "barlow_run.json").write_text("[{")
    return "barlow_run.json cannot be read"


def _no_config(folder):
    (folder / "train_config.yaml").unlink()
    return "no train_config.yaml"


def _broken_result(folder):
    (folder / "metrics.json").write_text('{"train_phase_idx": 99, "test')
    return "its result cannot be read"


def _not_a_percentage(folder):
    content = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(content.replace("70.0", "-1.0"))
    return "its top-1 is -1.0"


def _other_weights(folder):
    (folder.parent / "anywhere" / "checkpoint.torch").write_bytes(b"trained further")
    return "no longer the file it evaluated"


def _two_configs(folder):
    starts = json.loads((folder / "barlow_run.json").read_text())
    write(folder, *starts, start(vissl_command("benchmark/vissl_barlow/places205_linear")))
    return "a run has one config"


def _two_settings(folder):
    starts = json.loads((folder / "barlow_run.json").read_text())
    write(folder, *starts, start(vissl_command(LINEAR, "config.OPTIMIZER.nesterov=true")))
    return "its starts had different settings"


@pytest.mark.parametrize(
    "damage",
    [
        _no_provenance,
        _broken_provenance,
        _no_config,
        _broken_result,
        _not_a_percentage,
        _other_weights,
        _two_configs,
        _two_settings,
    ],
)
def test_a_number_without_its_runs_files_is_refused(tmp_path, main_run, damage, capsys):
    folder = linear(tmp_path / "runs" / "evaluated", main_run, 70.0)
    reason = damage(folder)
    out = report(tmp_path, status=1)
    assert measured(out) == {}
    assert re.search(f"refused: evaluated: .*({reason})", capsys.readouterr().err)
    assert re.search(f"evaluated.*({reason})", (out / "report.md").read_text())
    assert "evaluated" in (out / "report.html").read_text()


def test_a_start_that_left_nothing_binds_no_run(tmp_path, main_run):
    """Neither its settings nor its processes are those of the numbers."""
    folder = linear(tmp_path / "runs" / "evaluated", main_run, 70.0)
    starts = json.loads((folder / "barlow_run.json").read_text())
    other = start(vissl_command(LINEAR, "config.OPTIMIZER.nesterov=true"), processes=3)
    write(folder, *starts, {**other, "anew": True, "left": False})
    assert 70.0 in measured(report(tmp_path)).values()


def test_a_copied_run_counts_once_as_it_went_on(tmp_path, main_run, capsys):
    folder = linear(tmp_path / "runs" / "evaluated", main_run, 70.0)
    copy = shutil.copytree(folder, tmp_path / "runs" / "backup")
    starts = json.loads((folder / "barlow_run.json").read_text())
    write(folder, *starts, start(starts[0]["command"], weights=main_run / "checkpoint.torch"))
    out = report(tmp_path, status=1)
    counted = [(r["figure"], r["ours"], r["folders"]) for r in rows(out, "table1") if r["ours"]]
    assert counted == [("top-1", "70.0", "evaluated"), ("top-5", "88.0", "evaluated")]
    assert f"refused: {copy.name}: a copy of {folder}" in capsys.readouterr().err


def test_a_probe_whose_weights_are_gone_is_refused(tmp_path, capsys):
    folder = probed(experiment(tmp_path / "runs", "table5", "Baseline", "digits"), 0.97)
    (folder / "checkpoint.torch").unlink()
    assert measured(report(tmp_path, status=1)) == {}
    assert "no checkpoint.torch" in capsys.readouterr().err
    # By the study's own command too: its row is empty, and it does not run again.
    arguments = [
        "table5",
        "--data",
        "digits",
        "--only",
        "Baseline",
        "--out",
        str(tmp_path / "runs"),
    ]
    assert main(arguments) == 1
    assert "no checkpoint.torch" in capsys.readouterr().err


def test_more_folders_than_one_are_not_passed_over(tmp_path, main_run, capsys):
    """As a shell writes `runs/*`."""
    others = [str(tmp_path / "runs" / "b"), "config.A=1"]
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(main_run), *others, "--out", str(tmp_path / "report")])
    assert stopped.value.code == 2
    assert f"{' '.join(others)}: the report is of one RUNS_DIR" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_vissls_failed_svms_are_no_result(tmp_path, main_run, capsys):
    svm(tmp_path / "runs" / "svm", main_run / "checkpoint.torch", -0.01)
    report(tmp_path, status=1)
    assert "svm: its mAP is -1.0: a failed run" in capsys.readouterr().err


@pytest.mark.parametrize(("make", "message"), [(False, "is no folder"), (True, "no run in")])
def test_a_folder_without_runs_is_an_error(tmp_path, make, message, capsys):
    if make:
        (tmp_path / "runs").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_settings_that_changed_are_named_in_the_order_of_time(tmp_path, main_run, capsys):
    folder = linear(tmp_path / "runs" / "evaluated", main_run, 70.0)
    first, *_ = json.loads((folder / "barlow_run.json").read_text())
    later = ["config.Z=1", "config.M=1", "config.A=1", "config.Q=1"]
    write(folder, first, *(start(vissl_command(LINEAR, override)) for override in later))
    report(tmp_path, status=1)
    told = "; then ".join(f"{override}, global batch=256" for override in later)
    assert f"different settings: global batch=256; then {told}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("evaluated", "reason"),
    [
        ({"start": "training", "iteration": 6000, "max_iter": 24000}, "iteration 6000 of 24000"),
        ({"start": "eval-only", "iteration": 24000, "max_iter": 24000}, "of --eval-only"),
        ({"start": "eval-only", "iteration": None, "max_iter": 24000}, "of --eval-only"),
    ],
)
def test_an_evaluation_beside_the_end_of_a_training_is_no_row_of_table_4(
    evaluated, reason, tmp_path, capsys
):
    weights = tmp_path / "runs" / "checkpoint.torch"
    weights.parent.mkdir()
    weights.write_bytes(b"pretrained")
    boxes = {"AP50": 82.0, "AP75": 63.0}
    for seed in range(4):
        detection(tmp_path / f"runs/seed{seed}", weights, {"AP": 56.7, **boxes}, seed=seed)
    detection(
        tmp_path / "runs/seed3/beside", weights, {"AP": 30.0, **boxes}, seed=4, evaluated=evaluated
    )
    out = report(tmp_path)  # nothing is wrong with it
    assert "56.7 ± 0.0 (4 of 5 runs)" in (out / "table4.md").read_text()
    assert "left out: seed3/beside: its numbers are of" in (told := capsys.readouterr().err)
    assert reason in told and reason in (out / "report.html").read_text()
    assert re.search(f"- seed3/beside: .*{reason}", (out / "report.md").read_text())


def test_numbers_of_a_version_that_did_not_say_what_they_are_of_are_refused(tmp_path, capsys):
    weights = tmp_path / "checkpoint.torch"
    weights.write_bytes(b"pretrained")
    folder = detection(tmp_path / "runs/old", weights, {"AP": 56.7, "AP50": 82.0, "AP75": 63.0})
    results = json.loads((folder / "results.json").read_text())
    del results["voc_2007_test"]["evaluated"]
    (folder / "results.json").write_text(json.dumps(results))
    assert ("table4", "VOC07+12 detection", "box AP") not in measured(report(tmp_path, status=1))
    assert "--resume evaluates the final model again" in capsys.readouterr().err
