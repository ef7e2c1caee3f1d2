"""A study states the global batch; each process takes its share of it, whatever the hardware."""

import re
import shlex

import pytest

from vissl_barlow.reproduce.__main__ import main

ONE_NODE = "config.DISTRIBUTED.NUM_NODES=1"


def trained(capsys, tmp_path, *arguments) -> list[tuple[str, str]]:
    """Batch per process ("": the config's) and learning rate of each pretraining that would run."""
    assert main([*arguments, "--dry-run", "--out", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "config=pretrain" in line]
    found = []
    for line in lines:
        values = dict(word.split("=", 1) for word in shlex.split(line) if word.startswith("config"))
        rate = values.get("config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.base_value", "")
        found.append((values.get("config.DATA.TRAIN.BATCHSIZE_PER_REPLICA", ""), rate))
    return found


def test_figure_2_has_the_authors_rates_and_its_batches_on_one_machine(capsys, tmp_path):
    found = trained(capsys, tmp_path, "figure2", ONE_NODE)
    rates = ["0.7", "0.4", "0.3", "0.25", "", ""]  # the config's is 0.2
    assert found == list(zip(["16", "32", "", "128", "256", "512"], rates))  # the config's is 64


def test_the_whole_grid_is_an_option(capsys, tmp_path):
    assert len(trained(capsys, tmp_path, "figure2", "--grid", ONE_NODE)) == 30


@pytest.mark.parametrize(
    ("study", "row", "share"),
    [("table7", "8192", "512"), ("objectives", "SimSiam", "64"), ("table5", "Baseline", "256")],
)
def test_studies_keep_their_global_batch_on_one_machine(capsys, tmp_path, study, row, share):
    assert trained(capsys, tmp_path, study, "--only", row, ONE_NODE)[0][0] == share


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure2", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=256"], "figure2 sets this for each"),
        (["figure2", "--only", "2048", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8"], "sets this"),
        (["figure5", "--only", "0.005", "config.LOSS.barlow_loss.lambda_=1"], "sets this for each"),
        (["table5", "--only", "only inv", "config.LOSS.barlow_loss.lambda_=1"], "sets this for"),
        (["objectives", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=256"], "objectives sets this"),
        (["figure2", "config.DISTRIBUTED.NUM_PROC_PER_NODE=3"], "128 is not divisible by 12"),
    ],
)
def test_what_would_make_another_experiment_of_it_is_refused(capsys, tmp_path, arguments, message):
    with pytest.raises(SystemExit):
        main([*arguments, "--dry-run", "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert re.search(message, said.err) and said.out == ""
