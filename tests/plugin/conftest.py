"""Fixtures of the tests that train under VISSL's launcher."""

import pytest
from forked_runs import TIME_LIMIT, TWO_PROCESSES, RunServer
from interrupted_runs import SHORT, SOAK_STEPS


@pytest.fixture(scope="session")
def server():
    """Runs VISSL's launcher without importing VISSL for each run."""
    # To end one that hangs; a soak run gets a second more for each step.
    with RunServer(TIME_LIMIT + SOAK_STEPS) as server:
        yield server


@pytest.fixture(scope="session")
def uninterrupted(server, tmp_path_factory):
    """Folders of whole runs of `SHORT`, in one process and in two."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    server.finish(folder / "1", *SHORT)
    server.finish(folder / "2", *SHORT, *TWO_PROCESSES)
    return {1: folder / "1", 2: folder / "2"}
