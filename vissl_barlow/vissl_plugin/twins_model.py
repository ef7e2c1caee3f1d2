"""`barlow_twins_model`: the twin forward, each view its own pass."""

import torch
from vissl.models import register_model
from vissl.models.base_ssl_model import BaseSSLMultiInputOutputModel


@register_model("barlow_twins_model")
class BarlowTwinsModel(BaseSSLMultiInputOutputModel):
    """VISSL's model, but for a batch of shape (2, N, C, H, W) it returns `[z_a, z_b]`.

    Algorithm 1 computes `f(y_a)` and then `f(y_b)`: every batch normalisation layer sees one view at
    a time. One pass over the 2N images, as in VISSL, would mix the views' statistics. Any other
    batch goes VISSL's way, so that the same model serves evaluation.
    """

    def forward(self, batch):
        if isinstance(batch, torch.Tensor) and batch.ndim == 5:
            return [self._embed(view) for view in batch.unbind(0)]
        return super().forward(batch)

    def _embed(self, view: torch.Tensor) -> torch.Tensor:
        embeddings = self.single_input_forward(view, self._output_feature_names, self.heads)
        return embeddings[0]
