"""Refuses meters that would fail, or count wrongly, at the end of the first epoch."""

import numpy as np
from classy_vision.meters import METER_REGISTRY

from vissl_barlow.vissl_plugin.checks.common import Refusals
from vissl_barlow.vissl_plugin.checks.tools import labels_in_use, unfit_labels
from vissl_barlow.vissl_plugin.errors import ConfigError, near_names

MEAN_AP = "mean_ap_list_meter"
TOP_K = ("accuracy_list_meter", "precision_at_k_list_meter", "recall_at_k_list_meter")


def check_meters(cfg, splits: list[str]) -> None:
    """Raises ConfigError unless the meters in use exist and fit the outputs and the labels.

    `splits`: those of "TRAIN" and "TEST" that will be read.
    """
    names = sorted({*cfg.METERS.get("names", []), cfg.METERS.get("name", "")} - {""})
    refusals = Refusals()
    for name in names:
        with refusals:
            if name not in METER_REGISTRY or name not in cfg.METERS or name == "mean_ap_meter":
                known = [MEAN_AP, *TOP_K]
                remedy = f"cannot be used; {near_names(name, known)}"
                raise ConfigError("METERS.names", names, remedy)
    refusals.raise_all()
    outputs = head_outputs(cfg)
    for name in names:
        with refusals:
            _check_outputs(cfg, name, outputs)
    refusals.raise_all()
    for split in splits if names else ():
        if "disk_filelist" in cfg.DATA[split].LABEL_SOURCES or MEAN_AP in names:
            labels = labels_in_use(cfg, split)
            for name in names:
                with refusals:
                    _check_labels(cfg, split, name, labels)
    refusals.raise_all()


def head_outputs(cfg) -> int | None:
    """The number of outputs of the last head; None without a head that says it."""
    name, options = cfg.MODEL.HEAD.PARAMS[-1] if cfg.MODEL.HEAD.PARAMS else ("", {})
    if name == "barlow_linear":
        return options["num_classes"]
    return options["dims"][-1] if isinstance(options, dict) and "dims" in options else None


def _check_outputs(cfg, name: str, outputs: int | None) -> None:
    if outputs is None:
        return
    if name in TOP_K and max(values := cfg.METERS[name].topk_values) > outputs:
        raise ConfigError(
            f"METERS.{name}.topk_values",
            values,
            f"top-{max(values)} of {outputs} classes; set values up to {outputs}",
        )
    if name == MEAN_AP and (classes := cfg.METERS[name].num_classes) != outputs:
        raise ConfigError(
            f"METERS.{name}.num_classes", classes, f"the head has {outputs} outputs; set {outputs}"
        )


def _check_labels(cfg, split: str, name: str, labels: np.ndarray) -> None:
    if name == MEAN_AP and (labels.ndim != 2 or not np.isin(labels, (-1, 0, 1)).all()):
        raise unfit_labels(
            cfg,
            split,
            f"{name} wants a column per class of 1 (present), 0 (absent) or -1 (left out); found "
            f"{labels.dtype} of shape {labels.shape}; for one class per image: accuracy_list_meter",
        )
    if name in TOP_K and labels.ndim == 2 and labels.min() < 0:
        raise unfit_labels(
            cfg, split, f"{name} would count labels of -1 against the rest; use {MEAN_AP}"
        )
