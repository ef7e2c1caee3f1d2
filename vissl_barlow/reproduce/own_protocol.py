"""The paper's evaluations on a folder of one's own images: what follows from the images, the
checkpoint and the machine, as overrides of the benchmarks' configs."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vissl_barlow.checkpoint import TrunkDepth, read_trunk
from vissl_barlow.checkpoint.pretraining import PAPERS_VIEWS, PretrainingViews
from vissl_barlow.messages import listed
from vissl_barlow.own_images import OwnFolder
from vissl_barlow.reproduce.batch import share_of
from vissl_barlow.reproduce.overrides import override
from vissl_barlow.reproduce.transfer import OWN, Row, load_table
from vissl_barlow.resnet import representation_dim

# Shares of the labels, in percent: Table 2's.
LABELS = (1, 10)
# The protocol's own values, below which only the size of the images and their number take one.
PAPERS_BATCH = 256
LINEAR_EPOCHS, FINE_TUNING_EPOCHS = 100, 20
# Table 2 takes a thousand steps; a handful of images would take twenty.
FEWEST_STEPS = 200
FEWEST_FINE_TUNING_EPOCHS = 3  # two milestones
# Steps that an epoch is to have, as far as the images go.
STEPS_PER_EPOCH = 4
# imagenet1k_knn's neighbours, and ImageNet's images per class.
NEIGHBOURS, NEIGHBOURS_OF = 200, 1281
FEWEST_NEIGHBOURS = 5
SVM_FOLDS = 3  # voc07_svm's
# Pixels: the least of a crop, the most that the small stem is for, and the paper's.
SMALLEST_CROP, LARGEST_SMALL_CROP, PAPERS_CROP = 32, 96, 224
_EPOCHS = re.compile(r"\+*config\.OPTIMIZER\.num_epochs=(\d+)")


@dataclass(frozen=True)
class Pretrained:
    """What a checkpoint says: which trunk it holds, and the views that it was pretrained on."""

    layout: TrunkDepth
    views: PretrainingViews


def read_pretrained(path: str, prefix: str = "") -> Pretrained:
    """Reads a checkpoint; arguments and errors as `load_trunk`."""
    trunk = read_trunk(path, prefix)
    return Pretrained(trunk.layout, trunk.views or PAPERS_VIEWS)


@dataclass(frozen=True)
class Evaluation:
    """A row of the table `own`.

    Attributes:
        name: of its folder.
        row: its commands.
        train: name of the list of images that is trained on.
        overrides: what follows from images, checkpoint and machine, and the user's own.
        summary: the same for the console.
    """

    name: str
    row: Row
    train: str
    overrides: list[str]
    summary: str


@dataclass(frozen=True)
class Protocol:
    """Every evaluation of a `folder` that there is to be, from what is known.

    Attributes:
        gpus, cores: GPUs, or 0 to compute on the CPU, and CPU cores.
        labels: shares of the labels, in percent.
        given: the user's overrides.
    """

    folder: OwnFolder
    pretrained: Pretrained
    gpus: int
    cores: int
    labels: Sequence[float] = LABELS
    given: Sequence[str] = ()

    def evaluations(self) -> tuple[list[Evaluation], dict[str, str]]:
        """The evaluations that can be had, and the others' names to why they cannot, and what to do."""
        rows = {row.name: row for row in load_table(OWN).rows}
        possible: list[Evaluation] = []
        left_out: dict[str, str] = {}
        images = len(self.folder.train)
        common = [*self._trunk(), *self._device(), *self._normalization()]
        possible.append(
            self._classifier("linear", rows["linear"], "train", common, images, LINEAR_EPOCHS)
        )
        possible.append(self._knn(rows["knn"], common))
        for percent in self.labels:
            name = f"semi_{percent:g}pct"
            if reason := self._why_not_fine_tuned(percent):
                left_out[name] = reason
                continue
            count = len(self.labelled(percent))
            steps = math.ceil(count / self._batch(count))
            epochs = max(FINE_TUNING_EPOCHS, math.ceil(FEWEST_STEPS / steps))
            names = override("DATA.TRAIN.DATASET_NAMES", [f"own_{percent:g}pct"])
            possible.append(
                self._classifier(
                    name, rows["semi"], _list_of(percent), [*common, names], count, epochs
                )
            )
        if reason := self._why_no_svm():
            left_out["svm"] = reason
        else:
            possible.append(self._svm(rows["svm"], common))
        return possible, left_out

    def lists(self) -> dict[str, np.ndarray]:
        """Places in `folder.train` of the images of each list that is trained on, by its name."""
        everything = {"train": np.arange(len(self.folder.train))}
        shares = (share for share in self.labels if not self._why_not_fine_tuned(share))
        return everything | {_list_of(share): self.labelled(share) for share in shares}

    def labelled(self, percent: float) -> np.ndarray:
        """Places in `folder.train` of a share of each class, at least one image; a smaller share's are
        among a larger one's."""
        labels = self.folder.train_labels
        assert labels is not None
        chosen = []
        for label in range(len(self.folder.classes)):
            own = np.random.default_rng(label).permutation(np.flatnonzero(labels == label))
            chosen.append(own[: max(1, round(len(own) * percent / 100))])
        return np.sort(np.concatenate(chosen))

    def _why_not_fine_tuned(self, percent: float) -> str:
        images, classes = len(self.folder.train), len(self.folder.classes)
        if round(images * percent / 100) < classes:
            enough = math.ceil(100 * classes / images)
            return (
                f"{percent:g}% of {images} training images are {round(images * percent / 100)}, fewer "
                f"than the {classes} classes; --labels {enough} has an image of each"
            )
        epochs = self._given_epochs()
        if epochs is not None and epochs < FEWEST_FINE_TUNING_EPOCHS:
            return (
                f"config.OPTIMIZER.num_epochs={epochs} leaves no room for its two milestones; "
                f"config.OPTIMIZER.num_epochs={FEWEST_FINE_TUNING_EPOCHS} does"
            )
        return ""

    def _why_no_svm(self) -> str:
        wanted = {"training": (self.folder.train_labels, 2), "test": (self.folder.test_labels, 1)}
        few = []
        for split, (labels, least) in wanted.items():
            assert labels is not None
            counts = Counter(labels.tolist())
            names = [name for i, name in enumerate(self.folder.classes) if counts[i] < least]
            if names:
                few.append(f"fewer than {least} {split} images of {listed(names)}")
        remedy = "add images, or move these classes out of the folder, for another --out"
        return f"{' and '.join(few)}; {remedy}" if few else ""

    def _given_epochs(self) -> int | None:
        """Epochs that the user asks for; the last of several, as hydra has it."""
        found = [int(match[1]) for word in self.given if (match := _EPOCHS.fullmatch(word))]
        return found[-1] if found else None

    def _trunk(self) -> list[str]:
        layout = self.pretrained.layout
        return [
            override("MODEL.TRUNK.RESNETS.DEPTH", layout.depth),
            override("MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER", layout.width_multiplier),
            override("MODEL.TRUNK.RESNETS.SMALL_STEM", layout.small_stem),
        ]

    def _normalization(self) -> Iterator[str]:
        """Of the pretraining: the trunk has seen no other numbers."""
        for name, own, papers in (
            ("mean", self.pretrained.views.mean, PAPERS_VIEWS.mean),
            ("std", self.pretrained.views.std, PAPERS_VIEWS.std),
        ):
            if own != papers:  # the last transform, of training and test images of each config
                for split in ("TRAIN", "TEST"):
                    yield override(f"DATA.{split}.TRANSFORMS.3.{name}", list(own))

    def _device(self) -> list[str]:
        """Nothing of it changes a result."""
        if self.gpus:
            return [override("DATA.NUM_DATALOADER_WORKERS", min(self.cores // self.gpus, 8))]
        return [
            override("MACHINE.DEVICE", "cpu"),
            override("DISTRIBUTED.BACKEND", "gloo"),
            override("DATA.PIN_MEMORY", False),
            override("DATA.NUM_DATALOADER_WORKERS", 0),  # the model takes all cores
        ]

    @property
    def size(self) -> int:
        """Pixels of the crops: as in pretraining; where that is not known, as own_images has them."""
        if self.pretrained.views.size:
            return self.pretrained.views.size
        if self.pretrained.layout.small_stem:
            return min(max(self._side, SMALLEST_CROP), LARGEST_SMALL_CROP)
        small = self._side <= LARGEST_SMALL_CROP
        return max(self._side, SMALLEST_CROP) if small else min(self._side // 32 * 32, PAPERS_CROP)

    @property
    def resized(self) -> int:
        """Pixels of the shorter side before the crop in the middle: 256 to 224, and no image is
        enlarged to be cropped."""
        return min(round(self.size * 256 / 224), max(self.size, self._side))

    @property
    def _side(self) -> int:
        """The median of the images' shorter sides."""
        sizes = self.folder.sizes
        return int(np.median(sizes.min(axis=1))) if len(sizes) else PAPERS_CROP

    @staticmethod
    def _batch(images: int) -> int:
        """The paper's, or what gives an epoch some steps; the last of an epoch has no single image, on
        which batch normalisation cannot train."""
        batch = min(PAPERS_BATCH, max(2 ** int(math.log2(images / STEPS_PER_EPOCH or 1)), 8))
        batch = min(batch, images)
        return batch - 1 if batch > 2 and images % batch == 1 else batch

    def _classifier(
        self, name: str, row: Row, train: str, common: Sequence[str], images: int, epochs: int
    ) -> Evaluation:
        classes, batch = len(self.folder.classes), self._batch(images)
        epochs = self._given_epochs() or epochs
        dimensions = representation_dim(
            self.pretrained.layout.depth, self.pretrained.layout.width_multiplier
        )
        processes = max(self.gpus, 1)
        while batch % processes:
            processes -= 1
        overrides = [
            *common,
            *self._crops(),
            override("MODEL.HEAD.PARAMS.0.1.in_dim", dimensions),
            override("MODEL.HEAD.PARAMS.0.1.num_classes", classes),
            *([override("METERS.accuracy_list_meter.topk_values", [1])] if classes < 5 else []),
            override("DISTRIBUTED.NUM_PROC_PER_NODE", processes),
            override("OPTIMIZER.num_epochs", epochs),
            *self._milestones(row, epochs),
            # The last epoch's test is the result.
            override("TEST_EVERY_NUM_EPOCH", epochs),
            override("CHECKPOINT.CHECKPOINT_FREQUENCY", max(epochs // 10, 1)),
            *self.given,
        ]
        overrides += share_of(batch, row.config, overrides, always=True)
        summary = f"{images} images, {self.size} pixels, batch {batch}, {epochs} epochs"
        return Evaluation(name, row, train, overrides, summary)

    @staticmethod
    def _milestones(row: Row, epochs: int) -> Iterator[str]:
        """Table 2's, 12 and 16 of 20 epochs, in proportion."""
        if row.name == "semi":
            first = max(epochs * 3 // 5, 1)
            milestones = [first, max(epochs * 4 // 5, first + 1)]
            for schedule in ("lr", "lr_head"):
                yield override(f"OPTIMIZER.param_schedulers.{schedule}.milestones", milestones)

    def _crops(self) -> Iterator[str]:
        yield override("DATA.TRAIN.TRANSFORMS.0.size", self.size)
        views = self.pretrained.views
        if views.crop_scale != PAPERS_VIEWS.crop_scale:
            yield f"+{override('DATA.TRAIN.TRANSFORMS.0.scale', list(views.crop_scale))}"
        if views.flip_p != PAPERS_VIEWS.flip_p:
            yield f"+{override('DATA.TRAIN.TRANSFORMS.1.p', views.flip_p)}"
        yield override("DATA.TEST.TRANSFORMS.0.size", self.resized)
        yield override("DATA.TEST.TRANSFORMS.1.size", self.size)

    def _knn(self, row: Row, common: Sequence[str]) -> Evaluation:
        images = len(self.folder.train)
        per_class = images / len(self.folder.classes)
        neighbours = round(NEIGHBOURS * per_class / NEIGHBOURS_OF)
        neighbours = min(max(neighbours, FEWEST_NEIGHBOURS), NEIGHBOURS, images)
        overrides = [
            *common,
            *(
                override(f"DATA.{split}.TRANSFORMS.{place}.size", size)
                for split in ("TRAIN", "TEST")
                for place, size in enumerate((self.resized, self.size))
            ),
            override("NEAREST_NEIGHBOR.TOPK", neighbours),
            override("DISTRIBUTED.NUM_PROC_PER_NODE", 1),
            *self.given,
        ]
        summary = f"{images} images, {self.size} pixels, {neighbours} neighbours"
        return Evaluation("knn", row, "train", overrides, summary)

    def _svm(self, row: Row, common: Sequence[str]) -> Evaluation:
        labels = self.folder.train_labels
        assert labels is not None
        folds = min(SVM_FOLDS, *Counter(labels.tolist()).values())
        overrides = [
            *common,
            *(
                override(f"DATA.{split}.TRANSFORMS.{place}.size", size)
                for split in ("TRAIN", "TEST")
                for place, size in enumerate((self.resized, [self.size, self.size]))
            ),
            override("SVM.cross_val_folds", folds),
            *self.given,
        ]
        summary = f"{len(labels)} images, {self.size} pixels, cross-validation in {folds} folds"
        return Evaluation("svm", row, "train", overrides, summary)


def _list_of(percent: float) -> str:
    return f"train_{percent:g}pct"
