"""Mends Detectron2 for current Pillow and NumPy and for training on CPU; import it first.

"0.6" is the last release (October 2021); main, read at commit 02b5c4e of June 2026, still calls itself
0.6. Each function names the line it mends, below the folder detectron2, and changes nothing where that
line is right.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import types
from typing import Any

import numpy as np
from PIL import Image

_NUMPY_ALIASES = {
    "data.build": int,
    "data.datasets.pascal_voc": str,
    "evaluation.pascal_voc_evaluation": bool,
    "structures.masks": bool,
}


def _import_transforms() -> None:
    """0.6, data/transforms/transform.py:46 reads `Image.LINEAR` on import; Pillow 10 removed it.

    Main reads `Image.BILINEAR` there.
    """
    pillow: Any = Image
    if hasattr(pillow, "LINEAR"):
        return
    pillow.LINEAR = pillow.BILINEAR
    try:
        import detectron2.data.transforms  # noqa: F401
    finally:
        del pillow.LINEAR


def _restore_numpy_aliases() -> None:
    """0.6 uses names that NumPy 1.24 removed; only those modules' view of NumPy changes.

    data/build.py:171 and :175 `np.int`; data/datasets/pascal_voc.py:35 `np.str`;
    evaluation/pascal_voc_evaluation.py:228 and structures/masks.py:33, :36 and :344 `np.bool`, back in
    NumPy 2. Main has none of them.
    """
    for name, alias in _NUMPY_ALIASES.items():
        module: Any = importlib.import_module(f"detectron2.{name}")
        used = re.search(rf"\bnp\.{alias.__name__}\b", inspect.getsource(module))
        if used and alias.__name__ not in vars(np):
            module.np = types.SimpleNamespace(**vars(np), **{alias.__name__: alias})


def _wrap_create_ddp_model() -> None:
    """0.6 and main, engine/defaults.py:72 (`create_ddp_model`) passes `device_ids` for CPU models too.

    DistributedDataParallel raises ValueError on that.
    """
    from detectron2.engine import defaults

    create_ddp_model = defaults.create_ddp_model

    @functools.wraps(create_ddp_model)
    def without_device_ids_on_cpu(model, **kwargs):
        if all(parameter.device.type == "cpu" for parameter in model.parameters()):
            kwargs.setdefault("device_ids", None)
        return create_ddp_model(model, **kwargs)

    defaults.create_ddp_model = without_device_ids_on_cpu


def _distributed_worker(*args) -> None:
    importlib.import_module("detectron2.engine.launch")._detectron2s_worker(*args)


def _start_processes_here() -> None:
    """0.6, engine/launch.py:68 starts a function of its own, so a child imports Detectron2 unmended.

    Main does so too (line 70) and needs no mend on import. Ours is found through this module, which the
    child therefore imports first.
    """
    transform = importlib.import_module("detectron2.data.transforms.transform")
    if "Image.LINEAR" in inspect.getsource(transform):
        launch: Any = importlib.import_module("detectron2.engine.launch")
        launch._detectron2s_worker = launch._distributed_worker
        launch._distributed_worker = _distributed_worker


_import_transforms()
_restore_numpy_aliases()
_wrap_create_ddp_model()
_start_processes_here()
