"""Commands run or submitted to SLURM, and what a row's folder keeps of it (`reproduce.json`)."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vissl_barlow.atomic_files import write_text_atomically
from vissl_barlow.patient_files import read_json
from vissl_barlow.provenance import file_sha256
from vissl_barlow.reproduce.results import is_finished

# VISSL's tool that submits itself to SLURM where its config says so; others are submitted with sbatch.
RUNNER = "tools.run_distributed_engines"
USE_SLURM = "config.SLURM.USE_SLURM=true"
STATE_FILE = "reproduce.json"


def run_again(folder: Path) -> list[str]:
    """What VISSL's runner needs for a run in `folder` that has no result yet.

    Trained to the end but not tested to the end, it runs its last epoch again.
    """
    return ["config.CHECKPOINT.OVERWRITE_EXISTING=true"] if is_finished(folder) else []


def execute(title: str, command: Sequence[str], log: Path) -> bool:
    """Runs `command`, its output appended to `log`; whether it succeeded.

    Says what runs and where its log is, and of a failure the exit status and the last line.
    """
    print(f"{title}, log in {log}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        print(shlex.join(command), file=output, flush=True)
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
        print(f"{title}: failed with exit status {done.returncode}: {last}", file=sys.stderr)
    return done.returncode == 0


def sbatch(command: Sequence[str], folder: Path, gpus: str) -> list[str]:
    """`command` as a SLURM job, with the settings VISSL's launcher reads from its config."""
    settings = dict(word.split("=", 1) for word in command if word.startswith("config.SLURM."))
    partition = settings.get("config.SLURM.PARTITION", "")
    return [
        "sbatch",
        "--parsable",
        *([f"--partition={partition}"] if partition else []),
        "--nodes=1",
        "--ntasks=1",
        f"--gpus-per-node={gpus}",
        f"--cpus-per-task={settings.get('config.SLURM.NUM_CPU_PER_PROC', 8)}",
        f"--output={folder}/slurm-%j.out",
        f"--wrap={shlex.join(command)}",
    ]


def submit(title: str, command: Sequence[str], folder: Path) -> bool:
    """Submits a job unless the one submitted before is still in SLURM's queue; whether that went well.

    Args:
        command: prints the job's number, as sbatch and VISSL's runner do.
    """
    state = _read_state(folder)
    job = state.get("job")
    if job and shutil.which("squeue"):
        queue = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}"], capture_output=True, text=True, check=False
        )
        if queue.returncode == 0 and queue.stdout.strip():
            print(f"{title}: job {job} is in the queue", flush=True)
            return True
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    submitted = re.search(r"^(?:SUBMITTED: )?(\d+)\b", done.stdout, re.MULTILINE)
    if done.returncode != 0 or submitted is None:
        print(done.stdout + done.stderr, file=sys.stderr)
        return False
    _write_state(folder, {**state, "job": submitted[1]})
    print(
        f"{title}: submitted as job {submitted[1]}; repeat this command for the result", flush=True
    )
    return True


def claim(folder: Path, checkpoint: str) -> None:
    """Marks `folder` as this checkpoint's.

    Raises:
        ValueError: it holds another checkpoint's results.
    """
    digest = file_sha256(checkpoint)
    state = _read_state(folder)
    if state.get("sha256", digest) != digest:
        raise ValueError(
            f"{folder} holds the results of another checkpoint, {state['checkpoint']}; choose another "
            "folder with --out"
        )
    _write_state(folder, {**state, "checkpoint": checkpoint, "sha256": digest})


def _read_state(folder: Path) -> dict[str, Any]:
    return read_json(folder / STATE_FILE, lambda value: isinstance(value, dict)) or {}


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / STATE_FILE, json.dumps(state, indent=2) + "\n")
