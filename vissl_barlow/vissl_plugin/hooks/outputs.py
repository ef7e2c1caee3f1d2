"""Where the monitor's numbers go: a progress bar or lines, `barlow.jsonl`, TensorBoard.

An entry is one log step's numbers by name, as `barlow.jsonl` has them.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from vissl.hooks.tensorboard_hook import SSLTensorboardHook

from vissl_barlow.patient_files import append
from vissl_barlow.run_files import METRICS_FILE


class Output:
    """What the monitor calls; a subclass overrides what concerns it."""

    def advance(self, step: int) -> None:
        """Step `step` is done; called at every step."""

    def write(self, task, entry: dict) -> None:
        """Takes the entry of a log step."""

    def close(self) -> None:
        """The run is over, or has failed."""


def outputs_of(task) -> list[Output]:
    """The outputs of the primary process of a pretraining."""
    outputs: list[Output] = [JsonLines(Path(task.checkpoint_folder, METRICS_FILE))]
    for hook in task.hooks:
        if isinstance(hook, SSLTensorboardHook):
            outputs.append(TensorBoard(hook.tb_writer))
    return [*outputs, screen_of(task)]


def screen_of(task) -> Output:
    """A progress bar on a terminal, and lines on anything else."""
    console = Console(stderr=True)
    return ProgressBar(console, task) if console.is_terminal else Lines(console)


class JsonLines(Output):
    """One line of JSON per entry."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, task, entry: dict) -> None:
        append(self.path, json.dumps(entry) + "\n")


class TensorBoard(Output):
    """One scalar per number, through the writer of VISSL's own hook."""

    def __init__(self, writer) -> None:
        self.writer = writer

    def write(self, task, entry: dict) -> None:
        for name, value in entry.items():
            self.writer.add_scalar(f"Barlow/{name}", value, entry["iteration"])


class ProgressBar(Output):
    """For a terminal: one line of its width, in which the terms make room for the time that is left.

    What this process writes to `sys.stdout` and `sys.stderr` comes above it.
    """

    def __init__(self, console: Console, task) -> None:
        self.progress = Progress(
            TextColumn("{task.completed}/{task.total}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
            TextColumn(
                "{task.fields[terms]}",
                table_column=Column(ratio=5, min_width=5, no_wrap=True, overflow="ellipsis"),
            ),
            TextColumn("eta", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
            # To a file or a pipe goes what would go there without a bar.
            redirect_stdout=sys.stdout.isatty(),
        )
        self.bar = self.progress.add_task(
            "", total=task.max_iteration, completed=task.iteration, terms=""
        )
        self.progress.start()

    def advance(self, step: int) -> None:
        self.progress.update(self.bar, completed=step)

    def write(self, task, entry: dict) -> None:
        self.progress.update(self.bar, terms=_terms(entry))

    def close(self) -> None:
        self.progress.stop()


class Lines(Output):
    """Without a terminal: one line per entry."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def write(self, task, entry: dict) -> None:
        step, images_per_second = entry["iteration"], entry["images_per_second"]
        images_left = task.get_global_batchsize() * (task.max_iteration - step)
        eta = timedelta(seconds=round(images_left / images_per_second))
        self.console.print(
            f"epoch {entry['epoch'] + 1}/{task.num_epochs}  "
            f"step {step}/{task.max_iteration}  {_terms(entry)}  lr {entry['lr']:.4g}  "
            f"{images_per_second:.0f} images/s  eta {eta}",
            highlight=False,
            soft_wrap=True,
        )


def _terms(entry: dict) -> str:
    names = ("loss", "invariance", "redundancy")
    return ", ".join(f"{name} {entry[name]:.4g}" for name in names if name in entry)
