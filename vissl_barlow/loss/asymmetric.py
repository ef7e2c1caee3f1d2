"""The losses of section 5.1's asymmetric twins: BYOL (Grill et al., 2020), SimSiam (Chen & He, 2020).

Both compare a prediction from one view with a target from the other, and no sample with another one.
Where the targets come from is told in `vissl_barlow.byol`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from vissl_barlow.loss.global_batch import GlobalBatch, cosines
from vissl_barlow.loss.terms import LossTerms, check_embeddings


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
        group, reference_world_size: as in `barlow_twins_loss`.

    Returns:
        `LossTerms`, of which `redundancy` is 0.

    Raises:
        ValueError: predictions and targets are not dense floating-point matrices of one shape.
    """
    check_embeddings(p_a=p_a, p_b=p_b, target_a=target_a, target_b=target_b)
    forth = _mean_cosine(p_a, target_b, group, reference_world_size)
    back = _mean_cosine(p_b, target_a, group, reference_world_size)
    loss = (2 - 2 * forth) + (2 - 2 * back)
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
    check_embeddings(p_a=p_a, p_b=p_b, target_a=target_a, target_b=target_b)
    forth = _mean_cosine(p_a, target_b, group, reference_world_size)
    back = _mean_cosine(p_b, target_a, group, reference_world_size)
    loss = -(forth + back) / 2
    return LossTerms(loss, loss, torch.zeros_like(loss))


def _mean_cosine(
    prediction: Tensor, target: Tensor, group: ProcessGroup | None, reference_world_size: int
) -> Tensor:
    """cos(prediction, target) of each row, the mean over the global batch."""
    with GlobalBatch(prediction, target.detach(), group, reference_world_size) as batch:
        return batch.sum(cosines(batch.a, batch.b).sum()) / batch.n
