"""`barlow_twins_model`: the twin forward, each view its own pass; `barlow_asymmetric_twins_model`."""

import torch
from torch import nn
from vissl.models import register_model
from vissl.models.base_ssl_model import BaseSSLMultiInputOutputModel
from vissl.models.heads import register_model_head

from vissl_barlow.vissl_plugin.components.projector import BarlowProjector


def is_pair_of_views(batch) -> bool:
    """Whether `batch` is what `barlow_collator` makes: a tensor (2, N, C, H, W)."""
    return isinstance(batch, torch.Tensor) and batch.ndim == 5


@register_model("barlow_twins_model")
class BarlowTwinsModel(BaseSSLMultiInputOutputModel):
    """VISSL's model, but for a batch of shape (2, N, C, H, W) it returns `[z_a, z_b]`.

    Algorithm 1 computes `f(y_a)` and then `f(y_b)`: every batch normalisation layer sees one view at
    a time. One pass over the 2N images, as in VISSL, would mix the views' statistics. Any other
    batch goes VISSL's way, so that the same model serves evaluation.
    """

    def forward(self, batch):
        if is_pair_of_views(batch):
            return [self._embed(view) for view in batch.unbind(0)]
        return super().forward(batch)

    def _embed(self, view: torch.Tensor) -> torch.Tensor:
        representations = self.trunk(view, self._output_feature_names)
        # The newest view's, for whoever watches them; nothing is computed from this.
        self.representations = representations[0].detach()
        return self.heads_forward(representations, self._projector_heads)[0]

    @property
    def _projector_heads(self) -> nn.ModuleList:
        return self.heads


@register_model_head("barlow_predictor")
class BarlowPredictor(BarlowProjector):
    """A predictor, from embeddings to embeddings: a projector in all but its place, second."""

    takes_representations = False


class BarlowPredictingTwins(BarlowTwinsModel):
    """Twins whose first head is the projector; the second, where there is one, is a predictor."""

    @property
    def _projector_heads(self) -> nn.ModuleList:
        return self.heads[:1]

    def _predict(self, embeddings: torch.Tensor) -> torch.Tensor:
        return self.heads[1](embeddings) if len(self.heads) > 1 else embeddings


@register_model("barlow_asymmetric_twins_model")
class BarlowAsymmetricTwinsModel(BarlowPredictingTwins):
    """Table 6: in training, view A passes a predictor and view B a stop-gradient, either or both.

    Config: a second head, `barlow_predictor`, is the predictor; `config.MODEL.STOP_GRADIENT` is true
    or false. Outside training it is `barlow_twins_model`.
    """

    def forward(self, batch):
        outputs = super().forward(batch)
        if not (self.training and is_pair_of_views(batch)):
            return outputs
        z_a, z_b = outputs
        return [self._predict(z_a), z_b.detach() if self.model_config.STOP_GRADIENT else z_b]
