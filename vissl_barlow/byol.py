"""BYOL's target network (Grill et al., 2020) and SimSiam's projector (Chen & He, 2020).

Both predict one view's target from the other view's embedding (section 5.1's asymmetric twins). BYOL's
targets come from a second network, the moving average of the one that learns; SimSiam's are the
network's own embeddings behind a stop-gradient. The predictor is a projector
(`vissl_barlow.projector.build_projector`) from embeddings to embeddings; the losses are in
`vissl_barlow.loss.asymmetric`.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from vissl_barlow.projector import build_projector


def target_momentum(progress: float, *, base: float) -> float:
    """BYOL's momentum tau after a fraction `progress` of all steps, from `base` to 1 along a cosine.

    1 - (1 - base) (cos(pi progress) + 1) / 2. `base` is 0.996 for 1000 epochs, 0.99 for 300.

    Raises:
        ValueError: an argument is outside [0, 1].
    """
    if not 0 <= base <= 1:
        raise ValueError(f"base={base} must be in [0, 1]: the target keeps that share of itself")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress={progress} must be in [0, 1]: steps taken over steps in all")
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


@torch.no_grad()
def update_target(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target = momentum target + (1 - momentum) online, for every parameter.

    Buffers are left alone: each network keeps the batch statistics of its own passes.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)


def build_normalized_projector(in_dim: int, dims: Sequence[int]) -> nn.Sequential:
    """SimSiam's projector: a projector and batch normalisation, without scale or shift, of its output.

    Raises:
        ValueError: as `build_projector`.
    """
    return nn.Sequential(build_projector(in_dim, dims), nn.BatchNorm1d(dims[-1], affine=False))
