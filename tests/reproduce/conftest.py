"""Pretrainings that a report's tests evaluate."""

import pytest
from pretend_runs import pretraining


@pytest.fixture
def main_run(tmp_path):
    """The paper's pretraining."""
    return pretraining(tmp_path / "runs" / "anywhere", "resnet50_in1k_1000ep")


@pytest.fixture
def baseline(tmp_path):
    """The ablations' baseline."""
    return pretraining(tmp_path / "runs" / "300", "resnet50_in1k_300ep", "config.SLURM.X=1")
