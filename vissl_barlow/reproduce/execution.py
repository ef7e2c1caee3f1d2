"""Commands run or submitted to SLURM, and what a row's folder keeps of it (`reproduce.json`)."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from vissl_barlow.atomic_files import write_text_atomically
from vissl_barlow.patient_files import read_json
from vissl_barlow.provenance import file_sha256
from vissl_barlow.reproduce.overrides import override
from vissl_barlow.reproduce.results import is_finished
from vissl_barlow.stop_signals import StopSignals

# VISSL's tool that submits itself to SLURM where its config says so; others are submitted with sbatch.
RUNNER = "tools.run_distributed_engines"
USE_SLURM = "config.SLURM.USE_SLURM=true"
_PARAMETERS = "++config.SLURM.ADDITIONAL_PARAMETERS"
STATE_FILE = "reproduce.json"


def run_again(folder: Path) -> list[str]:
    """What VISSL's runner needs for a run in `folder` that has no result yet.

    Trained to the end but not tested to the end, it runs its last epoch again.
    """
    return ["config.CHECKPOINT.OVERWRITE_EXISTING=true"] if is_finished(folder) else []


def execute(title: str, command: Sequence[str], log: Path) -> bool:
    """Runs `command`, its output appended to `log`; whether it succeeded.

    Says what runs and where its log is, and of a failure the exit status and the last line.

    Raises:
        SystemExit: this process was asked to stop, and the command has stopped; with the status of that
            signal.
    """
    print(f"{title}, log in {log}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        print(shlex.join(command), file=output, flush=True)
        status = _run(title, command, output)
    if status != 0:
        last = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
        print(f"{title}: failed with exit status {status}: {last}", file=sys.stderr)
    return status == 0


def _run(title: str, command: Sequence[str], output: IO[str]) -> int:
    """The exit status of `command`, which is waited for when it is asked to stop: it may save first.

    `subprocess.run` kills it a quarter of a second after Ctrl-C.
    """
    running: list[subprocess.Popen] = []

    def forward(number: int) -> None:
        # Whatever it was: a terminal's Ctrl-C has reached the command already, and one more from here
        # would end it at once.
        for process in running:
            process.terminate()

    signals = StopSignals(forward)
    try:
        running.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
        if signals.received:
            forward(signals.received)
        status = running[0].wait()
        if signals.received:
            name = signal.Signals(signals.received).name
            print(f"{title}: stopped by {name}; the same command goes on", file=sys.stderr)
            signals.leave(signals.received)
        return status
    finally:
        for process in running:
            process.kill()
            process.wait()
        signals.restore()


def sbatch(command: Sequence[str], folder: Path, gpus: str) -> list[str]:
    """`command` as a SLURM job, with the settings VISSL's launcher reads from its config."""
    settings = dict(word.split("=", 1) for word in command if word.startswith("config.SLURM."))
    partition = settings.get("config.SLURM.PARTITION", "")
    on_cpu = "config.MACHINE.DEVICE=cpu" in command
    return [
        "sbatch",
        "--parsable",
        *([f"--partition={partition}"] if partition else []),
        "--nodes=1",
        "--ntasks=1",
        *([] if on_cpu else [f"--gpus-per-node={gpus}"]),
        f"--cpus-per-task={settings.get('config.SLURM.NUM_CPU_PER_PROC', 8)}",
        f"--output={folder}/slurm-%j.out",
        f"--wrap={shlex.join(command)}",
    ]


def logs_in(folder: Path) -> str:
    """The override for VISSL's runner that puts its jobs' logs into `folder`."""
    return override("SLURM.LOG_FOLDER", str(folder))


def after(job: str) -> list[str]:
    """Overrides for VISSL's runner whose job is to begin when job `job` has succeeded, and is not to be
    left in the queue where that fails."""
    return [f"{_PARAMETERS}.dependency='afterok:{job}'", f"{_PARAMETERS}.kill_on_invalid_dep='yes'"]


def submit(title: str, command: Sequence[str], folder: Path) -> str | None:
    """Submits a job unless the one submitted before is still in SLURM's queue.

    Args:
        command: prints the job's number, as sbatch and VISSL's runner do.

    Returns: the job's number; None if it was not submitted, for the reason that is printed.
    """
    state = _read_state(folder)
    job = state.get("job")
    if job and shutil.which("squeue"):
        queue = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}"], capture_output=True, text=True, check=False
        )
        if queue.returncode == 0 and queue.stdout.strip():
            print(f"{title}: job {job} is in the queue", flush=True)
            return job
        print(f"{title}: job {job} ended without a result, logs in {folder}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    submitted = re.search(r"^(?:SUBMITTED: )?(\d+)\b", done.stdout, re.MULTILINE)
    if done.returncode != 0 or submitted is None:
        last = (done.stderr or done.stdout).rstrip().rpartition("\n")[2]
        status = f"exit status {done.returncode}"
        print(f"{title}: not submitted, {status}: {last}", file=sys.stderr)
        return None
    _write_state(folder, {**state, "job": submitted[1]})
    print(
        f"{title}: submitted as job {submitted[1]}; repeat this command for the result", flush=True
    )
    return submitted[1]


def claim(folder: Path, checkpoint: str) -> None:
    """Marks `folder` as this checkpoint's, or, if it is "", as the untrained trunk's.

    Raises:
        ValueError: it holds another checkpoint's results.
    """
    digest = file_sha256(checkpoint) if checkpoint else ""
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
