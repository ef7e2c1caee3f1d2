"""The Makefile's targets, with this interpreter in place of the environment they would install."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from patience import run

ROOT = Path(__file__).resolve().parents[2]


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """`make ARGUMENT... NAME=VALUE...` in the checkout, whatever its exit status."""
    # -o: as if it were installed, and up to date.
    command = ["make", "-o", ".venv/.installed", "VENV=.venv", f"RUN={sys.executable}"]
    return run(
        [*command, *arguments, *(f"{name}={value}" for name, value in variables.items())],
        cwd=ROOT,
        # Neither pytest nor make, inside another, may take itself for a part of it.
        env={
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST", "MAKE", "MFLAGS"))
        },
    )


def recipe(*arguments: str) -> list[list[str]]:
    """The commands that `make ARGUMENT...` would run."""
    done = make("--dry-run", *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if not line.startswith("make")]
