"""Fixtures of the tests that train under VISSL's launcher."""

import pytest
from digits_on_disk import OVERLAY
from forked_runs import TWO_PROCESSES, RunServer
from interrupted_runs import SHORT, SOAK_STEPS
from patience import LIMIT
from vissl_runs import run_engines, succeeded


@pytest.fixture(scope="session")
def server():
    """Runs VISSL's launcher without importing VISSL for each run."""
    # To end one that hangs; a soak run gets a second more for each step.
    with RunServer(LIMIT + SOAK_STEPS) as server:
        yield server


@pytest.fixture(scope="session")
def uninterrupted(server, tmp_path_factory):
    """Folders of whole runs of `SHORT`, in one process and in two."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    server.finish(folder / "1", *SHORT)
    server.finish(folder / "2", *SHORT, *TWO_PROCESSES)
    return {1: folder / "1", 2: folder / "2"}


@pytest.fixture(scope="session")
def trained(checkpoints, digits_on_disk, tmp_path_factory):
    """The folder of a linear classifier after two epochs."""
    folder = tmp_path_factory.mktemp("linear")
    succeeded(
        run_engines(
            folder,
            *(
                "config=benchmark/vissl_barlow/imagenet1k_linear",
                OVERLAY,
                *digits_on_disk.folders(),
            ),
            f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={checkpoints['pretrained']}",
            "config.OPTIMIZER.num_epochs=2",
            f"config.CHECKPOINT.DIR={folder}",
        )
    )
    return folder
