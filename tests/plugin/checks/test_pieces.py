"""What steps in pieces cannot be is said before training, and when they make another experiment."""

import copy
import re

import pytest
from vissl_runs import compose, resolve

import vissl_barlow

vissl_barlow.register()

from vissl_barlow.reproduce.settings import settings_of  # noqa: E402
from vissl_barlow.vissl_plugin.checks.dry_run import (  # noqa: E402
    check_batch_norm,
    check_last_batch,
)
from vissl_barlow.vissl_plugin.checks.pieces import (  # noqa: E402
    check_activation_checkpointing,
    check_pieces,
    check_stages_of_model,
)
from vissl_barlow.vissl_plugin.errors import ConfigError  # noqa: E402
from vissl_barlow.vissl_plugin.run.experiment import experiment_of  # noqa: E402

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
CHECKPOINTING = "MODEL.ACTIVATION_CHECKPOINTING.USE_ACTIVATION_CHECKPOINTING"


@pytest.fixture(scope="module")
def composed():
    return compose(
        DIGITS,
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16",
        "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.0625",
        "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:32,dims:[8,8]}]]",
    )


@pytest.fixture
def config(composed):
    return copy.deepcopy(composed)


def put(config, key: str, value) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        config = config[parent]
    config[name] = value


def said(check, config) -> str:
    with pytest.raises(ConfigError) as raised:
        check(config)
    return str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"CHUNK_SIZE": 17}, "BARLOW.CHUNK_SIZE=17.* 16 images .*; set fewer, or 0"),
        (
            {"CHUNK_SIZE": 4, "CHUNK_BATCH_NORM": "per_view"},
            "CHUNK_SIZE=4.* no effect .*; set it to 0",
        ),
        (
            {"CHUNK_SIZE": 4, "LOSS.name": "simclr_info_nce_loss"},
            "LOSS.name=simclr_info_nce_loss.* function of the embeddings alone,.*barlow_loss",
        ),
        (
            {"CHUNK_SIZE": 4, "MODEL.BASE_MODEL_NAME": "multi_input_output_model"},
            "BASE_MODEL_NAME=multi_input.* one view at a time,.*barlow_twins_model",
        ),
        (
            {"CHUNK_SIZE": 4, "TRAINER.TRAIN_STEP_NAME": "standard_train_step"},
            "TRAIN_STEP_NAME=standard_train_step.* set it to barlow_train_step",
        ),
        (
            {"CHUNK_SIZE": 4, "CHUNK_BATCH_NORM": "exact", "BARLOW.COMPILE": True},
            "COMPILE=True.* out of compiled code",
        ),
        (
            {"CHUNK_SIZE": 4, "CHUNK_BATCH_NORM": "exact", CHECKPOINTING: True},
            "CHECKPOINTING=True.* set it to false",
        ),
        (
            {
                "CHUNK_SIZE": 4,
                "CHUNK_BATCH_NORM": "exact",
                "MODEL.BASE_MODEL_NAME": "barlow_byol_model",
            },
            "exact.* BYOL's target .*per_view",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_pieces_alone(config, settings, message):
    plain = copy.deepcopy(config)
    for key, value in settings.items():
        put(config, key if "." in key else f"BARLOW.{key}", value)
        if "CHUNK" not in key:
            put(plain, key, value)
    check_pieces(plain)
    line = said(check_pieces, config)
    assert "\n" not in line
    assert re.search(message, line), line


@pytest.mark.parametrize("mode", ["per_piece", "per_view"])
@pytest.mark.parametrize("key", ["BARLOW.COMPILE", CHECKPOINTING])
def test_other_modes_go_with_compilation_and_activation_checkpointing(config, mode, key):
    put(config, "BARLOW.CHUNK_BATCH_NORM", mode)
    put(config, "BARLOW.CHUNK_SIZE", 4 if mode == "per_piece" else 0)
    put(config, key, True)
    check_pieces(config)


@pytest.mark.parametrize(
    ("size", "mode", "drops_last", "passes"),
    [
        (0, "per_piece", True, False),
        (16, "per_piece", True, False),  # all at once
        (4, "per_piece", False, False),  # the last batch of an epoch may be
        (4, "per_piece", True, True),
        (0, "per_view", False, True),
    ],
)
def test_activation_checkpointing_on_several_processes_takes_pieces(
    config, size, mode, drops_last, passes
):
    """There torch would end the first step: a variable is marked ready twice."""
    put(config, CHECKPOINTING, True)
    config.BARLOW.update(CHUNK_SIZE=size, CHUNK_BATCH_NORM=mode)
    config.DATA.TRAIN.DROP_LAST = drops_last
    check_activation_checkpointing(config)
    config.DISTRIBUTED.NUM_PROC_PER_NODE = 2
    if passes:
        check_activation_checkpointing(config)
    else:
        assert "CHUNK_BATCH_NORM=per_view" in said(check_activation_checkpointing, config)


def test_all_that_is_wrong_is_said_at_once_and_first(tmp_path):
    with pytest.raises(ConfigError) as raised:
        resolve(
            tmp_path / "run",
            DIGITS,
            "config.BARLOW.CHUNK_SIZE=129",
            "config.BARLOW.CHUNK_BATCH_NORM=exact",
            "config.BARLOW.COMPILE=true",
        )
    lines = str(raised.value).splitlines()
    assert [line.partition("=")[0] for line in lines] == [
        "config.BARLOW.CHUNK_SIZE",
        "config.BARLOW.COMPILE",
    ]
    with pytest.raises(ConfigError, match=r"CHUNK_SIZE=-1.* whole number of at least 0"):
        resolve(tmp_path / "run", DIGITS, "config.BARLOW.CHUNK_SIZE=-1")


@pytest.mark.parametrize("size", [1, 3, 5])  # 16 leaves 1 of 3 and of 5
def test_a_piece_of_one_is_refused_where_batch_norm_would_see_it_alone(config, size):
    config.BARLOW.CHUNK_SIZE = size
    line = said(check_batch_norm, config)
    assert f"CHUNK_SIZE={size}" in line and "a piece of 1 of 16 images" in line
    other = copy.deepcopy(config)
    other.BARLOW.CHUNK_BATCH_NORM = "exact"
    check_batch_norm(other)
    config.DISTRIBUTED.NUM_PROC_PER_NODE = 2
    config.MODEL.SYNC_BN_CONFIG.update(CONVERT_BN_TO_SYNC_BN=True, GROUP_SIZE=0)
    check_batch_norm(config)


def test_a_piece_of_one_in_the_last_batch_is_refused(config):
    config.BARLOW.CHUNK_SIZE = 4
    config.DATA.TRAIN.update(DROP_LAST=False, DATA_LIMIT=16 + 9)  # 4, 4 and 1
    config.DATA.TRAIN.DATA_LIMIT_SAMPLING.SEED = 0
    assert "1 of the 9 images in the last batch" in said(check_last_batch, config)
    config.DATA.TRAIN.DATA_LIMIT = 16 + 8
    check_last_batch(config)


def test_a_model_that_cannot_go_in_stages_is_refused(config, monkeypatch):
    config.BARLOW.update(CHUNK_SIZE=4, CHUNK_BATCH_NORM="exact")
    check_stages_of_model(config)
    from vissl_barlow.vissl_plugin.components.twins_model import BarlowTwinsModel

    stages = BarlowTwinsModel.stages
    monkeypatch.setattr(BarlowTwinsModel, "stages", lambda self: stages(self)[1:])
    assert "stages lack the parameter" in said(check_stages_of_model, config)


@pytest.mark.parametrize(
    ("size", "mode", "counts"),
    [
        (4, "per_piece", True),
        (16, "per_piece", False),  # all at once
        (4, "exact", False),
        (0, "per_view", False),
        (0, "per_piece", False),
    ],
)
def test_pieces_are_part_of_the_experiment_where_they_change_it(config, size, mode, counts):
    before = copy.deepcopy(config)
    for key in ("CHUNK_SIZE", "CHUNK_BATCH_NORM"):  # as in checkpoints from before there were any
        del before.BARLOW[key]
    config.BARLOW.update(CHUNK_SIZE=size, CHUNK_BATCH_NORM=mode)
    differing = set(experiment_of(config).items()) ^ set(experiment_of(before).items())
    assert differing == ({("BARLOW.CHUNK_SIZE", size)} if counts else set())


def test_a_command_lines_pieces_are_a_departure_where_they_change_statistics():
    size, mode = "config.BARLOW.CHUNK_SIZE=4", "config.BARLOW.CHUNK_BATCH_NORM="
    assert settings_of([size]) == {size}
    assert settings_of([size, f"{mode}per_piece"]) == {size, f"{mode}per_piece"}
    assert settings_of([size, f"{mode}exact"]) == settings_of([f"{mode}per_view"]) == set()
