"""The folder of a finished evaluation is of one experiment: its weights, its settings, its images."""

import shutil
from pathlib import Path

import pytest
from digits_on_disk import OVERLAY
from vissl_runs import resolve

from vissl_barlow.provenance import file_sha256
from vissl_barlow.vissl_plugin.errors import ConfigError

LINEAR = "benchmark/vissl_barlow/imagenet1k_linear"
WEIGHTS = "config.MODEL.WEIGHTS_INIT.PARAMS_FILE"
RATE = "OPTIMIZER.param_schedulers.lr.auto_lr_scaling.base_value"


@pytest.fixture
def start(trained, checkpoints, digits_on_disk):
    """Resolves the command of the finished evaluation, with overrides that come later."""

    def resolved(*overrides: str):
        return resolve(
            *(trained, LINEAR, OVERLAY, *digits_on_disk.folders()),
            f"{WEIGHTS}={checkpoints['pretrained']}",
            "config.OPTIMIZER.num_epochs=2",
            *overrides,
        )

    return resolved


def few_of(folder: Path, to: Path) -> Path:
    """A folder with five images of each class of another."""
    for source in folder.iterdir():
        (to / source.name).mkdir(parents=True)
        for image in sorted(source.iterdir())[:5]:
            (to / source.name / image.name).symlink_to(image)
    return to


def test_its_own_command_is_finished_wherever_the_weights_are_now(
    start, trained, checkpoints, tmp_path
):
    from vissl.utils.checkpoint import is_training_finished

    moved = shutil.copy(checkpoints["pretrained"], tmp_path / "moved.torch")
    for overrides in ((), (f"{WEIGHTS}={moved}",), ("config.DATA.NUM_DATALOADER_WORKERS=1",)):
        assert is_training_finished(start(*overrides), checkpoint_folder=str(trained))


def test_another_experiment_is_refused_with_what_differs(
    start, checkpoints, digits_on_disk, tmp_path
):
    hashes = [file_sha256(checkpoints[name]) for name in ("pretrained", "torchvision")]
    few = {
        split: few_of(digits_on_disk.imagenet / folder, tmp_path / folder)
        for split, folder in (("TRAIN", "train"), ("TEST", "val"))
    }
    differences = {
        f"{WEIGHTS}={checkpoints['torchvision']}": f"PARAMS_FILE is {hashes[0]} there and {hashes[1]}",
        f"config.{RATE}=0.1": f"{RATE} is 0.3 there and 0.1 now",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=32": "processes) is 64 there and 32 now",
        f"config.DATA.TRAIN.DATA_PATHS=[{few['TRAIN']}]": "images in DATA.TRAIN is 1437 there and 50",
        f"config.DATA.TEST.DATA_PATHS=[{few['TEST']}]": "images in DATA.TEST is 360 there and 50",
    }
    for override, difference in differences.items():
        with pytest.raises(ConfigError) as raised:
            start(override)
        assert "holds a finished run of another experiment" in str(raised.value), override
        assert difference in str(raised.value), override
