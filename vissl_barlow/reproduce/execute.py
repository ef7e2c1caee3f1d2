"""One command of a table or a study: what lets it run again, and the run, with its output in a log."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vissl_barlow.reproduce.results import is_finished


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
