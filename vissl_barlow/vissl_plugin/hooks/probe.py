"""What the frozen trunk has learned, against its untrained self and the pixels; and Figure 1."""

import contextlib
import io
import json
import logging
import random
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from classy_vision.generic.distributed_util import is_primary
from rich.console import Console
from rich.table import Table
from torch.nn.functional import adaptive_avg_pool2d

from vissl_barlow.atomic_files import atomic_file
from vissl_barlow.patient_files import read_bytes, read_json, replace, set_aside
from vissl_barlow.probe import probe_accuracy
from vissl_barlow.run_files import FIGURE_FILE, PROBE_FILE, UNTRAINED, read_history
from vissl_barlow.views.normalize import normalize
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.hooks.base import BarlowHook
from vissl_barlow.vissl_plugin.hooks.labelled_images import LabelledImages
from vissl_barlow.vissl_plugin.hooks.logs import tolerate_failed_logs

CORRELATION_FILE = "barlow_correlation_before.npy"
# The untrained trunk's, until a probe is fitted to them.
UNTRAINED_FILE = "barlow_untrained_features.npz"
# Of larger images, what "pixels" are: 3072 numbers an image, where one of 224 pixels has 150,528.
PIXELS = 32
_PAIRS_AT_ONCE = 256

# Of the training images, (N, D), and their labels, (N,); then those of the images tested on.
Features = tuple[np.ndarray, ...]


class BarlowProbe(BarlowHook):
    """Probes the frozen trunk against its untrained self and the raw pixels, and draws Figure 1.

    Config: `config.BARLOW.PROBE`. The labelled images are DATA.TRAIN's and DATA.TEST's, both under
    DATA.TEST's transforms; only the primary process probes. Images are in memory a batch at a time, and
    features alone all at once. Before the first step there is but a passage of the untrained trunk:
    its features are kept in a file, and the classifiers, most of the work, are fitted to them and to
    the pixels when the first epoch ends.

    Args:
        kind: the probe of the untrained trunk and of the trained one, "linear" or "knn".
        every_epochs: how often there is one in between; 0: never.
        neighbours: how many vote in "knn".
        while_training: the probe in between, or "same".
        first: what to call the trunk before its first step, which with a file's weights is no untrained
            one.
    """

    def __init__(
        self,
        kind: str,
        every_epochs: int,
        neighbours: int,
        while_training: str = "same",
        first: str = UNTRAINED,
    ) -> None:
        super().__init__()
        self.first = first
        self.kind, self.every_epochs, self.neighbours = kind, every_epochs, neighbours
        self.while_training = kind if while_training == "same" else while_training
        self.baselines_due = False

    def on_start(self, task) -> None:
        if not is_primary():
            return
        self.folder = Path(task.checkpoint_folder)
        self.sets = [self._labelled_images(task.config, split) for split in ("TRAIN", "TEST")]
        if task.checkpoint is None:
            # What is there is of the run that this one replaces, or of a start that failed.
            earlier = self.folder / PROBE_FILE
            if earlier.is_file():
                earlier.replace(earlier.with_suffix(".replaced.json"))
            self._forget_untrained()
        self.baselines_due = not self._results()
        # A resumed run no longer has the untrained trunk: it finds what its first start left.
        if self.baselines_due and not (self.folder / UNTRAINED_FILE).is_file():
            if task.iteration == 0:
                self._pass_untrained(task)
            else:
                logging.warning(
                    "resumed at step %d without %s: the untrained trunk is gone, and not probed",
                    task.iteration,
                    self.folder / PROBE_FILE,
                )

    def on_phase_end(self, task) -> None:
        epoch = task.train_phase_idx + 1
        last = epoch == task.num_train_phases
        if not is_primary() or not task.train:
            return
        self._probe_baselines()
        if last:
            return
        if self.every_epochs and epoch % self.every_epochs == 0:
            kind = self.while_training
            accuracy = self._accuracy(kind, self._trunk_features(task))
            logging.info("epoch %d: %s probe %.1f%%", epoch, kind, 100 * accuracy)
            self._write({self._named(f"epoch {epoch}", kind): accuracy})

    def on_end(self, task) -> None:
        if not is_primary():
            return
        self._probe_baselines()
        accuracy = self._accuracy(self.kind, self._trunk_features(task))
        results = self._write({"pretrained trunk": accuracy})
        table = Table(title=f"{self.kind} probe on frozen features, test accuracy")
        table.add_column("features")
        table.add_column("accuracy", justify="right")
        names = (self.first, "pixels", "pretrained trunk")
        shown = {name: f"{100 * results[name]:.1f}" for name in names if name in results}
        for name, percent in shown.items():
            table.add_row(name, f"{percent} %")
        with tolerate_failed_logs():
            console = Console()
            console.print(table)
            self._draw(task, shown)
            console.print(f"picture: {self.folder / FIGURE_FILE}", highlight=False, soft_wrap=True)

    def _draw(self, task, shown: dict[str, str]) -> None:
        from vissl_barlow.figures import draw_pretraining  # matplotlib: not before the first step

        picture = io.BytesIO()
        draw_pretraining(
            picture,
            read_history(self.folder),
            task.base_loss.options.get("lambda_", 1.0),
            self._correlation_before(),
            self._correlation(task),
            f"{self.kind} probe after {task.num_epochs} epochs: "
            + ", ".join(f"{name} {percent}%" for name, percent in shown.items()),
        )
        replace(self.folder / FIGURE_FILE, picture.getvalue())

    def _correlation_before(self) -> np.ndarray | None:
        path = self.folder / CORRELATION_FILE
        content = read_bytes(path, bounded=False)  # of D x D numbers
        try:
            return None if content is None else np.load(io.BytesIO(content))
        except (ValueError, EOFError) as error:
            set_aside(path, error)
            return None

    def _results(self) -> dict:
        """Those in the file; none where there is no file, or a damaged one, which is set aside."""
        return read_json(self.folder / PROBE_FILE, _are_results) or {}

    def _write(self, accuracies: dict[str, float]) -> dict[str, float]:
        results = {"probe": self.kind, **self._results(), **accuracies}
        written = replace(self.folder / PROBE_FILE, json.dumps(results, indent=2) + "\n")
        if written and self.first in results:
            self._forget_untrained()
        return results

    def _labelled_images(self, config, split: str) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        return LabelledImages(config, split)

    def _named(self, features: str, kind: str) -> str:
        return features if kind == self.kind else f"{features}, {kind}"

    def _pass_untrained(self, task) -> None:
        content = io.BytesIO()
        np.save(content, self._correlation(task))
        # First: the features' file says that both are there.
        replace(self.folder / CORRELATION_FILE, content.getvalue())
        untrained = self._trunk_features(task)
        _, labels, *_ = untrained
        if len(np.unique(labels)) < 2:
            raise ConfigError(
                "BARLOW.PROBE.KIND",
                self.kind,
                f"the {len(labels)} labelled images trained on are all of class {labels[0]}, and "
                "two classes are needed; mend their labels, or type config.BARLOW.PROBE.KIND=none",
            )
        self._keep(untrained)

    def _keep(self, features: Features) -> None:
        """The untrained trunk's, in the folder until they are probed; where there is no room for them
        they are probed at once."""
        path = self.folder / UNTRAINED_FILE
        try:
            with atomic_file(path) as file:
                np.savez(file, *features)
        except OSError as error:
            logging.warning(
                "%s not written (%s): the untrained trunk is probed before training, not after the "
                "first epoch",
                path,
                error.strerror or error,
            )
            self._probe_baselines(features)

    def _kept(self) -> Features | None:
        """What `_keep` left; None where there is nothing, or a damaged file, which is set aside."""
        path = self.folder / UNTRAINED_FILE
        if not path.is_file():
            return None
        try:
            with np.load(path) as arrays:
                train, train_labels, test, test_labels = (arrays[f"arr_{n}"] for n in range(4))
            # Of two dimensions, as wide as each other; else this raises ValueError as well.
            (ours, width), (theirs, same) = train.shape, test.shape
            if (len(train_labels), len(test_labels), width) != (ours, theirs, same):
                raise ValueError("it holds something else")
            return train, train_labels, test, test_labels
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            set_aside(path, error)
            return None

    def _forget_untrained(self) -> None:
        path = self.folder / UNTRAINED_FILE
        if path.is_file():
            path.unlink()

    def _probe_baselines(self, untrained: Features | None = None) -> None:
        """Of the pixels, and of the untrained trunk where its features are given or kept."""
        if not self.baselines_due:
            return
        accuracies = {"pixels": self._accuracy(self.kind, self._features(_pixels))}
        untrained = untrained or self._kept()
        if untrained:
            for kind in dict.fromkeys((self.kind, self.while_training)):
                accuracies[self._named(self.first, kind)] = self._accuracy(kind, untrained)
        found = (f"{name} {100 * accuracy:.1f}%" for name, accuracy in accuracies.items())
        logging.info("before training: %s probe: %s", self.kind, "; ".join(found))
        self._write(accuracies)
        self.baselines_due = False

    def _trunk_features(self, task) -> Features:
        with evaluating(task.base_model) as model:
            return self._features(lambda images: model.trunk(images.to(task.device))[0])

    @torch.no_grad()
    def _features(self, embed: Callable[[torch.Tensor], torch.Tensor]) -> Features:
        """What `embed` makes, (N, D), of batches of images, (N, C, H, W)."""
        arrays: list[np.ndarray] = []
        for batches in self.sets:
            features, labels = zip(*((embed(images).cpu(), labels) for images, labels in batches))
            arrays += [torch.cat(features).numpy(), torch.cat(labels).numpy()]
        return tuple(arrays)

    def _accuracy(self, kind: str, features: Features) -> float:
        return probe_accuracy(kind, *features, neighbours=self.neighbours)

    @torch.no_grad()
    def _correlation(self, task) -> np.ndarray:
        """C of equation 2 between the embeddings of two views of the first training images."""
        dataset = task.datasets["train"]
        drawn = range(min(task.config.BARLOW.PROBE.CORRELATION_IMAGES, len(dataset)))
        batches = []
        with evaluating(task.base_model) as model, _seeded():
            for start in drawn[::_PAIRS_AT_ONCE]:
                pairs = [dataset[i]["data"] for i in drawn[start : start + _PAIRS_AT_ONCE]]
                views = (torch.stack(images).to(task.device) for images in zip(*pairs))
                batches.append([model(_normalized(task, view)[None])[0].cpu() for view in views])
        z_a, z_b = (torch.cat(embeddings) for embeddings in zip(*batches))
        dimensions = z_a.shape[1]
        with np.errstate(invalid="ignore"):  # a constant dimension correlates with nothing
            correlation = np.corrcoef(z_a.T.numpy(), z_b.T.numpy())
        return np.nan_to_num(correlation[:dimensions, dimensions:])


def _are_results(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(accuracy, str if name == "probe" else int | float)
        for name, accuracy in value.items()
    )


def _normalized(task, views: torch.Tensor) -> torch.Tensor:
    """Views of bytes as the train step makes them; others are so already."""
    return normalize(views, *task.normalization) if views.dtype == torch.uint8 else views


def _pixels(images: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) to (N, at most C x 32 x 32)."""
    if images.ndim == 4 and max(images.shape[2:]) > PIXELS:
        images = adaptive_avg_pool2d(images, PIXELS)
    return images.flatten(1)


@contextlib.contextmanager
def evaluating(model):
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
    """Of sources whose views are drawn from Python's or torch's global state (VISSL's own): the same
    views each time, and the state afterwards what it was."""
    state = random.getstate()
    random.seed(0)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
