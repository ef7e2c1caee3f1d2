"""Ctrl-C while a detector trains, with loader workers: the step is finished and saved."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from detection_runs import SMALL, VOC, environment
from patience import wait_for, wait_until

pytestmark = pytest.mark.detectron2


@pytest.mark.parametrize(
    ("processes", "send"),
    [(1, os.killpg), (2, os.killpg), (2, os.kill)],
    ids=["one process", "two processes", "two processes, the launcher alone"],
)
def test_ctrl_c_saves_and_leaves_with_its_status(data, checkpoints, tmp_path, processes, send):
    flags = ("--num-gpus", str(processes), "--config-file", VOC)
    options = (
        *SMALL,
        *("SOLVER.MAX_ITER", "100000", "SOLVER.STEPS", "(99999,)", "DATALOADER.NUM_WORKERS", "1"),
        *("MODEL.WEIGHTS", str(checkpoints.vissl), "OUTPUT_DIR", str(tmp_path / "run")),
    )
    output = tmp_path / "output"
    with output.open("w") as file:
        run = subprocess.Popen(
            [sys.executable, "-m", "vissl_barlow.detection", *flags, *options],
            env=environment(data),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    wait_until(
        lambda: "Starting training" in output.read_text() or run.poll() is not None,
        lambda: output.read_text()[-3000:],
    )
    assert run.poll() is None, output.read_text()[-3000:]
    send(run.pid, signal.SIGINT)
    assert wait_for(run) == 128 + signal.SIGINT, output.read_text()[-3000:]
    said = re.search(r"stopped by SIGINT after iteration (\d+), saved", output.read_text())
    assert said, output.read_text()[-3000:]
    name = f"model_{int(said[1]) - 1:07d}.pth"
    assert (tmp_path / "run" / "last_checkpoint").read_text() == name
    saved = torch.load(tmp_path / "run" / name, weights_only=False)
    assert saved["iteration"] == int(said[1]) - 1
    assert "Traceback" not in output.read_text()
