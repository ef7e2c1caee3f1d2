"""BYOL (Grill et al., 2020) and SimSiam (Chen & He, 2020): what section 5.1 calls asymmetric twins.

Both predict one view's target from the other view's embedding, with no term that compares samples.
BYOL's targets come from a second network, the moving average of the one that learns; SimSiam's are the
network's own embeddings behind a stop-gradient. The predictor is a projector
(`vissl_barlow.projector.build_projector`) from embeddings to embeddings.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from vissl_barlow.distributed import batch_sizes
from vissl_barlow.loss import LossTerms
from vissl_barlow.objectives import cosine_loss
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


def build_normalised_projector(in_dim: int, dims: Sequence[int]) -> nn.Sequential:
    """SimSiam's projector: a projector and batch normalisation, without scale or shift, of its output.

    Raises:
        ValueError: as `build_projector`.
    """
    return nn.Sequential(build_projector(in_dim, dims), nn.BatchNorm1d(dims[-1], affine=False))


def byol_loss(
    p_a: Tensor,
    p_b: Tensor,
    target_a: Tensor,
    target_b: Tensor,
    *,
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """BYOL's loss, equation 2 of Grill et al. for both directions, the mean over the global batch.

    (2 - 2 cos(p_a, target_b)) + (2 - 2 cos(p_b, target_a)).

    Args:
        p_a, p_b: (N_p, D) predictions from the two views, the rows of this process.
        target_a, target_b: (N_p, D) targets; no gradient reaches them.
        group, reference_world_size: as in `vissl_barlow.loss.barlow_twins_loss`.

    Returns:
        `LossTerms`, of which `redundancy` is 0.

    Raises:
        ValueError: predictions and targets do not fit together.
    """
    similarity = _similarity(p_a, p_b, target_a, target_b, group, reference_world_size)
    loss = 4 - 2 * similarity
    return LossTerms(loss, loss, torch.zeros_like(loss))


def simsiam_loss(
    p_a: Tensor,
    p_b: Tensor,
    target_a: Tensor,
    target_b: Tensor,
    *,
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """SimSiam's loss, -(cos(p_a, target_b) + cos(p_b, target_a)) / 2, otherwise as `byol_loss`."""
    similarity = _similarity(p_a, p_b, target_a, target_b, group, reference_world_size)
    loss = -similarity / 2
    return LossTerms(loss, loss, torch.zeros_like(loss))


def _similarity(p_a, p_b, target_a, target_b, group, reference_world_size) -> Tensor:
    """cos(p_a, target_b) + cos(p_b, target_a), the mean over the global batch."""
    options = {"group": group, "reference_world_size": reference_world_size}
    forth = cosine_loss(p_a, target_b.detach(), **options).loss
    back = cosine_loss(p_b, target_a.detach(), **options).loss
    return -(forth + back) / sum(batch_sizes(len(p_a), group))
