"""What cannot train is refused before training, in one line: the key, its value, the remedy."""

import os
import re
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from vissl_runs import resolve, run_engines

from vissl_barlow.vissl_plugin.errors import ConfigError

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
FOLDER_SOURCE = (
    "config.DATA.TRAIN.DATA_SOURCES=[barlow_folder]",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
)


def refusal(folder, *overrides: str, config: str = DIGITS) -> str:
    with pytest.raises(ConfigError) as raised:
        resolve(folder / "run", config, *overrides)
    message = str(raised.value)
    assert "\n" not in message
    return message


def write_images(folder, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.jpg")


def images_at(folder) -> tuple[str, ...]:
    return (*FOLDER_SOURCE, f"config.DATA.TRAIN.DATA_PATHS=[{folder}]")


def test_missing_data_folder(tmp_path):
    message = refusal(tmp_path, *images_at(tmp_path / "absent"))
    assert f"config.DATA.TRAIN.DATA_PATHS=[{tmp_path}/absent]" in message


def test_data_folder_not_given(tmp_path):
    message = refusal(tmp_path, *FOLDER_SOURCE, "config.DATA.TRAIN.DATASET_NAMES=[nowhere]")
    assert "config.DATA.TRAIN.DATA_PATHS=[FOLDER]" in message and '"nowhere"' in message


def test_nodes_without_an_address(tmp_path):
    nodes = "config.DISTRIBUTED.NUM_NODES=2"
    message = refusal(tmp_path, nodes)
    assert message.startswith("config.DISTRIBUTED.RUN_ID=auto: 2 nodes")
    assert "node_id" in message and "config.DISTRIBUTED.NUM_NODES=1" in message
    # The remedies it names work.
    for remedy in ("config.DISTRIBUTED.RUN_ID=localhost:29500", "config.SLURM.USE_SLURM=true"):
        resolve(tmp_path / "run", DIGITS, nodes, remedy)


def test_torchrun_would_start_a_run_in_each_of_its_processes(tmp_path, monkeypatch):
    started = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    message = refusal(tmp_path)
    assert message.startswith("config.DISTRIBUTED.NUM_PROC_PER_NODE=1: torchrun has started 2")
    assert "start it once on each machine" in message
    monkeypatch.setenv("LOCAL_RANK", "1")  # one line, not one of each process
    monkeypatch.setattr(signal, "pause", lambda: sys.exit("ended by torchrun"))
    with pytest.raises(SystemExit, match="ended by torchrun"):
        resolve(tmp_path / "run", DIGITS)
    monkeypatch.setenv("WORLD_SIZE", "1")
    resolve(tmp_path / "run", DIGITS)


def test_empty_data_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refusal(tmp_path, *images_at(tmp_path / "empty"))


def test_fewer_images_than_a_batch(tmp_path):
    write_images(tmp_path / "few", 3)
    assert "3 images, fewer than one global batch of 4" in refusal(
        tmp_path, *images_at(tmp_path / "few")
    )


def test_unreadable_images_are_counted_and_three_are_named(tmp_path):
    write_images(tmp_path / "images" / "good", 5)
    bad = tmp_path / "images" / "bad"
    bad.mkdir()
    for name in "ba":
        (bad / f"{name}.jpg").write_bytes(b"no image")
    os.mkfifo(bad / "c.jpg")
    os.symlink("/dev/zero", bad / "d.jpg")
    message = refusal(tmp_path, *images_at(tmp_path / "images"))
    assert (
        "4 of the 9 images checked cannot be read (bad/a.jpg, bad/b.jpg, bad/c.jpg, ...: the first "
        "since no image format that is read (" in message
    )
    assert "config.BARLOW.CHECK_IMAGES=0" in message
    # The remedy it names works.
    resolve(
        tmp_path / "run", DIGITS, *images_at(tmp_path / "images"), "config.BARLOW.CHECK_IMAGES=0"
    )


def test_embedding_dim_of_another_projector(tmp_path):
    message = refusal(tmp_path, "config.LOSS.barlow_loss.embedding_dim=256")
    assert message.startswith("config.LOSS.barlow_loss.embedding_dim=256:")
    assert "512" in message


def test_projector_for_another_trunk(tmp_path):
    message = refusal(tmp_path, "config.MODEL.TRUNK.RESNETS.DEPTH=50")
    assert message.startswith("config.MODEL.HEAD.PARAMS=") and "1024 dimensions" in message


def test_depth_without_a_resnet(tmp_path):
    message = refusal(tmp_path, "config.MODEL.TRUNK.RESNETS.DEPTH=20")
    assert message.startswith("config.MODEL.TRUNK.RESNETS.DEPTH=20:")


def test_global_batch_of_one(tmp_path):
    message = refusal(tmp_path, "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=1")
    assert message.startswith("config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=1: the global batch is 1")
    # Two processes of one image each are a batch of two, but not to batch normalisation.
    two = (
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=1",
        "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
    )
    apart = "config.MODEL.SYNC_BN_CONFIG.CONVERT_BN_TO_SYNC_BN=false"
    assert "would see one image at a time" in refusal(tmp_path, *two, apart)
    synchronised = "config.MODEL.SYNC_BN_CONFIG={CONVERT_BN_TO_SYNC_BN:true,GROUP_SIZE:0}"
    resolve(tmp_path / "run", DIGITS, *two, apart, synchronised)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_gpu_asked_for_and_absent(tmp_path):
    message = refusal(tmp_path, "config.MACHINE.DEVICE=gpu")
    assert (
        message.startswith("config.MACHINE.DEVICE=gpu:") and "config.MACHINE.DEVICE=cpu" in message
    )


def test_more_processes_than_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = refusal(
        tmp_path, "config.MACHINE.DEVICE=gpu", "config.DISTRIBUTED.NUM_PROC_PER_NODE=8"
    )
    assert message.startswith("config.DISTRIBUTED.NUM_PROC_PER_NODE=8:") and "has 2" in message


def test_warm_up_longer_than_training(tmp_path):
    message = refusal(tmp_path, "config.OPTIMIZER.num_epochs=1")
    assert message.startswith("config.OPTIMIZER.param_schedulers.lr.warmup_epochs=1:")


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("config.MACHINE.DEVICE=cuda", "set gpu or cpu"),  # else VISSL trains on the CPU
        ("config.DISTRIBUTED.BACKEND=nccl", "type config.DISTRIBUTED.BACKEND=gloo"),
        ("config.DISTRIBUTED.BACKEND=glo", "set nccl or gloo or mpi"),
        ("config.DATA.TRAIN.DATA_LIMIT=1.5", "set a whole number of at least -1"),
        ("config.LOSS.name=barlow_los", "no such loss; did you mean barlow_loss"),
    ],
)
def test_words_that_vissl_does_not_know(tmp_path, override, remedy):
    message = refusal(tmp_path, override, f"+config.BARLOW.COMMAND=['{override}']")
    assert message.startswith(f"{override}: ") and remedy in message


def test_a_rate_that_learns_nothing(tmp_path):
    key = "config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.base_value"
    for rate in ("0", "-0.1"):
        assert refusal(tmp_path, f"{key}={rate}").startswith(f"{key}={rate}: must be above 0")


def test_checkpoint_folder_not_writable(tmp_path):
    # A file in the way refuses root as well, which permissions would not.
    (tmp_path / "run").write_text("")
    assert f"config.CHECKPOINT.DIR={tmp_path}/run:" in refusal(tmp_path)


def test_a_refused_start_leaves_no_folder(tmp_path):
    wrong = "config.OPTIMIZER.num_epochs=1"
    with pytest.raises(ConfigError, match="warmup_epochs"):
        resolve(tmp_path / "some" / "run", DIGITS, wrong)
    assert not list(tmp_path.iterdir())
    (tmp_path / "some").mkdir()
    with pytest.raises(ConfigError, match="warmup_epochs"):
        resolve(tmp_path / "some" / "run", DIGITS, wrong)
    assert list(tmp_path.rglob("*")) == [tmp_path / "some"]


def test_checkpoint_of_another_model(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    trunk = {"_feature_blocks.conv1.weight": torch.zeros(64, 3, 7, 7)}
    optimizer = {"optim": {"state": {}, "param_groups": []}}
    model = {"base_model": {"model": {"trunk": trunk, "heads": {}}}, "optimizer": optimizer}
    counters = {"phase_idx": 0, "train_phase_idx": 0, "iteration_num": 7, "iteration": 8}
    torch.save({"classy_state_dict": model, **counters}, run / "model_phase0.torch")
    message = refusal(tmp_path)
    assert message.startswith(f"config.CHECKPOINT.DIR={run}:") and "model_phase0.torch" in message


@pytest.mark.parametrize(
    ("override", "key", "reason"),
    [
        ("config.LOSS.barlow_loss.lambda_=-1", "config.LOSS.barlow_loss=", "lambda_=-1"),
        ("config.LOSS.barlow_loss.form=cube", "config.LOSS.barlow_loss=", "form='cube'"),
        ("config.OPTIMIZER.momentum=1.5", "config.OPTIMIZER=", "momentum"),
        (
            "config.DATA.TRAIN.TRANSFORMS=[{name:BarlowTwoViews,blur_p:[2,0]}]",
            "config.DATA.TRAIN.TRANSFORMS=",
            "blur_p",
        ),
        (
            "config.DATA.TRAIN.TRANSFORMS=[{name:BarlowTwoViews,blurp:[1,0]}]",
            "config.DATA.TRAIN.TRANSFORMS=",
            "blurp",
        ),
        (
            "config.OPTIMIZER.param_schedulers.lr.end_value=5",
            "config.OPTIMIZER.param_schedulers.lr.end_value=5:",
            "start_value",
        ),
    ],
)
def test_values_out_of_range(tmp_path, override, key, reason):
    message = refusal(tmp_path, override)
    assert message.startswith(key) and reason in message


def test_the_runner_prints_one_line_and_fails(tmp_path):
    done = run_engines(tmp_path, f"config={DIGITS}", "config.OPTIMIZER.num_epochs=1")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("vissl_barlow: config.OPTIMIZER.param_schedulers.lr.warmup_epochs=1:")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.torch"))


def test_an_unknown_config_lists_the_near_ones(tmp_path):
    done = run_engines(tmp_path, "config=pretrain/vissl_barlow/resnet50_in1k_1000epochs")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"did you mean pretrain/vissl_barlow/resnet50_in1k_1000ep[,?]", last), last
    assert "Traceback" not in done.stderr


def test_an_unreadable_image_met_in_training_is_reported_and_counted(tmp_path):
    write_images(tmp_path / "images", 8)
    (tmp_path / "images" / "3.jpg").write_bytes(b"no image")
    done = run_engines(
        tmp_path,
        f"config={DIGITS}",
        *images_at(tmp_path / "images"),
        "config.BARLOW.CHECK_IMAGES=0",
        "config.BARLOW.PROBE.KIND=''",
        "config.OPTIMIZER.num_epochs=2",
        "config.DATA.NUM_DATALOADER_WORKERS=1",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    output = done.stdout + done.stderr
    assert f"{tmp_path}/images/3.jpg" in output
    assert "2 unreadable images so far were replaced by their neighbours" in output
    assert os.path.exists(tmp_path / "quickstart" / "checkpoint.torch")


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("''", "name the run's folder; config.CHECKPOINT.DIR=. is this one"),
        ("'{folder}/${{oc.env:HOME}}'", "VISSL resolves no ${...}; write the path out"),
    ],
)
def test_a_checkpoint_folder_without_a_name(tmp_path, given, remedy):
    with pytest.raises(ConfigError) as raised:
        resolve(tmp_path, DIGITS, f"config.CHECKPOINT.DIR={given.format(folder=tmp_path)}")
    assert remedy in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_clipped_gradients_under_a_loss_scale(tmp_path):
    clip = ("config.MODEL.GRAD_CLIP.USE_GRAD_CLIP=true", "config.MODEL.AMP_PARAMS.USE_AMP=true")
    resolve(tmp_path, DIGITS, *clip)  # bfloat16 has no scale
    on_gpu = ("config.BARLOW.AMP_DTYPE=float16", "config.MACHINE.DEVICE=gpu")
    with pytest.raises(ConfigError, match="VISSL clips before the float16 loss scale is taken out"):
        resolve(tmp_path, DIGITS, *clip, *on_gpu, "config.SLURM.USE_SLURM=true")
