"""Mends Detectron2 for current Pillow and NumPy and for training on CPU; import it first.

"0.6" is the last release (2021); main still calls itself 0.6. Each function names the line it mends
and does nothing where that line is right.
"""

from __future__ import annotations

import functools
import inspect
import types

import numpy as np
from PIL import Image


def _import_transforms() -> None:
    """0.6, data/transforms/transform.py:46 reads `Image.LINEAR` on import; Pillow 10 removed it."""
    if hasattr(Image, "LINEAR"):
        return
    Image.LINEAR = Image.BILINEAR
    try:
        import detectron2.data.transforms  # noqa: F401
    finally:
        del Image.LINEAR


def _restore_numpy_aliases() -> None:
    """0.6, data/build.py:171 and :175 use `np.int`, which NumPy 1.24 removed."""
    from detectron2.data import build

    if hasattr(np, "int") or "np.int)" not in inspect.getsource(build):
        return
    # Only this module's view of NumPy changes.
    build.np = types.SimpleNamespace(**vars(np), int=int)


def _wrap_create_ddp_model() -> None:
    """0.6 and main, engine/defaults.py `create_ddp_model` passes `device_ids` for CPU models too.

    DistributedDataParallel raises ValueError on that.
    """
    from detectron2.engine import defaults

    create_ddp_model = defaults.create_ddp_model
    if hasattr(create_ddp_model, "__wrapped__"):
        return

    @functools.wraps(create_ddp_model)
    def without_device_ids_on_cpu(model, **kwargs):
        if all(parameter.device.type == "cpu" for parameter in model.parameters()):
            kwargs.setdefault("device_ids", None)
        return create_ddp_model(model, **kwargs)

    defaults.create_ddp_model = without_device_ids_on_cpu


def mend() -> None:
    """Applies every mend; safe to call again."""
    _import_transforms()
    _restore_numpy_aliases()
    _wrap_create_ddp_model()


mend()
