"""The C4 head with a norm after res5, registered beside VISSL's and MoCo's own."""

from __future__ import annotations

from vissl_barlow.detection import compat  # noqa: F401 (first: mends what follows)

# isort: split
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads


@ROI_HEADS_REGISTRY.register()
class BarlowRes5ROIHeadsExtraNorm(Res5ROIHeads):
    """`Res5ROIHeads` whose res5 ends in one more norm of kind `MODEL.RESNETS.NORM`.

    Unsupervised features may differ in scale from supervised ones; the norm calibrates them before
    the predictors (MoCo, section 4.2). Its tensors are called `res5.norm.*`, as in VISSL's and
    MoCo's `Res5ROIHeadsExtraNorm`, so that checkpoints pass between the two classes. The name is
    another because Detectron2 refuses to register one twice.
    """

    @classmethod
    def from_config(cls, cfg, input_shape):
        heads = super().from_config(cfg, input_shape)
        res5 = heads["res5"]
        res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, res5[-1].out_channels))
        return heads
