"""BYOL and SimSiam under VISSL: `barlow_byol_model`, `barlow_simsiam_model`, heads, losses, target."""

import copy
from collections.abc import Callable

import torch
from classy_vision.losses import register_loss
from torch import nn
from vissl.models import register_model
from vissl.models.heads import register_model_head

from vissl_barlow.byol import build_normalized_projector, update_target
from vissl_barlow.loss import LossTerms, byol_loss, simsiam_loss
from vissl_barlow.vissl_plugin.components.loss import TermsLoss
from vissl_barlow.vissl_plugin.components.twins_model import BarlowPredictingTwins, is_pair_of_views


@register_model_head("barlow_normalised_projector")
class BarlowNormalisedProjector(nn.Module):
    """SimSiam's projector. Head parameters: `in_dim`, `dims` (one width per linear layer)."""

    takes_representations = True

    def __init__(self, model_config, in_dim: int, dims: list[int]) -> None:
        super().__init__()
        self.projector = build_normalized_projector(in_dim, dims)

    def forward(self, representations: torch.Tensor) -> torch.Tensor:
        """(N, in_dim) to (N, dims[-1])."""
        return self.projector(representations.flatten(1))


@register_model("barlow_simsiam_model")
class BarlowSimSiamModel(BarlowPredictingTwins):
    """In training, two views become `[p_a, p_b, target_a, target_b]`: SimSiam's, its own embeddings.

    Heads: a projector, then `barlow_predictor`. Outside training it gives the two embeddings.
    """

    def forward(self, batch):
        if not (self.training and is_pair_of_views(batch)):
            return super().forward(batch)
        embeddings = [self._embed(view) for view in batch.unbind(0)]
        predictions = [self._predict(z) for z in embeddings]
        return predictions + [self._target(*each) for each in zip(batch.unbind(0), embeddings)]

    def _of_one_view(self, features, view):
        z = self._project(features)
        return [self._predict(z), self._target(view, z)]

    def _of_both_views(self, a, b):
        return [a[0], b[0], a[1].detach(), b[1].detach()]

    def _target(self, view: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings.detach()


@register_model("barlow_byol_model")
class BarlowBYOLModel(BarlowSimSiamModel):
    """As `barlow_simsiam_model`, with targets from a second network, a moving average of the first.

    Config: `config.MODEL.TARGET_MOMENTUM`, tau at the start. The target network (trunk and projector,
    in training mode like the online one) is saved and restored with the model.
    """

    keys = frozenset({"TARGET_MOMENTUM"})  # of `config.MODEL`

    def __init__(self, model_config, optimizer_config) -> None:
        super().__init__(model_config, optimizer_config)
        self.target = copy.deepcopy(self._online).requires_grad_(False)

    @property
    def _online(self) -> nn.ModuleList:
        return nn.ModuleList([self.trunk, self.heads[0]])

    @torch.no_grad()
    def _target(self, view: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        trunk, projector = self.target
        return projector(trunk(view, self._output_feature_names)[0])

    def reset_target(self) -> None:
        """Makes the target the online network, as it is before the first step."""
        self.target.load_state_dict(self._online.state_dict())

    def update_target(self, momentum: float) -> None:
        update_target(self.target, self._online, momentum)

    def get_classy_state(self, deep_copy: bool = False) -> dict:
        state = super().get_classy_state(deep_copy)
        target = self.target.state_dict()
        state["model"]["target"] = copy.deepcopy(target) if deep_copy else target
        return state

    def set_classy_state(self, state: dict, strict: bool = True) -> None:
        super().set_classy_state(state, strict)
        self.target.load_state_dict(state["model"]["target"])


class PredictionsLoss(TermsLoss):
    """A loss of two predictions and two targets."""

    models = ("barlow_byol_model", "barlow_simsiam_model")


@register_loss("barlow_byol_loss")
class BarlowBYOLLoss(PredictionsLoss):
    """Config (`config.LOSS.barlow_byol_loss`): the keys of `vissl_barlow.loss.byol_loss`."""

    @classmethod
    def function(cls, config: dict) -> Callable[..., LossTerms]:
        return byol_loss


@register_loss("barlow_simsiam_loss")
class BarlowSimSiamLoss(PredictionsLoss):
    """Config (`config.LOSS.barlow_simsiam_loss`): the keys of `vissl_barlow.loss.simsiam_loss`."""

    @classmethod
    def function(cls, config: dict) -> Callable[..., LossTerms]:
        return simsiam_loss
