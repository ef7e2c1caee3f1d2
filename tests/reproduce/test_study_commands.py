"""`python -m vissl_barlow.reproduce table5|...`: what is left of a study is run, submitted or shown."""

import argparse
import json
import shlex
from pathlib import Path

import pytest
from pretend_runs import pretend_study

from vissl_barlow.reproduce import commands
from vissl_barlow.reproduce.__main__ import main
from vissl_barlow.reproduce.commands import add_study_arguments, run_study
from vissl_barlow.reproduce.studies import folder_name, load_study, read_result


def _options(tmp_path, *arguments):
    parser = argparse.ArgumentParser()
    add_study_arguments(parser)
    return parser.parse_args(["--data", "digits", "--out", str(tmp_path), *arguments])


def test_only_unfinished_experiments_run(tmp_path, capsys):
    pretend_study(tmp_path, "table6", {("Baseline", ""): 0.95, ("(b) predictor", ""): 0.94})
    assert run_study("table6", _options(tmp_path, "--dry-run")) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 2
    assert "ablations/stop_gradient " in commands[0]
    assert "ablations/stop_gradient_predictor " in commands[1]
    assert all("config/pretrain/vissl_barlow=digits_quickstart" in line for line in commands)


def test_no_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--seeds 0 runs nothing"):
        run_study("table6", _options(tmp_path, "--dry-run", "--seeds", "0"))


def test_a_series_that_must_be_named_is_run_by_its_whole_name_alone(tmp_path, capsys):
    def widths(*arguments):
        assert run_study("figure4", _options(tmp_path, "--dry-run", *arguments)) == 0
        words = shlex.split(capsys.readouterr().out)
        return [word.split("=")[1] for word in words if ".dims=" in word]

    default = widths()
    assert "[512,512,2048]" in default and "[2048,2048,2048]" not in default
    assert widths("--only", "Width of all layers 2048") == ["[2048,2048,2048]"]
    assert len(widths("--only", "width of all layers")) == 4
    with pytest.raises(ValueError, match='give the whole name of the series, of "width of all la'):
        run_study("figure4", _options(tmp_path, "--dry-run", "--only", "all layers"))
    # What is not run may be set.
    assert widths("config.OPTIMIZER.bias_lr_scale=0.1") == default
    with pytest.raises(ValueError, match=r"bias_lr_scale=0\.1: figure4 sets this"):
        widths("--only", "width, bias rate 196 / D", "config.OPTIMIZER.bias_lr_scale=0.1")


def test_imagenet_is_pretrained_then_evaluated_and_a_finished_stage_is_not_repeated(
    tmp_path, capsys
):
    options = _options(tmp_path, "--data=imagenet", "--imagenet=/data", "--only=16384", "--dry-run")
    options.slurm = True
    run_study("figure4", options)
    pretraining, evaluation = capsys.readouterr().out.splitlines()
    assert "dims=[8192,8192,16384]" in pretraining
    assert "config=benchmark/vissl_barlow/imagenet1k_linear" in evaluation
    assert "config.DATA.TEST.DATA_PATHS=[/data/val]" in evaluation
    assert all("config.SLURM.USE_SLURM=true" in line for line in (pretraining, evaluation))

    key = "config.CHECKPOINT.DIR="
    [folder] = [p.removeprefix(key) for p in shlex.split(pretraining) if p.startswith(key)]
    assert f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={folder}/checkpoint.torch" in shlex.split(
        evaluation
    )
    # Each job's logs are beside what it writes.
    assert f"config.SLURM.LOG_FOLDER={folder}" in shlex.split(pretraining)
    assert f"config.SLURM.LOG_FOLDER={folder}/linear" in shlex.split(evaluation)
    Path(folder).mkdir(parents=True)
    (Path(folder) / "model_final_checkpoint_phase299.torch").touch()
    run_study("figure4", options)
    afterwards = capsys.readouterr().out.splitlines()
    # Both were submitted at once, the one to begin after the other.
    waits = [word for word in shlex.split(evaluation) if "SLURM.ADDITIONAL_PARAMETERS" in word]
    assert "dependency='afterok:JOB_OF_THE_PRETRAINING'" in waits[0] and len(waits) == 2
    assert [shlex.split(line) for line in afterwards] == [
        [word for word in shlex.split(evaluation) if word not in waits]
    ]

    linear = Path(folder) / "linear"
    linear.mkdir()
    (linear / "train_config.yaml").write_text("OPTIMIZER: {num_epochs: 100}")
    meter = {"top_1": {"res5avg": 71.2}, "top_5": {"res5avg": 90.1}}
    last = {"train_phase_idx": 99, "test_accuracy_list_meter": meter}
    (linear / "metrics.json").write_text(json.dumps(last))
    assert read_result(Path(folder), "imagenet") == {"top-1": 71.2, "top-5": 90.1}
    run_study("figure4", options)
    assert capsys.readouterr().out == ""


def test_overrides_of_the_evaluation_and_of_slurm_reach_it(tmp_path, capsys):
    arguments = ["table5", "--imagenet", "/data", "--only", "only inv", "--out", str(tmp_path)]
    overrides = ["config.OPTIMIZER.num_epochs=7", "config.SLURM.PARTITION=p"]
    linear = ["--linear", "config.OPTIMIZER.num_epochs=3", "--linear", "config.LOG_FREQUENCY=9"]
    assert main([*arguments, *overrides, *linear, "--slurm", "--dry-run"]) == 0
    pretraining, evaluation = map(shlex.split, capsys.readouterr().out.splitlines())
    assert {*overrides} <= {*pretraining} and not {*linear} & {*pretraining}
    assert {linear[1], linear[3], "config.SLURM.PARTITION=p"} <= {*evaluation}
    assert overrides[0] not in evaluation


@pytest.mark.parametrize(
    "words",
    [
        ["config.SEED_VALUE=3"],
        ["config.CHECKPOINT.DIR=x"],
        ["--linear", "config.CHECKPOINT.DIR=x"],
        ["--linear", "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=x"],
    ],
)
def test_what_makes_the_runs_of_a_study_different_is_its_own(tmp_path, capsys, words):
    """With one seed, or one folder, the mean over several would be one run's number."""
    with pytest.raises(SystemExit):
        main(["table5", "--only", "only inv", "--out", str(tmp_path), "--dry-run", *words])
    assert f"{words[-1]}: leave it out; it is set by " in capsys.readouterr().err


def test_an_override_of_the_evaluation_is_none_of_the_pretraining(tmp_path, capsys):
    """In one folder the result of the one would pass for the other's."""
    arguments = ["table5", "--only", "only inv", "--out", str(tmp_path), "--dry-run"]
    epochs, folders = "config.OPTIMIZER.num_epochs=7", set()
    for more in ([epochs], ["--linear", epochs]):
        assert main([*arguments, *more]) == 0
        words = shlex.split(capsys.readouterr().out)
        folders.add(next(word for word in words if word.startswith("config.CHECKPOINT.DIR=")))
    assert len(folders) == 2


def test_however_many_overrides_the_folder_has_a_name_of_its_own(tmp_path, capsys):
    names = set()
    for last in ("", "config.LOG_FREQUENCY=1", "config.LOG_FREQUENCY=2"):
        many = [f"config.DATA.TRAIN.TRANSFORMS.0.size={size}" for size in range(9)]
        arguments = ["table5", "--data", "digits", "--only", "only inv", "--out", str(tmp_path)]
        assert main([*arguments, *many, *filter(None, [last]), "--dry-run"]) == 0
        key = "config.CHECKPOINT.DIR="
        words = shlex.split(capsys.readouterr().out)
        (folder,) = (Path(word.removeprefix(key)) for word in words if word.startswith(key))
        folder.mkdir(parents=True)
        names.add(folder)
    assert len(names) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["config.NEAREST_NEIGHBOR.SIGMA=0.1"], ["config.NEAREST_NEIGHBOR.SIGMA=-0.1"]),
        (["config.A.values=[1,23]"], ["config.A.values=[1,[23]]"]),
        (["config.A=[1,2]"], ["config.A=1-2"]),
        (["config.A=1e-6"], ["config.A=1e6"]),
        (["config.A=b/c"], ["config.A=b-c"]),
        (["config.A=" + 99 * "b" + "=1"], ["config.A=" + 99 * "b" + "=-1"]),
        (["config.A=1"], ["linear.config.A=1"]),
    ],
)
def test_other_overrides_have_another_folder(one, other):
    """The results of the ones would pass for those of the others."""
    assert folder_name("linear", one) != folder_name("linear", other)
    assert folder_name("linear", one) == folder_name("linear", list(one))


def test_a_failed_run_is_told_with_its_last_line_and_a_status(tmp_path, capsys):
    """For real: VISSL's runner refuses the temperature before it trains."""
    options = _options(tmp_path, "--only", "entropy", "config.LOSS.barlow_objective.temperature=0")
    assert run_study("table5", options) == 1
    error = capsys.readouterr().err
    assert "failed with exit status 1" in error and "temperature=0 must be above 0" in error


def test_a_run_that_leaves_no_result_is_no_success(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(commands, "execute", lambda *_: True)
    options = _options(tmp_path, "--only", "Baseline")
    assert run_study("table6", options) == 1
    assert "Baseline, seed 0: ended without an error, and without a " in capsys.readouterr().err


def test_a_miniature_runs_to_its_table(tmp_path, capsys):
    """For real, for an epoch: the command line, VISSL's runner, the probe, the table."""
    arguments = ["table5", "--data", "digits", "--out", str(tmp_path), "--only", "only red"]
    epoch = [
        "config.OPTIMIZER.num_epochs=1",
        "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
    ]
    assert main([*arguments, *epoch]) == 0
    table = (tmp_path / "digits" / "table5.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| Only red"))
    untrained, pretrained = (float(cell) for cell in row.split("|")[3:5])
    assert 5 < pretrained < 100 and 5 < untrained < 100
    assert "with config.OPTIMIZER.num_epochs=1" in table  # not the study's twenty, and says so
    capsys.readouterr()
    assert main([*arguments, "--list"]) == 0
    capsys.readouterr()
    unchanged = (tmp_path / "digits" / "table5.md").read_text().splitlines()
    assert "| Only red. red. term (off-diag term) | probe |  |" in unchanged
    assert main([*arguments, *epoch, "--dry-run"]) == 0
    assert capsys.readouterr().out == ""
    assert main([*arguments, "--dry-run"]) == 0  # one epoch must not pass for the study's twenty
    assert "num_epochs=20" in capsys.readouterr().out


def test_an_unknown_study_or_row_is_an_error_that_lists_what_there_is(tmp_path, capsys):
    with pytest.raises(ValueError, match="table9 is no study; there are figure2"):
        load_study("table9", "digits")
    with pytest.raises(SystemExit):
        main(["table6", "--only", "xyz", "--out", str(tmp_path)])
    assert "--only xyz matches none of Baseline, (a) stop-gradient" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["figure4", "--data", "digits", "--only", "xyz", "--out", str(tmp_path)])
    assert "none of width 8, " in capsys.readouterr().err


def test_the_list_of_a_folder_that_is_not_there_yet_leaves_nothing_out(tmp_path, capsys):
    assert main(["figure4", "--data", "digits", "--list", "--out", str(tmp_path / "new")]) == 0
    assert "left out" not in "".join(capsys.readouterr())
