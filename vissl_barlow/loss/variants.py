"""The variants of Barlow Twins: Table 5's other losses, and section 5.2's future directions.

Each takes z_a, z_b (N_p, D), the rows of this process, and `group` and `reference_world_size`, which
mean what they mean in `barlow_twins_loss`. Each returns `LossTerms`: `invariance` is what pulls the
views together, `redundancy` what keeps the embeddings apart, and `loss` is `invariance` + `lambda_`
`redundancy`. Values are of the global batch of N rows, in float32 at least, under autocast too;
ValueError for embeddings or options that cannot be.

C is the D x D matrix the loss is about. Where only the sum of its squares is wanted, `form` is
"correlation", "gram" or "auto" as in `barlow_twins_loss`, and "gram" does not form C.

A new one is a function here, decorated as these are, and a config that names it.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from vissl_barlow.loss.barlow_twins import barlow_twins_loss
from vissl_barlow.loss.global_batch import GlobalBatch
from vissl_barlow.loss.terms import LossTerms, check, check_weight, objective


@objective
def weighted_terms_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    invariance_weight: float = 1.0,
    lambda_: float = 5e-3,
    eps: float = 1e-5,
    form: str = "auto",
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """Equation 1 with a weight on each term: invariance_weight invariance + lambda_ redundancy.

    Table 5: "only invariance term" is weights (1, 0), "only redundancy reduction term" (0, lambda_).
    """
    check_weight("invariance_weight", invariance_weight)
    _, invariance, redundancy = barlow_twins_loss(
        z_a,
        z_b,
        lambda_=lambda_,
        eps=eps,
        form=form,
        group=group,
        reference_world_size=reference_world_size,
    )
    loss = invariance_weight * invariance + lambda_ * redundancy
    return LossTerms(loss, invariance, redundancy)


@objective
def feature_normalised_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    lambda_: float = 5e-3,
    radius: float = 1.0,
    eps: float = 1e-5,
    form: str = "auto",
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """Table 5, "normalization along feature dim.": equation 1 on the covariance of unit vectors.

    As section 4 says: normalise along the batch (with mean subtraction), then each row to length
    `radius` (without), then take the covariance matrix, unnormalised, for C. On the paper's unit
    sphere the trace of C cannot pass 1; with `radius` sqrt(D) rows keep the length the first
    normalisation gives them on average, and C can become the identity.
    """
    check(radius > 0, "radius", radius, "above 0; the paper's is 1")
    with GlobalBatch(z_a, z_b, group, reference_world_size, eps) as batch:
        a, b = (batch.centre(radius * F.normalize(z, dim=1)) for z in batch.normalized())
        return batch.terms(batch.invariance(a, b), batch.redundancy(a, b, form), lambda_)


@objective
def cross_covariance_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    lambda_: float = 5e-3,
    form: str = "auto",
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """Equation 1 on the cross-covariance: C = (A - mean)^T (B - mean) / N, no normalisation.

    Table 5, "no BN in MLP + no normalization" (with a projector without batch normalisation); with one,
    the second of section 5.2's future directions.
    """
    with GlobalBatch(z_a, z_b, group, reference_world_size) as batch:
        a, b = batch.centred()
        return batch.terms(batch.invariance(a, b), batch.redundancy(a, b, form), lambda_)


@objective
def auto_correlation_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    lambda_: float = 5e-3,
    eps: float = 1e-5,
    form: str = "auto",
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """Section 5.2: the redundancy of a single network's embedding, from its auto-correlation matrix.

    The invariance is equation 1's; the redundancy is sum_{i != j} of the squared auto-correlation,
    averaged over the two views, whose roles stay alike.
    """
    with GlobalBatch(z_a, z_b, group, reference_world_size, eps) as batch:
        a, b = batch.normalized()
        redundancy = (batch.redundancy(a, a, form) + batch.redundancy(b, b, form)) / 2
        return batch.terms(batch.invariance(a, b), redundancy, lambda_)


@objective
def cross_entropy_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    temperature: float = 0.1,
    lambda_: float = 1.0,
    eps: float = 1e-5,
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """Table 5, "cross-entropy with temp." (formula in section 4), on the cross-correlation C.

    -log sum_i exp(C_ii / temperature)
        + lambda_ log sum_i sum_{j != i} exp(max(C_ij, 0) / temperature)

    The paper gives neither its temperature nor its lambda_.
    """
    check(temperature > 0, "temperature", temperature, "above 0")
    with GlobalBatch(z_a, z_b, group, reference_world_size, eps) as batch:
        check(
            batch.dim >= 2, "embedding dimensions", batch.dim, "2 or more: one has no off-diagonal"
        )
        c = batch.cross_covariance(*batch.normalized()) / temperature
        invariance = -c.diagonal().logsumexp(0)
        scores = c.clamp(min=0).fill_diagonal_(-math.inf)
        return batch.terms(invariance, scores.flatten().logsumexp(0), lambda_)
