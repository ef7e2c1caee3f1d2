"""What the frozen trunk has learned, against its untrained self and the pixels; and Figure 1."""

import contextlib
import copy
import io
import json
import logging
import random
from pathlib import Path

import numpy as np
import torch
from classy_vision.generic.distributed_util import is_primary
from rich.console import Console
from rich.table import Table
from vissl.data import GenericSSLDataset, build_dataset

from vissl_barlow.patient_files import read_bytes, read_json, replace, set_aside
from vissl_barlow.probe import probe_accuracy
from vissl_barlow.run_files import FIGURE_FILE, PROBE_FILE, read_history
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.hooks.base import BarlowHook
from vissl_barlow.vissl_plugin.hooks.logs import tolerate_failed_logs

CORRELATION_FILE = "barlow_correlation_before.npy"


class BarlowProbe(BarlowHook):
    """Probes the frozen trunk against its untrained self and the raw pixels, and draws Figure 1.

    Config: `config.BARLOW.PROBE`. The labelled images are DATA.TRAIN's and DATA.TEST's, both under
    DATA.TEST's transforms; only the primary process probes.
    """

    def __init__(self, kind: str, every_epochs: int, neighbours: int) -> None:
        super().__init__()
        self.kind, self.every_epochs, self.neighbours = kind, every_epochs, neighbours

    def on_start(self, task) -> None:
        if not is_primary():
            return
        self.folder = Path(task.checkpoint_folder)
        self.sets = [self._labelled_images(task.config, split) for split in ("TRAIN", "TEST")]
        if task.checkpoint is None:
            # The figures there are of the run that this one replaces, or of a start that failed.
            earlier = self.folder / PROBE_FILE
            if earlier.is_file():
                earlier.replace(earlier.with_suffix(".replaced.json"))
        # A resumed run no longer has the untrained trunk: it finds the figures of its first start.
        if not self._results():
            pixels = [images.flatten(1).numpy() for images, _ in self.sets]
            accuracies = {"pixels": self._accuracy(*pixels)}
            if task.iteration == 0:
                # First: the other file says that both are there.
                content = io.BytesIO()
                np.save(content, self._correlation(task))
                replace(self.folder / CORRELATION_FILE, content.getvalue())
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
            + ", ".join(f"{name} {accuracy}%" for name, accuracy in shown.items()),
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
        replace(self.folder / PROBE_FILE, json.dumps(results, indent=2) + "\n")
        return results

    def _labelled_images(self, config, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        dataset = _dataset(config, split, config.DATA.TEST.TRANSFORMS)
        items = [dataset[index] for index in range(len(dataset))]
        sizes = {tuple(item["data"][0].shape) for item in items}
        if len(sizes) > 1:
            raise ConfigError(
                "DATA.TEST.TRANSFORMS",
                config.DATA.TEST.TRANSFORMS,
                f"the probe's images ({split}) have {len(sizes)} sizes under these; add Resize and "
                "CenterCrop, or set config.BARLOW.PROBE.KIND=none",
            )
        images = torch.stack([item["data"][0] for item in items])
        return images, torch.tensor([int(item["label"][0]) for item in items])

    def _probe_trunk(self, task) -> float:
        return self._accuracy(*(self._representations(task, images) for images, _ in self.sets))

    def _accuracy(self, train_features, test_features) -> float:
        labels = [labels.numpy() for _, labels in self.sets]
        train, test = (train_features, labels[0]), (test_features, labels[1])
        return probe_accuracy(self.kind, *train, *test, neighbours=self.neighbours)

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
            images_drawn = min(task.config.BARLOW.PROBE.CORRELATION_IMAGES, len(dataset))
            pairs = [dataset[i]["data"] for i in range(images_drawn)]
            z_a, z_b = (
                torch.cat([model(x.to(task.device)[None])[0].cpu() for x in view.split(256)])
                for view in (torch.stack(images) for images in zip(*pairs))
            )
        dimensions = z_a.shape[1]
        with np.errstate(invalid="ignore"):  # a constant dimension correlates with nothing
            correlation = np.corrcoef(z_a.T.numpy(), z_b.T.numpy())
        return np.nan_to_num(correlation[:dimensions, dimensions:])


def _are_results(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(accuracy, str if name == "probe" else int | float)
        for name, accuracy in value.items()
    )


def _dataset(config, split: str, transforms: list) -> GenericSSLDataset:
    """The labelled images of `split` under other transforms than training's."""
    config = copy.deepcopy(config)
    # The plugin's sources give arrays, most transforms of torchvision's want pictures.
    own = config.DATA[split].DATA_SOURCES[0].startswith("barlow_")
    config.DATA[split].TRANSFORMS = [*([{"name": "ToPILImage"}] if own else []), *transforms]
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
    """Of sources whose views are drawn from Python's or torch's global state (VISSL's own): the same
    views each time, and the state afterwards what it was."""
    state = random.getstate()
    random.seed(0)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
