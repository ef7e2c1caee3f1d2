"""Fixtures that several test files share."""

import os
import signal
from pathlib import Path

import pytest
import vissl_runs
from digits_on_disk import DigitsOnDisk
from hypothesis import HealthCheck, settings

# A shell starts what it runs in the background with SIGINT ignored, and runs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Without effect on a machine that is part of no cluster. On one that is, a test that meant to submit
# nothing would otherwise reach it.
os.environ["SLURM_CONF"] = os.devnull

# How fast examples are drawn and tried says how busy the machine is (see `patience`).
# A folder may serve all examples of a test.
unasked = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("any machine", deadline=None, suppress_health_check=unasked)
settings.load_profile("any machine")

# Helpers whose assertions are a test's own: shown with their values, as there.
pytest.register_assert_rewrite("documented_runs", "documented_targets")

# Minutes each: begun last, they would be all that one of several workers still runs.
LONGEST = ("tests/project/test_docs_commands.py", "tests/plugin/hooks/test_quickstart.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.location[0] not in LONGEST)


@pytest.fixture(scope="session")
def digits_checkpoint(tmp_path_factory) -> Path:
    """A VISSL checkpoint of `digits_quickstart` after 5 epochs: enough to beat the untrained trunk."""
    folder = tmp_path_factory.mktemp("digits_checkpoint")
    vissl_runs.succeeded(
        vissl_runs.run_engines(
            folder,
            "config=pretrain/vissl_barlow/digits_quickstart",
            "config.OPTIMIZER.num_epochs=5",
            "config.BARLOW.PROBE.KIND=",
            f"config.CHECKPOINT.DIR={folder}",
        )
    )
    return folder / "checkpoint.torch"


@pytest.fixture(scope="session")
def checkpoints(digits_checkpoint, tmp_path_factory) -> dict:
    """The pretrained trunk in each format, and none."""
    from vissl_barlow.checkpoint import load_trunk, save_atomically

    folder = tmp_path_factory.mktemp("formats")
    # As the authors publish theirs: torchvision's names, bare.
    save_atomically(load_trunk(digits_checkpoint), folder / "resnet50.pth")
    return {
        "pretrained": digits_checkpoint,
        "torchvision": folder / "resnet50.pth",
        "untrained": "",
    }


@pytest.fixture(scope="session")
def digits_on_disk(tmp_path_factory) -> DigitsOnDisk:
    """The digits as files, in the layouts of ImageNet and of VOC."""
    return DigitsOnDisk(tmp_path_factory.mktemp("digits_on_disk"))
