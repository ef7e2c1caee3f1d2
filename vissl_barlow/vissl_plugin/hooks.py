"""Hooks of VISSL's trainer: what pretraining says while it runs, and what it learned when it ends.

They are active for configs with a `BARLOW` section; its keys are in docs/pretraining.md.
"""

import contextlib
import copy
import json
import logging
import random
import re
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import vissl.hooks
from classy_vision.generic.distributed_util import all_reduce_sum, is_primary
from classy_vision.hooks.classy_hook import ClassyHook
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from vissl.data import GenericSSLDataset, build_dataset
from vissl.hooks.log_hooks import LogLossMetricsCheckpointHook
from vissl.hooks.tensorboard_hook import SSLTensorboardHook

from vissl_barlow.atomic_files import write_text_atomically
from vissl_barlow.diagnostics import cross_correlation_summary, effective_rank, embedding_std
from vissl_barlow.figures import draw_pretraining
from vissl_barlow.probe import probe_accuracy
from vissl_barlow.run_files import FIGURE_FILE, METRICS_FILE, PROBE_FILE, read_history
from vissl_barlow.vissl_plugin.byol import BarlowTargetHook
from vissl_barlow.vissl_plugin.loss import BarlowLoss
from vissl_barlow.vissl_plugin.running import BarlowStop

PROCESS_STATUS = Path("/proc/self/status")
CORRELATION_FILE = "barlow_correlation_before.npy"
# Rows that enter the effective rank: an eigenvalue problem of that size at each log step.
RANKED_IMAGES = 512
# Below these the embeddings carry nothing: an untrained network is far above both.
COLLAPSED_STD = 1e-4
COLLAPSED_RANK = 1.5
# Images whose two views give the cross-correlation matrices of the figure.
CORRELATION_IMAGES = 1024


def install() -> None:
    """Adds the hooks to those VISSL's `default_hook_generator` makes."""
    add_loss_hooks = vissl.hooks.add_loss_hooks

    def add_loss_and_barlow_hooks(hooks, loss_cfg, cfg):
        hooks = add_loss_hooks(hooks, loss_cfg, cfg)
        if "BARLOW" in cfg and cfg.MODEL.BASE_MODEL_NAME.startswith("barlow_"):
            if cfg.MODEL.BASE_MODEL_NAME == "barlow_byol_model":
                hooks.append(BarlowTargetHook(cfg.MODEL.TARGET_MOMENTUM))
            monitor = BarlowMonitor()
            hooks.append(monitor)
            if cfg.TRAINER.TASK_NAME == "barlow_task":  # the one that resumes within an epoch
                hooks.append(BarlowStop(monitor.check_finite))
            if cfg.BARLOW.PROBE.KIND:
                hooks.append(BarlowProbe(cfg.BARLOW.PROBE.KIND, cfg.BARLOW.PROBE.EVERY_EPOCHS))
        return hooks

    vissl.hooks.add_loss_hooks = add_loss_and_barlow_hooks


class BarlowMonitor(ClassyHook):
    """What to watch, at log steps (`config.LOG_FREQUENCY`) and without waiting in between.

    Goes to a progress bar (a line, without a terminal), to JSON lines and, where VISSL's TensorBoard
    hook is on, to TensorBoard: loss terms, diagonal and off-diagonal of C, spread and effective
    rank of embeddings and representations, gradient norm, both learning rates, images per second,
    the share of the time spent waiting for data, memory. A collapse is said at once; a loss that is
    not finite stops the run before such weights reach a checkpoint.

    Of several processes, C, spread and rank are those of the primary's rows; the rest is the whole
    batch's.
    """

    on_forward = ClassyHook._noop

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
        self._say_collapse(entry)
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
        # Of other losses `eps` is another thing than what equation 2 adds to a variance.
        has_eps = isinstance(task.base_loss, BarlowLoss)
        eps = {"eps": task.base_loss.options["eps"]} if has_eps else {}
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
                z = z[:RANKED_IMAGES].float()
                # Centred, as in equation 2: the mean alone would pass for a direction.
                measured[f"effective_rank_{name}"] = effective_rank(z - z.mean(0))
        return measured

    def _say_collapse(self, entry: dict) -> None:
        if entry["embedding_std_mean"] < COLLAPSED_STD:
            problem = "the embeddings are constant"
        elif entry["effective_rank_embedding"] < COLLAPSED_RANK:
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


class BarlowProbe(ClassyHook):
    """Probes the frozen trunk against its untrained self and the raw pixels, and draws Figure 1.

    Config (`config.BARLOW.PROBE`): `KIND` ("linear", "knn" or empty for none) and `EVERY_EPOCHS` (0:
    at the end only). The labelled images are DATA.TRAIN's and DATA.TEST's, both under DATA.TEST's
    transforms; only the primary process probes.
    """

    on_phase_start = ClassyHook._noop
    on_forward = ClassyHook._noop
    on_loss_and_meter = ClassyHook._noop
    on_backward = ClassyHook._noop
    on_update = ClassyHook._noop
    on_step = ClassyHook._noop

    def __init__(self, kind: str, every_epochs: int) -> None:
        super().__init__()
        self.kind, self.every_epochs = kind, every_epochs

    def on_start(self, task) -> None:
        if not is_primary():
            return
        self.folder = Path(task.checkpoint_folder)
        self.sets = [self._labelled_images(task.config, split) for split in ("TRAIN", "TEST")]
        # A resumed run no longer has the untrained trunk: it finds the figures of its first start.
        if not (self.folder / PROBE_FILE).exists():
            pixels = [images.flatten(1).numpy() for images, _ in self.sets]
            accuracies = {"pixels": self._accuracy(*pixels)}
            if task.iteration == 0:
                # First: the other file says that both are there.
                np.save(self.folder / CORRELATION_FILE, self._correlation(task))
                accuracies["untrained trunk"] = self._probe_trunk(task)
            else:
                logging.warning(
                    "resumed at step %d without %s: the untrained trunk is gone, and not probed",
                    task.iteration,
                    self.folder / PROBE_FILE,
                )
            self._write(accuracies)

    def on_phase_end(self, task) -> None:
        epoch = task.train_phase_idx + 1
        last = epoch == task.num_train_phases
        if not is_primary() or not task.train or last:
            return
        if self.every_epochs and epoch % self.every_epochs == 0:
            accuracy = self._probe_trunk(task)
            logging.info("epoch %d: %s probe %.1f%%", epoch, self.kind, 100 * accuracy)
            self._write({f"epoch {epoch}": accuracy})

    def on_end(self, task) -> None:
        if not is_primary():
            return
        results = self._write({"pretrained trunk": self._probe_trunk(task)})
        table = Table(title=f"{self.kind} probe on frozen features, test accuracy")
        table.add_column("features")
        table.add_column("accuracy", justify="right")
        names = ("untrained trunk", "pixels", "pretrained trunk")
        shown = {name: f"{100 * results[name]:.1f}" for name in names if name in results}
        for name, accuracy in shown.items():
            table.add_row(name, f"{accuracy} %")
        figure = self.folder / FIGURE_FILE
        history = read_history(self.folder)
        before = self.folder / CORRELATION_FILE
        draw_pretraining(
            figure,
            history,
            task.base_loss.options.get("lambda_", 1.0),
            np.load(before) if before.exists() else None,
            self._correlation(task),
            f"{self.kind} probe after {task.num_epochs} epochs: "
            + ", ".join(f"{name} {accuracy}%" for name, accuracy in shown.items()),
        )
        console = Console()
        console.print(table)
        console.print(f"picture: {figure}", highlight=False, soft_wrap=True)

    def _write(self, accuracies: dict[str, float]) -> dict[str, float]:
        path = self.folder / PROBE_FILE
        results = json.loads(path.read_text()) if path.exists() else {"probe": self.kind}
        results.update(accuracies)
        write_text_atomically(path, json.dumps(results, indent=2) + "\n")
        return results

    def _labelled_images(self, config, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        dataset = _dataset(config, split, config.DATA.TEST.TRANSFORMS)
        items = [dataset[index] for index in range(len(dataset))]
        images = torch.stack([item["data"][0] for item in items])
        return images, torch.tensor([int(item["label"][0]) for item in items])

    def _probe_trunk(self, task) -> float:
        return self._accuracy(*(self._representations(task, images) for images, _ in self.sets))

    def _accuracy(self, train_features, test_features) -> float:
        labels = [labels.numpy() for _, labels in self.sets]
        return probe_accuracy(self.kind, train_features, labels[0], test_features, labels[1])

    @torch.no_grad()
    def _representations(self, task, images: torch.Tensor):
        with _evaluating(task.base_model) as model:
            batches = images.split(task.config.DATA.TEST.BATCHSIZE_PER_REPLICA)
            return torch.cat([model.trunk(x.to(task.device))[0].cpu() for x in batches]).numpy()

    @torch.no_grad()
    def _correlation(self, task) -> np.ndarray:
        """C of equation 2 between the embeddings of two views of the first training images."""
        dataset = task.datasets["train"]
        with _evaluating(task.base_model) as model, _seeded():
            pairs = [dataset[i]["data"] for i in range(min(CORRELATION_IMAGES, len(dataset)))]
            z_a, z_b = (
                torch.cat([model(x.to(task.device)[None])[0].cpu() for x in view.split(256)])
                for view in (torch.stack(images) for images in zip(*pairs))
            )
        dimensions = z_a.shape[1]
        with np.errstate(invalid="ignore"):  # a constant dimension correlates with nothing
            correlation = np.corrcoef(z_a.T.numpy(), z_b.T.numpy())
        return np.nan_to_num(correlation[:dimensions, dimensions:])


def _dataset(config, split: str, transforms: list) -> GenericSSLDataset:
    """The labelled images of `split` under other transforms than training's."""
    config = copy.deepcopy(config)
    config.DATA[split].TRANSFORMS = transforms
    config.DATA[split].LABEL_SOURCES = config.DATA.TEST.LABEL_SOURCES
    config.DATA[split].LABEL_TYPE = "standard"
    return build_dataset(config, split)


@contextlib.contextmanager
def _evaluating(model):
    """`model` in eval mode; every module's own mode returns afterwards (a frozen trunk's too)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _seeded():
    """The same random views each time, and no trace left in training's own random state."""
    state = random.getstate()
    random.seed(0)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
