"""`barlow_linear`: the linear classifier of the paper's evaluation as a VISSL head."""

import torch
from torch import nn
from vissl.models.heads import register_model_head

# Standard deviation of the initial weights: the authors' evaluate.py; the paper is silent.
INIT_STD = 0.01


@register_model_head("barlow_linear")
class BarlowLinear(nn.Module):
    """Head parameters: `in_dim`, `num_classes`.

    One linear layer, weights drawn from N(0, 0.01²), biases 0. VISSL's heads differ: `eval_mlp`
    normalises each channel over the batch first, `mlp` starts from PyTorch's uniform weights.
    """

    takes_representations = True

    def __init__(self, model_config, in_dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, num_classes)
        nn.init.normal_(self.linear.weight, std=INIT_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, representations: torch.Tensor) -> torch.Tensor:
        """(N, in_dim), or (N, in_dim, 1, 1) as VISSL's pooling leaves it, to (N, num_classes)."""
        return self.linear(representations.flatten(1))
