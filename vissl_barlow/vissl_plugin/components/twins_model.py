"""`barlow_twins_model`: the twin forward, each view its own pass; `barlow_asymmetric_twins_model`."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from vissl.models import register_model
from vissl.models.base_ssl_model import BaseSSLMultiInputOutputModel
from vissl.models.heads import register_model_head

from vissl_barlow.vissl_plugin.components.projector import BarlowProjector


def is_pair_of_views(batch) -> bool:
    """Whether `batch` is what `barlow_collator` makes: a tensor (2, N, C, H, W)."""
    return _are_views(batch) and len(batch) == 2


def _are_views(batch) -> bool:
    return isinstance(batch, torch.Tensor) and batch.ndim == 5


@register_model("barlow_twins_model")
class BarlowTwinsModel(BaseSSLMultiInputOutputModel):
    """VISSL's model, but for a batch of shape (2, N, C, H, W) it returns `[z_a, z_b]`.

    Algorithm 1 computes `f(y_a)` and then `f(y_b)`: every batch normalisation layer sees one view at
    a time. One pass over the 2N images, as in VISSL, would mix the views' statistics. Any other
    batch goes VISSL's way, so that the same model serves evaluation.

    A training step in pieces (`pieces.py`) passes (1, n, C, H, W), images of one view, and gets a
    matrix (n, K) with all that the loss and the monitor need of them; `outputs` makes of the matrices
    of both views, of all images, what a pair of views would have given. What one view gives does not
    depend on the other there: a subclass whose views differ computes for both what either needs
    (`_of_one_view`, `_of_both_views`).
    """

    _widths: list[int]  # of the matrices in the columns of the newest pass of one view

    def forward(self, batch):
        if not _are_views(batch):
            return super().forward(batch)
        if self.training and len(batch) == 1:
            return self._columns(self._features(batch[0]), batch[0])
        return [self._embed(view) for view in batch.unbind(0)]

    def outputs(self, columns_a: torch.Tensor, columns_b: torch.Tensor) -> list[torch.Tensor]:
        a, b = (columns.split(self._widths, 1) for columns in (columns_a, columns_b))
        self.representations = b[-1].detach()
        return self._of_both_views(a, b)

    def stages(self) -> list[nn.Module]:
        """Modules that, one after the other, compute what a pass of one view does.

        The fewer batch norm layers each has, the faster (`vissl_barlow.chunked`): a trunk may say of
        which it is made, in its own `stages`.
        """
        of_trunk = getattr(self.trunk, "stages", None)
        return [*(of_trunk() if of_trunk else [_Trunk(self)]), _Heads(self)]

    def _features(self, view: torch.Tensor) -> list[torch.Tensor]:
        return self.trunk(view, self._output_feature_names)

    def _embed(self, view: torch.Tensor) -> torch.Tensor:
        features = self._features(view)
        # The newest view's, for whoever watches them; nothing is computed from this.
        self.representations = features[0].detach()
        return self._project(features)

    def _project(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.heads_forward(features, self._projector_heads)[0]

    def _of_one_view(self, features: list[torch.Tensor], view) -> list[torch.Tensor]:
        """Matrices of as many rows as the view; `view` is None in a step in stages."""
        return [self._project(features)]

    def _of_both_views(self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> list:
        """The outputs, of what `_of_one_view` gave for all images of either view."""
        return [a[0], b[0]]

    def _columns(self, features: list[torch.Tensor], view) -> torch.Tensor:
        matrices = [*self._of_one_view(features, view), features[0].detach().flatten(1)]
        self._widths = [matrix.shape[1] for matrix in matrices]
        return torch.cat(matrices, 1)

    def _build_head_module(self, head_param):
        # VISSL seeds every head with the run's seed (vissl/models/base_ssl_model.py:313): a predictor
        # began as a copy of the projector's first layer. The first head keeps VISSL's draws.
        if self.heads:
            seed = (self.model_config._MODEL_INIT_SEED, len(self.heads))
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        return super()._build_head_module(head_param)

    @property
    def _projector_heads(self) -> nn.ModuleList:
        return self.heads


class _Trunk(nn.Module):
    """The trunk of a model as a stage."""

    def __init__(self, model: BarlowTwinsModel) -> None:
        super().__init__()
        self.trunk = model.trunk
        self._compute = model._features

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        return self._compute(view)[0]


class _Heads(nn.Module):
    """What follows on the trunk, as a stage."""

    def __init__(self, model: BarlowTwinsModel) -> None:
        super().__init__()
        self.heads = model.heads
        self._columns = model._columns

    def forward(self, representations: torch.Tensor) -> torch.Tensor:
        return self._columns([representations], None)


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

    keys = frozenset({"STOP_GRADIENT"})  # of `config.MODEL`

    def forward(self, batch):
        outputs = super().forward(batch)
        if not (self.training and is_pair_of_views(batch)):
            return outputs
        z_a, z_b = outputs
        return [self._predict(z_a), self._stopped(z_b)]

    def _stopped(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings.detach() if self.model_config.STOP_GRADIENT else embeddings

    def _of_one_view(self, features, view):
        z = self._project(features)
        return [self._predict(z), z]

    def _of_both_views(self, a, b):
        return [a[0], self._stopped(b[1])]
