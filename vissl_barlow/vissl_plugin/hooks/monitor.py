"""What a run says while it goes on; active for configs with a `BARLOW` section."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from classy_vision.generic.distributed_util import all_reduce_sum, is_primary

import vissl_barlow.vissl_plugin.hooks.measure as measure
from vissl_barlow.vissl_plugin.hooks.base import BarlowHook, current_step, is_log_step
from vissl_barlow.vissl_plugin.hooks.collapse import CollapseWarning
from vissl_barlow.vissl_plugin.hooks.logs import tolerate_failed_logs
from vissl_barlow.vissl_plugin.hooks.outputs import Output, outputs_of, screen_of
from vissl_barlow.vissl_plugin.hooks.summary import summary_of


class BarlowProgress(BarlowHook):
    """Says what a run is, where it is, and after each test how good.

    Where it is, at log steps (`config.LOG_FREQUENCY`): on a bar, or by lines without a terminal.
    """

    def on_start(self, task) -> None:
        if is_primary():
            logging.info(summary_of(task))
        self.outputs: list[Output] = self._outputs(task) if is_primary() else []

    def _outputs(self, task) -> list[Output]:
        return [screen_of(task)]

    def on_phase_start(self, task) -> None:
        self.window = measure.Window(task.iteration)

    def on_update(self, task) -> None:
        if not task.train:
            return
        for output in self.outputs:
            with tolerate_failed_logs():
                output.advance(current_step(task))
        if is_log_step(task):
            if is_primary():
                self._log(task)
            self.window = measure.Window(current_step(task))

    def _log(self, task) -> None:
        entry = self._entry(task)
        for output in self.outputs:
            with tolerate_failed_logs():
                output.write(task, entry)

    def _entry(self, task) -> dict:
        step = current_step(task)
        return {
            "iteration": step,
            "epoch": task.train_phase_idx,
            **measure.learning_rates(task),
            "loss": float(task.last_batch.loss),
            **self.window.throughput(step, task.get_global_batchsize()),
        }

    def on_phase_end(self, task) -> None:
        if is_primary() and not task.train:
            numbers = ", ".join(
                f"{name} {value:.2f}" for meter in task.meters for name, value in _flat(meter.value)
            )
            logging.info(
                "epoch %d/%d  test  %s", task.train_phase_idx + 1, task.num_epochs, numbers
            )

    def on_end(self, task) -> None:
        self._close()

    def on_exception(self, task) -> None:
        self._close()

    def _close(self) -> None:
        for output in self.outputs:
            with tolerate_failed_logs():
                output.close()


class BarlowMonitor(BarlowProgress):
    """What to watch in a pretraining, at log steps and without waiting in between.

    Goes to the screen, to JSON lines and, where VISSL's TensorBoard hook is on, to TensorBoard: loss
    terms, diagonal and off-diagonal of C, spread and effective rank of embeddings and
    representations, gradient norm, both learning rates, images per second, the share of the time spent
    waiting for data, memory, unreadable images. A collapse is said at once.

    Of several processes, the loss, the gradient norm and the images per second are those of all; C,
    spread, rank, waiting, memory and the logged count of unreadable images the primary's own.
    """

    def on_start(self, task) -> None:
        self.unreadable = torch.zeros((), dtype=torch.long, device=task.device)
        self.reported_unreadable = 0
        self.grad_norm: torch.Tensor | None = None
        self.collapse = CollapseWarning(task.config.BARLOW)
        super().on_start(task)

    def _outputs(self, task) -> list[Output]:
        return outputs_of(task)

    def on_backward(self, task) -> None:
        if is_log_step(task):
            self.grad_norm = measure.gradient_norm(task)

    def on_update(self, task) -> None:
        if task.train:
            valid = task.last_batch.sample["data_valid"]
            valid = valid[0] if isinstance(valid, list) else valid  # VISSL 0.1.6's own step
            self.unreadable += (valid != 1).sum()
            self.window.data_wait += getattr(task.last_batch, "data_wait", 0.0)
        super().on_update(task)

    def _entry(self, task) -> dict:
        step = current_step(task)
        throughput = self.window.throughput(step, task.get_global_batchsize())
        measured = measure.loss_terms(task)
        if self.grad_norm is not None:
            measured["grad_norm"] = self.grad_norm
        measured |= measure.embeddings(task)
        entry = {
            "iteration": step,
            "epoch": task.train_phase_idx,
            **measure.learning_rates(task),
            **{name: float(value) for name, value in measured.items()},
            **throughput,
            "memory_gib": measure.peak_memory(task.device) / 2**30,
            "unreadable_images": int(self.unreadable),
        }
        self.collapse.check(entry)
        return entry

    def on_phase_end(self, task) -> None:
        super().on_phase_end(task)
        if not task.train:
            return
        unreadable = int(all_reduce_sum(self.unreadable.clone()))
        if is_primary() and unreadable > self.reported_unreadable:
            self.reported_unreadable = unreadable
            logging.warning(
                "%d unreadable images so far were replaced by their neighbours "
                "(epoch %d); the loaders' warnings name them",
                unreadable,
                task.train_phase_idx + 1,
            )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a meter of VISSL's by name, such as top_1; by layer where there are several."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            only = name and len(value) == 1
            yield from _flat(inner, name if only else f"{name} {key}".strip())
    else:
        yield name, float(value)
