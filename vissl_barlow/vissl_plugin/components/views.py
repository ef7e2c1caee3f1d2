"""`BarlowTwoViews`: the paper's two augmentations as a VISSL transform, and their collator."""

import inspect

import torch
from classy_vision.dataset.transforms import register_transform
from classy_vision.dataset.transforms.classy_transform import ClassyTransform
from torch.utils.data import default_collate
from vissl.data.collators import register_collator
from vissl.data.ssl_transforms.ssl_transforms_wrapper import DEFAULT_TRANSFORM_TYPES

from vissl_barlow.views import TwoViews


@register_transform("BarlowTwoViews")
class BarlowTwoViews(ClassyTransform):
    """Config: the keyword arguments of `vissl_barlow.views.TwoViews`, by name."""

    keys = frozenset(inspect.signature(TwoViews).parameters)

    def __init__(self, **options) -> None:
        self.two_views = TwoViews(**options)

    def __call__(self, image) -> list[torch.Tensor]:
        return list(self.two_views(image))


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
