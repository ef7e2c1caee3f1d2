"""`barlow_projector`: the paper's projector as a VISSL head."""

import torch
from torch import nn
from vissl.models.heads import register_model_head

from vissl_barlow.projector import build_projector


@register_model_head("barlow_projector")
class BarlowProjector(nn.Module):
    """Head parameters: `in_dim`, `dims` (one width per linear layer), `use_bn` (default true),
    `output_bias` (default false: no layer has one)."""

    takes_representations = True

    def __init__(
        self,
        model_config,
        in_dim: int,
        dims: list[int],
        use_bn: bool = True,
        output_bias: bool = False,
    ) -> None:
        super().__init__()
        self.projector = build_projector(in_dim, dims, use_bn=use_bn, output_bias=output_bias)

    def forward(self, representations: torch.Tensor) -> torch.Tensor:
        """(N, in_dim), or (N, in_dim, 1, 1) as VISSL's pooling leaves it, to (N, dims[-1])."""
        return self.projector(representations.flatten(1))
