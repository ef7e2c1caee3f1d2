"""A picture of what a pretraining has learned: neighbours of some images, and a map of many."""

import copy
import io
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from classy_vision.generic.distributed_util import is_primary

from vissl_barlow.images import rgb_on_white
from vissl_barlow.look import flat_map, nearest
from vissl_barlow.patient_files import replace
from vissl_barlow.run_files import MAP_FILE
from vissl_barlow.views import TwoViews, ViewParameters, normalize
from vissl_barlow.vissl_plugin.hooks.base import BarlowHook
from vissl_barlow.vissl_plugin.hooks.logs import tolerate_failed_logs
from vissl_barlow.vissl_plugin.hooks.probe import evaluating

QUERIES, NEIGHBOURS = 8, 5
_BATCH = 64


class BarlowLook(BarlowHook):
    """Draws `barlow_map.png` when training ends, on the primary process.

    Config: `config.BARLOW.MAP_IMAGES`. The images are some of the training's, the same each time, their
    middle squares without augmentation; where they are in few classes, colours say which.
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images

    def on_end(self, task) -> None:
        if not is_primary():
            return
        two_views = _two_views(task.config)
        if two_views is None:
            logging.warning("no BarlowTwoViews in DATA.TRAIN.TRANSFORMS: no map is drawn")
            return
        chosen = list(_chosen(task, self.images))
        if len(chosen) < 2:
            return
        pixels = [_middle(two_views, image) for _, image in chosen]
        z = _representations(task, torch.stack(pixels), two_views)
        queries = range(min(QUERIES, len(chosen)))
        from vissl_barlow.figures import (
            draw_representations,  # matplotlib: not before the first step
        )

        picture = io.BytesIO()
        draw_representations(
            picture,
            [image.permute(1, 2, 0).numpy() for image in pixels],
            flat_map(z),
            [(query, nearest(z, query, NEIGHBOURS)) for query in queries],
            _labels(task.datasets["train"], [index for index, _ in chosen]),
            f"representations of {len(chosen)} training images after {task.num_epochs} epochs",
        )
        path = Path(task.checkpoint_folder) / MAP_FILE
        with tolerate_failed_logs():
            replace(path, picture.getvalue())
            print(f"map: {path}", flush=True)


def _two_views(config) -> TwoViews | None:
    """The training's, which leaves bytes; None where it has not one alone."""
    found = [
        dict(each) for each in config.DATA.TRAIN.TRANSFORMS if each["name"] == "BarlowTwoViews"
    ]
    if len(found) != 1:
        return None
    options = {key: value for key, value in found[0].items() if key != "name"}
    return TwoViews(**options | {"normalize_on_device": True})


def _chosen(task, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Images of the training set as the source has them, RGB, each with its index."""
    dataset = copy.copy(task.datasets["train"])
    dataset.transform = None
    indices = random.Random(task.config.SEED_VALUE).sample(
        range(len(dataset)), min(count, len(dataset))
    )
    for index in indices:
        item = dataset[index]
        if item["data_valid"][0] == 1:
            image = item["data"][0]
            rgb = image if isinstance(image, np.ndarray) else rgb_on_white(image)
            yield index, np.asarray(rgb)


def _middle(two_views: TwoViews, image: np.ndarray) -> torch.Tensor:
    """The middle square of an image in the views' size, uint8 (3, S, S)."""
    height, width = image.shape[:2]
    side = min(height, width)
    crop = ((height - side) // 2, (width - side) // 2, side, side)
    return two_views.apply(image, ViewParameters(crop=crop))


@torch.no_grad()
def _representations(task, images: torch.Tensor, two_views: TwoViews) -> np.ndarray:
    with evaluating(task.base_model) as model:
        batches = (batch.to(task.device) for batch in images.split(_BATCH))
        normalized = (normalize(batch, two_views.mean, two_views.std) for batch in batches)
        return torch.cat(
            [model.trunk(batch)[0].flatten(1).float().cpu() for batch in normalized]
        ).numpy()


def _labels(dataset, indices: list[int]) -> list[int] | None:
    """The images' classes, where the source knows some."""
    subset = dataset.image_and_label_subset
    try:
        labels = dataset.data_objs[0].get_labels()
    except (AttributeError, ValueError):  # a source of VISSL's, or images without labels
        return None
    return [int(labels[index if subset is None else subset[index]]) for index in indices]
