"""Refuses a model that cannot be built, images that do not pass it, and batches too small for it.

Tried on the meta device: shapes alone, without memory or values.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from vissl.data import build_dataset
from vissl.data.ssl_transforms import get_transform

from vissl_barlow.chunked import piece_sizes
from vissl_barlow.experiment import keeps_statistics
from vissl_barlow.vissl_plugin.checks.common import Refusals, model_on_meta, reason, world_size
from vissl_barlow.vissl_plugin.checks.pretraining import correlates
from vissl_barlow.vissl_plugin.components.reproducible import seeded
from vissl_barlow.vissl_plugin.errors import ConfigError

# Two images that differ in size: where the transforms leave them so, the images decide.
_IMAGES = (Image.new("RGB", (320, 240)), Image.new("RGB", (272, 400)))


class _OneValue(Exception):
    """A batch normalisation in training gets one value per channel; says which."""


class _ShapesOfBatchNorm(TorchFunctionMode):
    """Batch normalisation that leaves its input as it is: on the meta device torch composes it of some
    twenty operations, which take nine tenths of a pass."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not functional.batch_norm:
            return function(*args, **(kwargs or {}))
        images, *of_channels = args[:5]
        sizes = {len(each) for each in of_channels if isinstance(each, torch.Tensor)}
        if sizes - {images.shape[1]}:
            raise RuntimeError(f"{images.shape[1]} channels, and a batch norm of {sizes.pop()}")
        return images


class _Item(NamedTuple):
    """What a split's transforms make of one image: how many views, and their shape (C, H, W)."""

    views: int
    shape: tuple[int, ...]


def check_passes(cfg, splits: list[str]) -> None:
    """Raises ConfigError unless the model can be built and images of all `splits` pass it."""
    if cfg.MODEL.INPUT_TYPE == "lab" and _makes_two_views(cfg):
        raise ConfigError(
            "MODEL.INPUT_TYPE",
            "lab",
            "BarlowTwoViews makes RGB images, whose red the trunk would take for lightness; set it to "
            "rgb, with a trunk that takes that",
        )
    try:
        model = model_on_meta(cfg)
    except ConfigError:
        if cfg.SLURM.USE_SLURM and cfg.MACHINE.DEVICE == "gpu" and not torch.cuda.is_available():
            return  # some trunks of VISSL's are built on a GPU: that of the node the job will run on
        raise
    refusals = Refusals()
    for split in splits:
        if (item := _item(cfg, split)) is not None:
            with refusals:
                _pass_images(cfg, split, model, item)
    refusals.raise_all()


def _makes_two_views(cfg) -> bool:
    return any(transform["name"] == "BarlowTwoViews" for transform in cfg.DATA.TRAIN.TRANSFORMS)


def views_of(cfg) -> int | None:
    """How many views of an image DATA.TRAIN's transforms make; None where nothing can be said."""
    items = _items(cfg, "TRAIN")
    return None if items is None else next(iter(items)).views


def check_batch_norm(cfg) -> None:
    """Raises ConfigError if the batch is one image for a batch normalisation that needs two."""
    batch = cfg.DATA.TRAIN.BATCHSIZE_PER_REPLICA
    if correlates(cfg) and batch * world_size(cfg) < 2:
        return  # `check_batch` says so
    if _rows(cfg, batch) == 1 and (layer := _needs_two(cfg)):
        raise ConfigError(
            "DATA.TRAIN.BATCHSIZE_PER_REPLICA",
            batch,
            f"{layer} would see one image at a time, and batch normalisation in training needs two; "
            f"set at least 2{_or_synchronise(cfg)}",
        )
    if _has_piece_of_one(cfg, batch) and (layer := _needs_two(cfg)):
        raise ConfigError(
            "BARLOW.CHUNK_SIZE",
            cfg.BARLOW.CHUNK_SIZE,
            f"leaves a piece of 1 of {batch} images to {layer}, and batch normalisation in training "
            f"needs two; {_other_pieces(cfg)}",
        )


def check_last_batch(cfg) -> None:
    """Raises ConfigError if the last batch of an epoch is one image, where two are needed.

    Lists the images, if there is anything that needs two.
    """
    section, processes = cfg.DATA.TRAIN, world_size(cfg)
    batch = section.BATCHSIZE_PER_REPLICA
    if section.DROP_LAST or _rows(cfg, batch) == 1 or _has_piece_of_one(cfg, batch):
        return  # there is none, or `check_batch_norm` says it
    layer = _needs_two(cfg)
    if not layer and not correlates(cfg):
        return
    images = len(build_dataset(cfg, "TRAIN"))
    own = math.ceil(images / processes)  # the sampler fills up what is missing
    last = own % batch or min(own, batch)
    if layer and _rows(cfg, last) == 1:
        needing = f"batch normalisation in training ({layer})"
    elif correlates(cfg) and last * processes == 1:
        needing = "a correlation over the batch"
    elif layer and _has_piece_of_one(cfg, last):
        raise ConfigError(
            "BARLOW.CHUNK_SIZE",
            cfg.BARLOW.CHUNK_SIZE,
            f"leaves a piece of 1 of the {last} images in the last batch of an epoch to {layer}, and "
            f"batch normalisation in training needs two; {_other_pieces(cfg)}, or "
            "config.DATA.TRAIN.DROP_LAST=true",
        )
    else:
        return
    on_each = f" on each of {processes} processes" if processes > 1 else ""
    raise ConfigError(
        "DATA.TRAIN.DROP_LAST",
        section.DROP_LAST,
        f"the last batch of an epoch of {images} images would be one image{on_each}, and {needing} "
        f"needs two; set it to true, or another config.DATA.TRAIN.BATCHSIZE_PER_REPLICA than {batch} "
        f"or config.DATA.TRAIN.DATA_LIMIT{_or_synchronise(cfg)}",
    )


def _rows(cfg, batch: int) -> int:
    """Images that a batch normalisation sees where each process has `batch`, in the smallest group."""
    settings, processes = cfg.MODEL.SYNC_BN_CONFIG, world_size(cfg)
    if not settings.CONVERT_BN_TO_SYNC_BN:
        return batch
    size = settings.GROUP_SIZE if settings.GROUP_SIZE >= 0 else cfg.DISTRIBUTED.NUM_PROC_PER_NODE
    size = min(size or processes, processes)
    return batch * (processes % size or size)


def _has_piece_of_one(cfg, batch: int) -> bool:
    """Whether a batch normalisation sees one image, in a step in pieces of `batch` images."""
    settings = cfg.BARLOW
    if not settings.CHUNK_SIZE or keeps_statistics(settings.CHUNK_BATCH_NORM):
        return False
    sizes = piece_sizes(batch, settings.CHUNK_SIZE)
    return len(sizes) > 1 and 1 in sizes and _rows(cfg, 1) == 1


def _other_pieces(cfg) -> str:
    return (
        "set another size, or config.BARLOW.CHUNK_BATCH_NORM=exact, whose statistics are the whole "
        f"view's{_or_synchronise(cfg)}"
    )


def _or_synchronise(cfg) -> str:
    if world_size(cfg) == 1:
        return ""
    return ", or config.MODEL.SYNC_BN_CONFIG={CONVERT_BN_TO_SYNC_BN:true,GROUP_SIZE:0}"


def _needs_two(cfg) -> str:
    """A batch normalisation that, of a batch of one image, gets one value per channel; "" for none."""
    item = _item(cfg, "TRAIN")
    if item is None:
        return ""
    try:
        _pass_images(cfg, "TRAIN", model_on_meta(cfg), item, rows=1)
    except _OneValue as error:
        return str(error)
    return ""


def _item(cfg, split: str) -> _Item | None:
    """None where the images themselves decide, or where nothing can be said."""
    items = _items(cfg, split)
    return items.pop() if items is not None and len(items) == 1 else None


def _items(cfg, split: str) -> set[_Item] | None:
    """What becomes of two images that differ in size; None where nothing can be said."""
    for as_source_gives in (lambda image: image, np.asarray):
        items = set()
        try:
            transform = get_transform(cfg.DATA[split].TRANSFORMS)
            for image in _IMAGES:
                data = [as_source_gives(image)]
                sample = {"data": data, "data_idx": [0], "data_valid": [1], "label": [0]}
                with seeded(0):  # the run draws as if nothing had been tried
                    views = transform(sample)["data"]
                items.add(_Item(len(views), tuple(views[0].shape)))
        except Exception:
            continue  # what is wrong with the transforms is said by `check_model`
        return items
    return None


def _pass_images(cfg, split: str, model: nn.Module, item: _Item, rows: int = 2) -> None:
    """Raises ConfigError if `rows` images of a split do not pass, _OneValue where that is why."""
    model.train(split == "TRAIN")
    pairs = split == "TRAIN" and cfg.DATA.TRAIN.COLLATE_FUNCTION == "barlow_collator"
    images = torch.empty(rows * (1 if pairs else item.views), *item.shape, device="meta")
    shape = " x ".join(map(str, item.shape))
    hooks = [
        layer.register_forward_pre_hook(_refuse_one_value(name))
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm)
    ]
    try:
        features = _try(
            lambda: model.get_submodule("trunk")(images, model._output_feature_names),
            "MODEL.TRUNK.NAME",
            cfg.MODEL.TRUNK.NAME,
            f"images of {shape} (config.DATA.{split}.TRANSFORMS) do not pass it",
            "change their size, its section of config.MODEL.TRUNK, or, in evaluations, the features in "
            "config.MODEL.FEATURE_EVAL_SETTINGS.LINEAR_EVAL_FEAT_POOL_OPS_MAP",
        )
        if features is None or cfg.MODEL.MULTI_INPUT_HEAD_MAPPING:
            return
        _try(
            lambda: model(images.expand(2, *images.shape) if pairs else images),
            "MODEL.HEAD.PARAMS",
            cfg.MODEL.HEAD.PARAMS,
            f"they do not take the trunk's features of shape "
            f"{', '.join(' x '.join(map(str, feature.shape[1:])) for feature in features)}",
            "set the dimensions they take to these",
        )
    finally:
        for hook in hooks:
            hook.remove()


def _refuse_one_value(name: str) -> Callable:
    def refuse(layer: _BatchNorm, inputs: tuple) -> None:
        uses_batch = layer.training or layer.running_mean is None
        if uses_batch and inputs[0].numel() == inputs[0].shape[1]:
            raise _OneValue(name)

    return refuse


def _try(run: Callable, key: str, value, wrong: str, remedy: str):
    """What `run` returns; None where the meta device cannot tell."""
    try:
        with torch.no_grad(), _ShapesOfBatchNorm():
            return run()
    except _OneValue:
        raise
    except Exception as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error):
            return None
        raise ConfigError(key, value, f"{wrong} ({reason(error)}); {remedy}") from error
