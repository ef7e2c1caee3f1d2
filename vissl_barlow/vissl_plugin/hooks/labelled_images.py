"""The labelled images of a split, a batch at a time."""

import copy
import random
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Subset
from vissl.data import GenericSSLDataset, build_dataset

from vissl_barlow.stop_signals import held_back, leave_signals_to_the_run
from vissl_barlow.vissl_plugin.errors import ConfigError

# Fewer images are read before workers are there: each of them imports VISSL.
_WORTH_WORKERS = 2000


class LabelledImages:
    """The images of a split, under DATA.TEST's transforms, with their labels, as often as asked.

    Of more than `BARLOW.PROBE.IMAGES` a random choice, always the same. Iterating gives batches of
    DATA.TEST.BATCHSIZE_PER_REPLICA images, (N, C, H, W) with (N,) labels, and leaves torch's global
    generator alone. Images that cannot be read are left out: what takes their place while training
    may be of another class.

    Args:
        config: of a pretraining with a probe.
        split: "TRAIN" or "TEST".
    """

    def __init__(self, config, split: str) -> None:
        self.config, self.split = config, split
        dataset = _dataset(config, split)
        indices = range(len(dataset))
        count = min(len(indices), config.BARLOW.PROBE.IMAGES)
        workers = config.DATA.NUM_DATALOADER_WORKERS if count >= _WORTH_WORKERS else 0
        self.loader = DataLoader(
            Subset(dataset, sorted(random.Random(0).sample(indices, count))),
            batch_size=config.DATA.TEST.BATCHSIZE_PER_REPLICA,
            num_workers=workers,
            collate_fn=_collate,
            multiprocessing_context=config.MULTI_PROCESSING_METHOD if workers else None,
            worker_init_fn=leave_signals_to_the_run,
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Raises ConfigError where images are left with several sizes, or none can be read."""
        seen: set[tuple[int, ...]] = set()
        with held_back():  # from the workers, until they leave it to the run
            batches = iter(self.loader)
        for sizes, images, labels in batches:
            seen |= sizes
            if len(seen) > 1:
                transforms = self.config.DATA.TEST.TRANSFORMS
                raise ConfigError(
                    "DATA.TEST.TRANSFORMS",
                    transforms,
                    f"the probe's images ({self.split}) have {len(seen)} sizes under these; add Resize "
                    "and CenterCrop, or set config.BARLOW.PROBE.KIND=none",
                )
            if len(labels):
                yield images, labels
        if not seen:
            key = f"DATA.{self.split}.DATA_PATHS"
            raise ConfigError(
                key,
                self.config.DATA[self.split].DATA_PATHS,
                "none of the images that the probe would read there can be read; mend them, or set "
                "config.BARLOW.PROBE.KIND=none",
            )


def _collate(
    items: list[dict],
) -> tuple[set[tuple[int, ...]], torch.Tensor | None, torch.Tensor]:
    """Of those that could be read: sizes, the images if they are of one size, and labels."""
    items = [item for item in items if item["data_valid"][0] == 1]
    images = [item["data"][0] for item in items]
    sizes = {tuple(image.shape) for image in images}
    labels = torch.tensor([int(item["label"][0]) for item in items])
    return sizes, torch.stack(images) if len(sizes) == 1 else None, labels


def _dataset(config, split: str) -> GenericSSLDataset:
    config = copy.deepcopy(config)
    # The plugin's sources give arrays, most transforms of torchvision's want pictures.
    own = config.DATA[split].DATA_SOURCES[0].startswith("barlow_")
    transforms = [*([{"name": "ToPILImage"}] if own else []), *config.DATA.TEST.TRANSFORMS]
    config.DATA[split].TRANSFORMS = transforms
    config.DATA[split].LABEL_SOURCES = config.DATA.TEST.LABEL_SOURCES
    config.DATA[split].LABEL_TYPE = "standard"
    return build_dataset(config, split)
