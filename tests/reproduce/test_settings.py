"""What a command line changes of what its config computes."""

import pytest

from vissl_barlow.reproduce.settings import config_of, describe, settings_of

RUNNER = ["python", "-m", "tools.run_distributed_engines"]
DETECTION = ["python", "-m", "vissl_barlow.detection", "--resume"]


@pytest.mark.parametrize(
    ("command", "config", "settings"),
    [
        (
            ["config=a/b.yaml", "config.OPTIMIZER.num_epochs=3"],
            "a/b",
            "config.OPTIMIZER.num_epochs=3",
        ),
        (
            ["config=a", "+config/x/overlays=digits", "~config.LOSS"],
            "a",
            "config/x/overlays=digits, ~config.LOSS",
        ),
        # Hydra takes the last, and a run of the other order is another.
        (["config=a", "config.A=1", "++config.A=2", "config.B=3"], "a", "config.A=2, config.B=3"),
        (["config=a", "config.DATA.TRAIN.DATA_PATHS=[/x]", "config.SEED_VALUE=3"], "a", ""),
        (["config=a", "config.CHECKPOINT.DIR='/a=b'", "config.SLURM.PARTITION=p"], "a", ""),
        (["config=a", "config.DATA.TRAIN.DATA_LIMIT=9"], "a", "config.DATA.TRAIN.DATA_LIMIT=9"),
        (["config=a", "config.BARLOW.PROBE.IMAGES=9"], "a", "config.BARLOW.PROBE.IMAGES=9"),
        (["config=a", "config.B=[1, 2]", "config.A=1"], "a", "config.A=1, config.B=[1,2]"),
    ],
)
def test_of_vissls_command_line(command, config, settings):
    assert config_of([*RUNNER, *command]) == config
    assert describe(settings_of([*RUNNER, *command])) == settings


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        (["--num-gpus", "8", "--config-file", "voc", "MODEL.WEIGHTS", "w.pth", "SEED", "1"], ""),
        (["--config-file=voc", "SOLVER.MAX_ITER", "9", "OUTPUT_DIR", "x=y"], "SOLVER.MAX_ITER=9"),
        (["--config-file", "d/voc.yaml", "--scale-batch-and-lr"], "--scale-batch-and-lr=true"),
    ],
)
def test_of_detectron2s(command, settings):
    assert config_of([*DETECTION, *command]) == "voc"
    assert describe(settings_of([*DETECTION, *command])) == settings


def test_the_global_batch_is_a_setting_and_the_batch_per_process_is_none():
    command = [*RUNNER, "config=a", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8"]
    assert settings_of(command, batch=64) == {"global batch=64"}
