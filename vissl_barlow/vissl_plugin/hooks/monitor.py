"""What pretraining says while it runs; active for configs with a `BARLOW` section."""

import logging

import torch
from classy_vision.generic.distributed_util import all_reduce_sum, is_primary

import vissl_barlow.vissl_plugin.hooks.measure as measure
from vissl_barlow.vissl_plugin.hooks.base import BarlowHook, current_step, is_log_step
from vissl_barlow.vissl_plugin.hooks.collapse import CollapseWarning
from vissl_barlow.vissl_plugin.hooks.logs import tolerate_failed_logs
from vissl_barlow.vissl_plugin.hooks.outputs import Output, outputs_of


class BarlowMonitor(BarlowHook):
    """What to watch, at log steps (`config.LOG_FREQUENCY`) and without waiting in between.

    Goes to a progress bar (a line, without a terminal), to JSON lines and, where VISSL's TensorBoard
    hook is on, to TensorBoard: loss terms, diagonal and off-diagonal of C, spread and effective
    rank of embeddings and representations, gradient norm, both learning rates, images per second,
    the share of the time spent waiting for data, memory, unreadable images. A collapse is said at
    once.

    Of several processes, the loss, the gradient norm and the images per second are those of all; C,
    spread, rank, waiting, memory and the logged count of unreadable images the primary's own.
    """

    def on_start(self, task) -> None:
        self.unreadable = torch.zeros((), dtype=torch.long, device=task.device)
        self.reported_unreadable = 0
        self.grad_norm: torch.Tensor | None = None
        self.collapse = CollapseWarning(task.config.BARLOW)
        self.outputs: list[Output] = outputs_of(task) if is_primary() else []

    def on_phase_start(self, task) -> None:
        self.window = measure.Window(task.iteration)

    def on_backward(self, task) -> None:
        if is_log_step(task):
            self.grad_norm = measure.gradient_norm(task)

    def on_update(self, task) -> None:
        if not task.train:
            return
        valid = task.last_batch.sample["data_valid"]
        valid = valid[0] if isinstance(valid, list) else valid  # VISSL 0.1.6's own step
        self.unreadable += (valid != 1).sum()
        self.window.data_wait += getattr(task.last_batch, "data_wait", 0.0)
        for output in self.outputs:
            with tolerate_failed_logs():
                output.advance(current_step(task))
        if is_log_step(task):
            if is_primary():
                self._log(task)
            self.window = measure.Window(current_step(task))

    def _log(self, task) -> None:
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
        for output in self.outputs:
            with tolerate_failed_logs():
                output.write(task, entry)

    def on_phase_end(self, task) -> None:
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

    def on_end(self, task) -> None:
        self._close()

    def on_exception(self, task) -> None:
        self._close()

    def _close(self) -> None:
        for output in self.outputs:
            with tolerate_failed_logs():
                output.close()
