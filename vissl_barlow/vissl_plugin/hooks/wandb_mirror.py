"""Starts what mirrors a run to Weights & Biases, `vissl_barlow.wandb_mirror`."""

import json
import logging
import secrets
import subprocess
import sys
from pathlib import Path

from classy_vision.generic.distributed_util import is_primary

from vissl_barlow.patient_files import read_json, replace
from vissl_barlow.screen import pass_lines_on
from vissl_barlow.vissl_plugin.hooks.base import BarlowHook
from vissl_barlow.wandb_mirror import LOGS

ID_FILE = "barlow_wandb.json"
# What the last numbers get to arrive before the run ends without waiting for them.
SECONDS_AT_THE_END = 30.0


class WandbMirror(BarlowHook):
    """Mirrors what the primary process writes to its folder to `config.BARLOW.WANDB_PROJECT`.

    In a process of its own, in a session of its own, which ends after this one, however that ends.
    """

    def __init__(self, project: str) -> None:
        super().__init__()
        self.project = project
        self.process: subprocess.Popen | None = None

    def on_start(self, task) -> None:
        if not is_primary():
            return
        folder = Path(task.checkpoint_folder)
        paths = [folder / name for name in LOGS]
        offsets = {path.name: path.stat().st_size for path in paths if path.is_file()}
        command = [sys.executable, "-m", "vissl_barlow.wandb_mirror", str(folder)]
        command += [
            "--project",
            self.project,
            "--id",
            _run_id(folder, anew=task.checkpoint is None),
        ]
        command += ["--offsets", json.dumps(offsets)]
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            logging.warning("W&B gets nothing of this run (%s): training goes on", error)
            return
        assert self.process.stdout and self.process.stderr
        pass_lines_on(self.process.stdout, logging.info)
        pass_lines_on(self.process.stderr, logging.warning)

    def on_end(self, task) -> None:
        if self.process is None:
            return
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(SECONDS_AT_THE_END)
        except subprocess.TimeoutExpired:
            logging.warning(
                "W&B has not got all of this run after %g s; process %d goes on sending",
                SECONDS_AT_THE_END,
                self.process.pid,
            )


def _run_id(folder: Path, anew: bool) -> str:
    """Of the run at W&B: the folder's, or another one for a run that begins anew."""
    known = None if anew else read_json(folder / ID_FILE, lambda value: isinstance(value, str))
    run_id = known or secrets.token_hex(4)
    replace(folder / ID_FILE, json.dumps(run_id) + "\n")
    return run_id
