"""Hooks of VISSL's trainer: what pretraining says while it runs, and what it learned when it ends.

They are active for configs with a `BARLOW` section; its keys are documented in README.
"""

import contextlib
import copy
import json
import logging
import random
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

from vissl_barlow.figures import draw_pretraining
from vissl_barlow.probe import probe_accuracy
from vissl_barlow.vissl_plugin.byol import BarlowTargetHook

METRICS_FILE = "barlow.jsonl"
PROBE_FILE = "barlow_probe.json"
FIGURE_FILE = "barlow.png"
CORRELATION_FILE = "barlow_correlation_before.npy"
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
            hooks.append(BarlowMonitor())
            if cfg.BARLOW.PROBE.KIND:
                hooks.append(BarlowProbe(cfg.BARLOW.PROBE.KIND, cfg.BARLOW.PROBE.EVERY_EPOCHS))
        return hooks

    vissl.hooks.add_loss_hooks = add_loss_and_barlow_hooks


class BarlowMonitor(ClassyHook):
    """Loss terms, rates and speed: a progress bar (a line, without a terminal) and JSON lines.

    The device is waited for at log steps only (`config.LOG_FREQUENCY`).
    """

    on_forward = ClassyHook._noop
    on_loss_and_meter = ClassyHook._noop
    on_backward = ClassyHook._noop
    on_step = ClassyHook._noop

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(stderr=True)
        self.progress: Progress | None = None
        self.metrics_file = None
        self.unreadable: torch.Tensor | None = None
        self.reported_unreadable = 0

    def on_start(self, task) -> None:
        self.unreadable = torch.zeros((), dtype=torch.long, device=task.device)
        if not is_primary():
            return
        path = Path(task.checkpoint_folder) / METRICS_FILE
        # Line-buffered: what was logged survives a kill.
        self.metrics_file = path.open("a", buffering=1)
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

    def on_phase_start(self, task) -> None:
        self.window = (time.perf_counter(), task.iteration)

    def on_update(self, task) -> None:
        if not task.train:
            return
        valid = task.last_batch.sample["data_valid"]
        valid = valid[0] if isinstance(valid, list) else valid  # VISSL 0.1.6 leaves it in its list
        self.unreadable += (valid != 1).sum()
        if not is_primary():
            return
        # The trainer counts the iteration after this hook.
        iteration = task.iteration + 1
        if self.progress is not None:
            self.progress.update(self.bar, completed=iteration)
        if iteration % task.config["LOG_FREQUENCY"] == 0 or iteration in (1, task.max_iteration):
            self._log(task, iteration)

    def _log(self, task, iteration: int) -> None:
        loss, invariance, redundancy = torch.stack(list(task.base_loss.terms)).tolist()
        started, first = self.window
        seconds_per_step = (time.perf_counter() - started) / max(iteration - first, 1)
        self.window = (time.perf_counter(), iteration)
        lr = task.optimizer.options_view.lr
        lr = max(lr) if isinstance(lr, list) else lr
        entry = {
            "iteration": iteration,
            "epoch": task.train_phase_idx,
            "loss": loss,
            "invariance": invariance,
            "redundancy": redundancy,
            "lr": lr,
            "lr_bias": lr * getattr(task.optimizer.options_view, "bias_lr_scale", 1.0),
            "images_per_second": task.get_global_batchsize() / seconds_per_step,
            "unreadable_images": int(self.unreadable),
        }
        self.metrics_file.write(json.dumps(entry) + "\n")
        terms = f"loss {loss:.4g} (invariance {invariance:.4g}, redundancy {redundancy:.4g})"
        if self.progress is not None:
            self.progress.update(self.bar, terms=terms)
        else:
            eta = timedelta(seconds=round(seconds_per_step * (task.max_iteration - iteration)))
            self.console.print(
                f"epoch {task.train_phase_idx + 1}/{task.num_epochs}  "
                f"step {iteration}/{task.max_iteration}  {terms}  lr {lr:.4g}  "
                f"{entry['images_per_second']:.0f} images/s  eta {eta}",
                highlight=False,
                soft_wrap=True,
            )

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
        if self.progress is not None:
            self.progress.stop()
        if self.metrics_file is not None:
            self.metrics_file.close()


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
            self._write(
                {"pixels": self._accuracy(*pixels), "untrained trunk": self._probe_trunk(task)}
            )
            np.save(self.folder / CORRELATION_FILE, self._correlation(task))

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
        for name in ("untrained trunk", "pixels", "pretrained trunk"):
            table.add_row(name, f"{100 * results[name]:.1f} %")
        figure = self.folder / FIGURE_FILE
        history = read_history(self.folder)
        draw_pretraining(
            figure,
            history,
            task.base_loss.options.get("lambda_", 1.0),
            np.load(self.folder / CORRELATION_FILE),
            self._correlation(task),
            f"{results['pretrained trunk']:.1%} {self.kind} probe after {task.num_epochs} epochs "
            f"(untrained {results['untrained trunk']:.1%}, pixels {results['pixels']:.1%})",
        )
        console = Console()
        console.print(table)
        console.print(f"picture: {figure}", highlight=False, soft_wrap=True)

    def _write(self, accuracies: dict[str, float]) -> dict[str, float]:
        path = self.folder / PROBE_FILE
        results = json.loads(path.read_text()) if path.exists() else {"probe": self.kind}
        results.update(accuracies)
        path.write_text(json.dumps(results, indent=2) + "\n")
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


def read_history(folder: Path) -> list[dict]:
    """The logged steps of a run, in order; a step repeated after a resume counts once, the last."""
    lines = (folder / METRICS_FILE).read_text().splitlines()
    by_iteration = {entry["iteration"]: entry for entry in map(json.loads, lines)}
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]
