"""Where the monitor's numbers go: a progress bar or lines, `barlow.jsonl`, TensorBoard.

An entry is one log step's numbers by name, as `barlow.jsonl` has them.
"""

import json
import logging
import sys
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
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
    """The outputs of the primary process."""
    console = Console(stderr=True)
    outputs: list[Output] = [JsonLines(Path(task.checkpoint_folder, METRICS_FILE))]
    for hook in task.hooks:
        if isinstance(hook, SSLTensorboardHook):
            outputs.append(TensorBoard(hook.tb_writer))
    return [*outputs, ProgressBar(console, task) if console.is_terminal else Lines(console)]


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
    """For a terminal."""

    def __init__(self, console: Console, task) -> None:
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[terms]}"),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
        )
        self.bar = self.progress.add_task(
            "pretraining", total=task.max_iteration, completed=task.iteration, terms=""
        )
        self.progress.start()
        self.redirected = self._send_log_lines_above_the_bar()

    def _send_log_lines_above_the_bar(self) -> list[logging.StreamHandler]:
        """Sends VISSL's log lines, bound for the same terminal, through the bar's console."""
        stdout = sys.__stdout__
        if stdout is None or not stdout.isatty():
            return []  # they go to a file or a pipe, which gets them as they are
        handlers = [
            handler
            for handler in logging.root.handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is stdout
        ]
        for handler in handlers:
            handler.setStream(sys.stdout)  # rich's, in place since the bar started
        return handlers

    def advance(self, step: int) -> None:
        self.progress.update(self.bar, completed=step)

    def write(self, task, entry: dict) -> None:
        self.progress.update(self.bar, terms=_terms(entry))

    def close(self) -> None:
        self.progress.stop()
        for handler in self.redirected:
            handler.setStream(sys.__stdout__)


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
