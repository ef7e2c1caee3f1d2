"""What pretraining says while it runs; active for configs with a `BARLOW` section."""

import json
import logging
import re
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from classy_vision.generic.distributed_util import all_reduce_sum, is_primary
from classy_vision.hooks.classy_hook import ClassyHook
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from vissl.hooks.log_hooks import LogLossMetricsCheckpointHook
from vissl.hooks.tensorboard_hook import SSLTensorboardHook

from vissl_barlow.diagnostics import cross_correlation_summary, effective_rank, embedding_std
from vissl_barlow.run_files import METRICS_FILE
from vissl_barlow.vissl_plugin.hooks.base import BarlowHook

PROCESS_STATUS = Path("/proc/self/status")


class BarlowMonitor(BarlowHook):
    """What to watch, at log steps (`config.LOG_FREQUENCY`) and without waiting in between.

    Goes to a progress bar (a line, without a terminal), to JSON lines and, where VISSL's TensorBoard
    hook is on, to TensorBoard: loss terms, diagonal and off-diagonal of C, spread and effective
    rank of embeddings and representations, gradient norm, both learning rates, images per second,
    the share of the time spent waiting for data, memory. A collapse is said at once; a loss that is
    not finite stops the run before such weights reach a checkpoint.

    Of several processes, C, spread and rank are those of the primary's rows; the rest is the whole
    batch's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(stderr=True)
        self.progress: Progress | None = None
        self.said: set[str] = set()
        self.redirected: list[logging.StreamHandler] = []

    def on_start(self, task) -> None:
        self.unreadable = torch.zeros((), dtype=torch.long, device=task.device)
        self.reported_unreadable = 0
        self.non_finite = torch.zeros((), dtype=torch.long, device=task.device)
        self.grad_norm: torch.Tensor | None = None
        for hook in task.hooks:
            if isinstance(hook, LogLossMetricsCheckpointHook):
                # It waits for the device at every step to look for NaN; `check_finite` does not.
                hook.on_forward = ClassyHook._noop
        self.tensorboard = next(
            (hook.tb_writer for hook in task.hooks if isinstance(hook, SSLTensorboardHook)), None
        )
        if not is_primary():
            return
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[terms]}"),
                TextColumn("eta"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar = self.progress.add_task(
                "pretraining", total=task.max_iteration, completed=task.iteration, terms=""
            )
            self.progress.start()
            self._log_above_the_bar()

    def _log_above_the_bar(self) -> None:
        """Sends VISSL's log lines, bound for the same terminal, through the bar's console."""
        if not sys.__stdout__.isatty():
            return  # they go to a file or a pipe: leave them alone
        for handler in logging.root.handlers:
            if getattr(handler, "stream", None) is sys.__stdout__:
                handler.setStream(sys.stdout)  # the bar's own, since it started
                self.redirected.append(handler)

    def on_phase_start(self, task) -> None:
        self._start_window(task.iteration)

    def on_loss_and_meter(self, task) -> None:
        self.non_finite += ~torch.isfinite(task.last_batch.loss.detach()).all()

    def on_backward(self, task) -> None:
        if self._logs_now(task):
            gradients = [p.grad for p in task.base_model.parameters() if p.grad is not None]
            self.grad_norm = torch.nn.utils.get_total_norm(gradients)
            if task.amp_grad_scaler is not None:
                self.grad_norm = self.grad_norm / task.amp_grad_scaler.get_scale()

    def on_update(self, task) -> None:
        if not task.train:
            return
        valid = task.last_batch.sample["data_valid"]
        valid = valid[0] if isinstance(valid, list) else valid  # VISSL 0.1.6's own step
        self.unreadable += (valid != 1).sum()
        self.data_wait += getattr(task.last_batch, "data_wait", 0.0)
        if self.progress is not None:
            self.progress.update(self.bar, completed=_iteration(task))
        if self._logs_now(task):
            self.check_finite(task)
            if is_primary():
                self._log(task)
            self._start_window(_iteration(task))

    def on_step(self, task) -> None:
        frequency = task.config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY
        if task.train and frequency > 0 and task.iteration % frequency == 0:
            self.check_finite(task)  # before VISSL's hook, which comes later, saves

    def on_phase_end(self, task) -> None:
        if not task.train:
            return
        self.check_finite(task)
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
        if self.progress is not None:
            self.progress.stop()
        for handler in self.redirected:
            handler.setStream(sys.__stdout__)

    def _logs_now(self, task) -> bool:
        iteration = _iteration(task)
        every = task.config["LOG_FREQUENCY"]
        return task.train and (iteration % every == 0 or iteration in (1, task.max_iteration))

    def _start_window(self, iteration: int) -> None:
        self.window_start, self.window_iteration, self.data_wait = (
            time.perf_counter(),
            iteration,
            0.0,
        )

    def check_finite(self, task) -> None:
        """Raises FloatingPointError if the loss was not finite since the last time."""
        steps = max(_iteration(task) - self.window_iteration, 1)
        non_finite = int(self.non_finite)
        self.non_finite.zero_()
        # Loss scaling overflows now and then by design, and skips those steps.
        if non_finite == 0 or (task.amp_grad_scaler is not None and non_finite < steps):
            return
        raise FloatingPointError(
            f"the loss was not finite in {non_finite} of the last {steps} steps, up to step "
            f"{_iteration(task)}; the checkpoints saved so far are good. Likely causes: a learning "
            "rate too high (config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.base_value), "
            "float16 overflow (config.BARLOW.AMP_DTYPE=bfloat16), or NaN in the images"
        )

    def _log(self, task) -> None:
        iteration = _iteration(task)
        seconds = time.perf_counter() - self.window_start
        per_step = seconds / max(iteration - self.window_iteration, 1)
        lr = task.optimizer.options_view.lr
        lr = max(lr) if isinstance(lr, list) else lr
        entry = {"iteration": iteration, "epoch": task.train_phase_idx, "lr": lr}
        bias_lr_scale = getattr(task.optimizer.options_view, "bias_lr_scale", None)
        if bias_lr_scale is not None:
            entry["lr_bias"] = lr * bias_lr_scale
        entry |= {name: float(value) for name, value in self._measured(task).items()}
        entry |= {
            "images_per_second": task.get_global_batchsize() / per_step,
            "data_wait_share": min(self.data_wait / seconds, 1.0),
            "memory_gib": _peak_memory(task.device) / 2**30,
            "unreadable_images": int(self.unreadable),
        }
        try:
            # Opened for each line: what was logged survives a kill, what was not a full disk.
            with Path(task.checkpoint_folder, METRICS_FILE).open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            logging.error("metrics not written (%s): training goes on", error)
        if self.tensorboard is not None:
            for name, value in entry.items():
                self.tensorboard.add_scalar(f"Barlow/{name}", value, iteration)
        self._say_collapse(entry, task.config.BARLOW)
        terms = ", ".join(
            f"{name} {entry[name]:.4g}"
            for name in ("loss", "invariance", "redundancy")
            if name in entry
        )
        if self.progress is not None:
            self.progress.update(self.bar, terms=terms)
            return
        eta = timedelta(seconds=round(per_step * (task.max_iteration - iteration)))
        self.console.print(
            f"epoch {task.train_phase_idx + 1}/{task.num_epochs}  "
            f"step {iteration}/{task.max_iteration}  {terms}  lr {lr:.4g}  "
            f"{entry['images_per_second']:.0f} images/s  eta {eta}",
            highlight=False,
            soft_wrap=True,
        )

    def _measured(self, task) -> dict[str, torch.Tensor]:
        terms = getattr(task.base_loss, "terms", None)
        measured = {"loss": task.last_batch.loss} if terms is None else terms._asdict()
        if self.grad_norm is not None:
            measured["grad_norm"] = self.grad_norm
        z_a, z_b = (z.detach().float() for z in task.last_batch.model_output[:2])
        correlation_eps = getattr(task.base_loss, "correlation_eps", None)
        eps = {} if correlation_eps is None else {"eps": correlation_eps}
        summary = cross_correlation_summary(z_a, z_b, **eps)
        std = embedding_std(z_b)
        measured |= {
            "diagonal_mean": summary.mean_diagonal,
            "off_diagonal_rms": summary.off_diagonal_rms,
            "embedding_std_min": std.min,
            "embedding_std_mean": std.mean,
        }
        ranked = {
            "embedding": z_b,
            "representation": getattr(task.base_model, "representations", None),
        }
        for name, z in ranked.items():
            if z is not None:
                # An eigenvalue problem of as many rows, at each log step.
                z = z[: task.config.BARLOW.RANKED_IMAGES].float()
                # Centred, as in equation 2: the mean alone would pass for a direction.
                measured[f"effective_rank_{name}"] = effective_rank(z - z.mean(0))
        return measured

    def _say_collapse(self, entry: dict, settings) -> None:
        # An untrained network is far above both limits.
        if entry["embedding_std_mean"] < settings.COLLAPSED_STD:
            problem = "the embeddings are constant"
        elif entry["effective_rank_embedding"] < settings.COLLAPSED_RANK:
            problem = "the embeddings lie on a line"
        else:
            return
        if problem not in self.said:
            self.said.add(problem)
            logging.warning(
                "collapse at step %d: %s (spread %.1e, effective rank %.1f). Likely causes: a "
                "redundancy weight near 0 (config.LOSS.*.lambda_), a batch of nearly equal images, "
                "or a learning rate that has thrown the weights away (the loss jumped before)",
                entry["iteration"],
                problem,
                entry["embedding_std_mean"],
                entry["effective_rank_embedding"],
            )


def _iteration(task) -> int:
    """Number of the step under way, from 1: VISSL counts it after the hooks of the update."""
    return task.iteration + 1


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if PROCESS_STATUS.exists():
        peak = re.search(r"VmHWM:\s+(\d+) kB", PROCESS_STATUS.read_text())
        if peak:
            return int(peak[1]) * 1024
    # Other systems than Linux; there, the peak of the process that started this one counts as well.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
