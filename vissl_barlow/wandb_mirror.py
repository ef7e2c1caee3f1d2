"""Mirrors a run's folder to Weights & Biases: the numbers of its logs, its probe and its pictures.

    python -m vissl_barlow.wandb_mirror FOLDER --project NAME

A process of its own, which reads what the run writes: neither a network nor a disk that fails, nor a
server that does not answer, reaches the training. It ends, with what it has, when its stdin does.
"""

import argparse
import json
import math
import os
import select
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vissl_barlow.run_files import CONFIG_FILE, METRICS_FILE, NEXT_CONFIG_FILE, PROBE_FILE

# Of the monitor, and of VISSL's meters after each epoch; both have `iteration`.
LOGS = (METRICS_FILE, "metrics.json")
SECONDS_BETWEEN_LOOKS = 2.0
# What a server that does not answer gets after the run's end.
SECONDS_TO_FINISH = 600.0


class Tail:
    """The lines of a log from a place on, each once."""

    def __init__(self, path: Path, offset: int) -> None:
        """`offset`: bytes of earlier runs at the beginning, which may be taken out on the way."""
        self.path, self.earlier, self.offset = path, offset, offset

    def entries(self) -> Iterator[dict]:
        """Those written since the last call."""
        try:
            if self.path.stat().st_size < self.offset:
                self.offset, self.earlier = max(self.offset - self.earlier, 0), 0
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                written = file.read()
        except OSError:
            return  # there is none yet
        whole = written[: written.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


class Changes:
    """Which files of a folder are other ones than at the last look."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, dict(self._states(folder))

    @staticmethod
    def _states(folder: Path) -> Iterator[tuple[Path, tuple]]:
        for path in [folder / PROBE_FILE, *sorted(folder.glob("*.png"))]:
            if path.is_file():
                status = path.stat()
                yield path, (status.st_mtime_ns, status.st_ino)

    def paths(self) -> list[Path]:
        """Those since the last call."""
        states = dict(self._states(self.folder))
        changed = [path for path, state in states.items() if self.seen.get(path) != state]
        self.seen = states
        return changed


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers in nested sections, by names with slashes."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers(inner, f"{name}/{key}".lstrip("/"))
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, value


def mirror(folder: Path, project: str, run_id: str | None, offsets: Mapping[str, int]) -> None:
    """Mirrors until stdin ends. `run_id`: the run at W&B to go on with, or to begin."""
    import wandb

    tails = [Tail(folder / name, offsets.get(name, 0)) for name in LOGS]
    changes = Changes(folder)
    options = {
        "project": project,
        "id": run_id,
        "resume": "allow",
        "name": folder.resolve().name,
        "dir": folder,
        "config": _config(folder),
        "settings": wandb.Settings(silent=True, console="off"),
    }
    try:
        run = wandb.init(**options)
    except wandb.errors.CommError as error:
        print(f"W&B does not answer ({_one_line(error)}): kept here, to be sent by `wandb sync`")
        run = wandb.init(**options, mode="offline")
    # By the run's own steps: after a resume they begin before the last one that arrived.
    run.define_metric("*", step_metric="iteration")
    print(f"W&B: {run.dir if run.offline else run.url}", flush=True)
    goes_on, iteration = True, 0
    while goes_on:
        goes_on = not select.select([sys.stdin], [], [], SECONDS_BETWEEN_LOOKS)[0]
        for tail in tails:
            for entry in tail.entries():
                iteration = entry.get("iteration", iteration)
                run.log(dict(numbers(entry)))
        for path in changes.paths():
            run.log({"iteration": iteration, **_content(path)})
    late = threading.Timer(SECONDS_TO_FINISH, _give_up, args=(run.dir,))
    late.daemon = True
    late.start()
    run.finish()


def _content(path: Path) -> dict[str, Any]:
    import wandb

    if path.suffix == ".png":
        return {path.stem: wandb.Image(str(path))}
    return dict(numbers({"probe": json.loads(path.read_text())}))


def _config(folder: Path) -> dict:
    paths = [folder / name for name in (NEXT_CONFIG_FILE, CONFIG_FILE)]
    return next((yaml.safe_load(path.read_text()) for path in paths if path.is_file()), {})


def _give_up(directory: str) -> None:
    print(
        f"W&B: it has not all arrived; `wandb sync {Path(directory).parent}` sends it", flush=True
    )
    os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="vissl_barlow.wandb_mirror")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--project", required=True)
    parser.add_argument("--id", help="of the run at W&B that is gone on with; default: a new one")
    parser.add_argument("--offsets", type=json.loads, default={}, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        mirror(options.folder, options.project, options.id, options.offsets)
    except Exception as error:  # of wandb's, whatever it is: one line, for the run's log
        print(f"W&B gets no more of this run ({_one_line(error)})", file=sys.stderr)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
