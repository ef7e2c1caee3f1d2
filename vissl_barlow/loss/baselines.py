"""What section 5 compares Barlow Twins with: HSIC, InfoNCE, cosine, W-MSE, IMAX, VICReg.

The interface is that of `variants.py`; `loss` is `invariance` + `redundancy` for an objective that has
no `lambda_`. BYOL and SimSiam, which have predictors, are in `asymmetric.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from vissl_barlow.loss.form import FORMS
from vissl_barlow.loss.global_batch import GlobalBatch, cosines, unit_rows
from vissl_barlow.loss.terms import LossTerms, check, check_weight, objective


@objective
def hsic_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    lambda_: float,
    eps: float = 1e-5,
    form: str = "auto",
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """Tsai et al. 2021 (arXiv 2104.13712): equation 1 with -1 for the off-diagonal's target, not 0.

    sum_i (1 - C_ii)^2 + lambda_ sum_{i != j} (1 + C_ij)^2. The authors take lambda_ = 1 / D.
    """
    with GlobalBatch(z_a, z_b, group, reference_world_size, eps) as batch:
        a, b = batch.normalized()
        diagonal = batch.diagonal(a, b)
        # sum_ij C_ij is the correlation of the rows' sums: no D x D matrix either.
        off_diagonal_sum = batch.sum((a.sum(1) * b.sum(1)).sum()) / batch.n - diagonal.sum()
        # (1 + C_ij)^2 multiplied out, summed over i != j.
        ones = batch.dim * (batch.dim - 1)
        redundancy = ones + 2 * off_diagonal_sum + batch.redundancy(a, b, form)
        return batch.terms((1 - diagonal).square().sum(), redundancy, lambda_)


@objective
def info_nce_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    temperature: float = 0.1,
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """InfoNCE as section 5.1 writes it, summed over the batch.

    -sum_b s_bb / temperature + sum_b log sum_{b' != b} exp(s_bb' / temperature), where s_bb' is the
    cosine of rows b of z_a and b' of z_b. Negatives come from all processes, and the sum over them
    leaves the positive pair out, which SimCLR's keeps. SimCLR's is a mean over the batch, too: with
    `reference_world_size` N, the global batch, the gradient is that of the mean.
    """
    check(temperature > 0, "temperature", temperature, "above 0")
    with GlobalBatch(z_a, z_b, group, reference_world_size) as batch:
        a, b = (unit_rows(z) for z in (batch.a, batch.b))
        scores = a @ batch.gather(b).T / temperature
        own = torch.arange(len(a), device=a.device)[:, None] + batch.first_row
        similarity = batch.sum(scores.gather(1, own).sum())
        contrast = scores.scatter(1, own, -math.inf).logsumexp(1)
        return batch.terms(-similarity, batch.sum(contrast.sum()))


@objective
def cosine_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """The cosine objective of asymmetric twins (section 5.1): -sum_b cos(z_a_b, z_b_b).

    By itself it collapses; a predictor and a stopped gradient or a second network keep it from doing so
    (`asymmetric.py`, where the cosine is averaged). With `reference_world_size` N, the global batch,
    the gradient is the mean's here as well.
    """
    with GlobalBatch(z_a, z_b, group, reference_world_size) as batch:
        similarity = batch.sum(cosines(batch.a, batch.b).sum())
        return batch.terms(-similarity, torch.zeros_like(similarity))


@objective
def w_mse_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    sub_batch_size: int | None = None,
    eps: float = 0.0,
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """W-MSE (Ermolov et al. 2020): hard whitening, then the mean over the batch of 2 - 2 cosine.

    Each view of each run of `sub_batch_size` rows (default: the whole batch) is centred and multiplied
    by the inverse of the Cholesky factor of its covariance, (1 - eps) Cov + eps I, in float64. Rows of
    one batch come shuffled, so runs are random parts of it, over all processes.

    Raises:
        ValueError: the batch is not a multiple of `sub_batch_size`, or `eps` is 0 and a sub-batch
            has no more rows than dimensions, so that its covariance is singular.
    """
    check(0 <= eps < 1, "eps", eps, "in [0, 1)")
    with GlobalBatch(z_a, z_b, group, reference_world_size) as batch:
        rows = batch.n if sub_batch_size is None else sub_batch_size
        check(
            rows > 1 and batch.n % rows == 0,
            "sub_batch_size",
            sub_batch_size,
            f"a divisor of the global batch, {batch.n}, above 1",
        )
        check(
            rows > batch.dim or eps > 0,
            "sub_batch_size",
            rows,
            f"above the embedding's {batch.dim} dimensions, or eps above 0",
        )
        a, b = (
            _whiten(batch.gather(z).double().unflatten(0, (-1, rows)), eps)
            for z in (batch.a, batch.b)
        )
        distance = (2 - 2 * F.cosine_similarity(a, b, dim=-1)).mean()
        return batch.terms(distance, torch.zeros_like(distance))


def _whiten(x: Tensor, eps: float) -> Tensor:
    """(S, M, D): S sub-batches of M rows, each with covariance I afterwards (for eps 0)."""
    x = x - x.mean(1, keepdim=True)
    covariance = x.mT @ x / (x.shape[1] - 1)
    eye = torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    factor = torch.linalg.cholesky((1 - eps) * covariance + eps * eye)
    return torch.linalg.solve_triangular(factor, x.mT, upper=False).mT


@objective
def imax_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    eps: float = 1e-3,
    form: str = "auto",
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """IMAX (Becker & Hinton 1992; section 5.1): log|C_(A - B)| - log|C_(A + B)|.

    C_X is the covariance of X plus eps I. The paper's formula has no eps, but without it both
    determinants are 0 as soon as there are fewer rows than dimensions or the views agree. By
    Sylvester's identity |eps I + X^T X / N| = eps^D |I + X X^T / (eps N)|, so `form` "gram" needs N x N
    only; "auto" takes the smaller matrix. Determinants are taken in float64.
    """
    check(eps > 0, "eps", eps, "above 0: the determinant of a singular covariance is 0")
    check(form in FORMS, "form", form, f"one of {', '.join(FORMS)}")
    with GlobalBatch(z_a, z_b, group, reference_world_size) as batch:
        if form == "auto":
            form = "gram" if batch.n < batch.dim else "correlation"

        def log_determinant(x: Tensor) -> Tensor:
            if form == "gram":
                x = batch.gather(x)
                matrix = x @ x.T / (batch.n * eps)
                offset, jitter = batch.dim * math.log(eps), 1.0
            else:
                matrix = batch.cross_covariance(x, x)
                offset, jitter = 0.0, eps
            eye = torch.eye(len(matrix), dtype=x.dtype, device=x.device)
            factor = torch.linalg.cholesky(matrix + jitter * eye)
            return offset + 2 * factor.diagonal().log().sum()

        a, b = (z.double() for z in batch.centred())
        return batch.terms(log_determinant(a - b), -log_determinant(a + b))


@objective
def vicreg_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-4,
    form: str = "auto",
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """VICReg (Bardes et al. 2022, algorithm 1), all three terms averaged over dimensions.

    `invariance` is the weighted mean squared difference; `redundancy` the weighted sum, over the views,
    of the variance term mean_j max(0, gamma - sqrt(Var_j + eps)) and the covariance term
    sum_{i != j} Cov_ij^2 / D. Variances and covariances are the unbiased ones.

    This is the paper's formula, as solo-learn has it. VICReg's released code and lightly halve the
    variance term, the mean of the two views' in place of their sum: their weight of 25 is
    `variance_weight` 12.5 here.
    """
    check_weight("invariance_weight", invariance_weight)
    check_weight("variance_weight", variance_weight)
    check_weight("covariance_weight", covariance_weight)
    with GlobalBatch(z_a, z_b, group, reference_world_size, eps) as batch:
        distance = batch.sum((batch.a - batch.b).square().sum()) / (batch.n * batch.dim)
        unbiased = batch.n / (batch.n - 1)
        spread = torch.zeros_like(distance)
        for x in batch.centred():
            std = (unbiased * batch.diagonal(x, x) + eps).sqrt()
            covariance = unbiased**2 * batch.redundancy(x, x, form) / batch.dim
            spread = spread + variance_weight * (gamma - std).relu().mean()
            spread = spread + covariance_weight * covariance
        return batch.terms(invariance_weight * distance, spread)
