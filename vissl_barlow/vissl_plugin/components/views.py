"""`BarlowTwoViews`: the paper's two augmentations as a VISSL transform, and their collator."""

import inspect
import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from classy_vision.dataset.transforms import build_transform, register_transform
from classy_vision.dataset.transforms.classy_transform import ClassyTransform
from torch.utils.data import default_collate
from vissl.data.collators import register_collator
from vissl.data.ssl_transforms.ssl_transforms_wrapper import DEFAULT_TRANSFORM_TYPES

from vissl_barlow.views import TwoViews


class ImageWithRng(np.ndarray):
    """An (H, W, 3) uint8 array that brings the generator its views are to be drawn from, `rng`.

    VISSL passes an item from its source to the transforms and nothing beside it, so that what a
    source knows (the seed, the epoch, the image's number) has to come with the image. To VISSL's
    datasets and to every other transform it is the array it is; parts of it carry the generator too.
    """

    rng: random.Random | None

    def __array_finalize__(self, source) -> None:
        self.rng = getattr(source, "rng", None)


def with_rng(image: np.ndarray, rng: random.Random) -> ImageWithRng:
    """`image`, not copied, with the generator that `BarlowTwoViews` is to draw its views from."""
    carrying = image.view(ImageWithRng)
    carrying.rng = rng
    return carrying


@register_transform("BarlowTwoViews")
class BarlowTwoViews(ClassyTransform):
    """Config: the keyword arguments of `vissl_barlow.views.TwoViews`, by name.

    Draws from the `rng` of an image that carries one, an array (`with_rng`) or a PIL image with that
    attribute; else, of VISSL's own sources, from Python's module `random`, which VISSL seeds in each
    of a loader's workers. A transform before this one may lose it: PIL's operations return new images.
    """

    keys = frozenset(inspect.signature(TwoViews).parameters)

    def __init__(self, **options) -> None:
        self.two_views = TwoViews(**options)

    def __call__(self, image) -> list[torch.Tensor]:
        return list(self.two_views(image, getattr(image, "rng", None) or random))


def normalization(transforms: Sequence[Mapping]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation, per channel, of the `BarlowTwoViews` in a section `TRANSFORMS`.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [transform for transform in transforms if transform["name"] == "BarlowTwoViews"]
    if len(found) != 1:
        raise ValueError(
            "config.DATA.TRAIN.TRANSFORMS: images of bytes are normalised as BarlowTwoViews says, "
            f"which must be there once, not {len(found)} times"
        )
    two_views = build_transform(found[0]).two_views
    return two_views.mean, two_views.std


# VISSL flattens the copies a transform makes only for the names in this list.
if "BarlowTwoViews" not in DEFAULT_TRANSFORM_TYPES["TRANSFORMS_WITH_COPIES"]:
    DEFAULT_TRANSFORM_TYPES["TRANSFORMS_WITH_COPIES"].append("BarlowTwoViews")


@register_collator("barlow_collator")
def barlow_collator(samples: list[dict]) -> dict:
    """Samples of two (C, H, W) views each to `data` of shape (2, N, C, H, W); the rest is (N,).

    In memory the batch is as the views are: planes or, from a channels_last view, pixels.
    """
    copies = range(len(samples[0]["data"]))
    by_view = [sample["data"][i] for i in copies for sample in samples]
    pixels = not by_view[0].is_contiguous()
    if pixels:
        by_view = [view.permute(1, 2, 0) for view in by_view]
    # torch's own: in a loader's worker it stacks where the main process will read the batch.
    data = default_collate(by_view)
    if pixels:
        data = data.permute(0, 3, 1, 2)
    data = data.unflatten(0, (len(copies), len(samples)))
    batch = {"data": [data]}
    for key in ("label", "data_valid", "data_idx"):
        # One per image: the wrapper that flattens the views repeats them for each view.
        batch[key] = [torch.as_tensor([sample[key][0] for sample in samples])]
    return batch
