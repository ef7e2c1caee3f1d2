"""`barlow_objective`: the objectives of `vissl_barlow.loss` as one VISSL loss."""

from collections.abc import Callable

from classy_vision.losses import register_loss

from vissl_barlow.loss import OBJECTIVES, LossTerms
from vissl_barlow.vissl_plugin.components.loss import EmbeddingsLoss


@register_loss("barlow_objective")
class BarlowObjective(EmbeddingsLoss):
    """Config (`config.LOSS.barlow_objective`): `objective`, a name in `OBJECTIVES`, and its keys."""

    @classmethod
    def function(cls, config: dict) -> Callable[..., LossTerms]:
        name = config.get("objective")
        if name not in OBJECTIVES:
            raise ValueError(f"objective={name} must be one of {', '.join(OBJECTIVES)}")
        return OBJECTIVES[name]
