"""The objectives Barlow Twins is compared with: the variants of Table 5 and those of section 5.

Every one has the interface of `vissl_barlow.loss.barlow_twins_loss`: the embeddings z_a, z_b (N_p, D)
of two views, the rows of this process; keyword-only options; `group` and `reference_world_size`,
which mean what they mean there. Each returns `LossTerms`: `invariance` is what pulls the views
together, `redundancy` what keeps the embeddings apart, and `loss` is `invariance` + `lambda_`
`redundancy`, with 1 for an objective that has no `lambda_`. Values are of the global batch of N rows,
in float32 at least, under autocast too; ValueError for embeddings or options that cannot be.

C is the D x D matrix the objective is about. Where only the sum of its squares is wanted, `form` is
"correlation", "gram" or "auto" as in `vissl_barlow.loss`, and "gram" does not form C.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from vissl_barlow.distributed import all_reduce_sum, rank, scale_gradient
from vissl_barlow.loss import (
    FORMS,
    LossTerms,
    barlow_twins_loss,
    checked_batch_sizes,
    choose_form,
    cross_correlation,
    normalise,
)


class _Views:
    """Both views' rows of this process, and what takes the global batch to compute.

    Gradients follow the rule of `vissl_barlow.distributed`, divided by `reference_world_size`.
    """

    def __init__(
        self,
        z_a: Tensor,
        z_b: Tensor,
        group: ProcessGroup | None,
        reference_world_size: int,
        eps: float = 0.0,
    ) -> None:
        _check(reference_world_size >= 1, "reference_world_size", reference_world_size, "1 or more")
        self.sizes = checked_batch_sizes(z_a, z_b, eps, group)
        self.n, self.group = sum(self.sizes), group
        dtype = torch.promote_types(torch.promote_types(z_a.dtype, z_b.dtype), torch.float32)
        self.a, self.b = (scale_gradient(z.to(dtype), 1 / reference_world_size) for z in (z_a, z_b))
        self.dim = z_a.shape[1]
        self.begin = sum(self.sizes[: rank(group)])

    def full_precision(self) -> torch.autocast:
        return torch.autocast(self.a.device.type, enabled=False)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over processes."""
        return all_reduce_sum(x, self.group)

    def gather(self, x: Tensor) -> Tensor:
        """All processes' rows (N, ...) of x (N_p, ...), differentiable."""
        before, after = self.begin, self.n - self.begin - len(x)
        return self.sum(F.pad(x, (0, 0, before, after)))

    def centre(self, x: Tensor) -> Tensor:
        return x - self.sum(x.sum(0)) / self.n

    def normalise(self, x: Tensor, eps: float) -> Tensor:
        return normalise(x, eps=eps, group=self.group)

    def diagonal(self, x: Tensor, y: Tensor) -> Tensor:
        """The diagonal (D,) of X^T Y / N."""
        return self.sum((x * y).sum(0)) / self.n

    def off_diagonal_power(self, x: Tensor, y: Tensor, form: str) -> Tensor:
        """sum_{i != j} C_ij^2 of C = X^T Y / N, as float64."""
        _check(form in FORMS, "form", form, f"one of {', '.join(FORMS)}")
        if form == "auto":
            form = choose_form(self.n, self.dim, len(self.sizes))
        if form == "gram":
            grams = x @ self.gather(x).T, y @ self.gather(y).T
            total = self.sum((grams[0] * grams[1]).sum(dtype=torch.float64)) / self.n**2
            return total - self.diagonal(x, y).square().sum(dtype=torch.float64)
        c = self.sum(x.T @ y) / self.n
        squares = c.square()
        return squares.sum(dtype=torch.float64) - squares.diagonal().sum(dtype=torch.float64)

    def terms(self, invariance: Tensor, redundancy: Tensor, lambda_: float = 1.0) -> LossTerms:
        _check(math.isfinite(lambda_) and lambda_ >= 0, "lambda_", lambda_, "finite, 0 or more")
        invariance, redundancy = (term.to(self.a.dtype) for term in (invariance, redundancy))
        return LossTerms(invariance + lambda_ * redundancy, invariance, redundancy)


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
    _check_weight("invariance_weight", invariance_weight)
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
    _check(radius > 0, "radius", radius, "above 0; the paper's is 1")
    views = _Views(z_a, z_b, group, reference_world_size, eps)
    with views.full_precision():
        a, b = (
            views.centre(radius * F.normalize(views.normalise(z, eps), dim=1))
            for z in (views.a, views.b)
        )
        invariance = (1 - views.diagonal(a, b)).square().sum()
        return views.terms(invariance, views.off_diagonal_power(a, b, form), lambda_)


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
    views = _Views(z_a, z_b, group, reference_world_size)
    with views.full_precision():
        a, b = views.centre(views.a), views.centre(views.b)
        invariance = (1 - views.diagonal(a, b)).square().sum()
        return views.terms(invariance, views.off_diagonal_power(a, b, form), lambda_)


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
    views = _Views(z_a, z_b, group, reference_world_size, eps)
    with views.full_precision():
        a, b = views.normalise(views.a, eps), views.normalise(views.b, eps)
        invariance = (1 - views.diagonal(a, b)).square().sum()
        power = [views.off_diagonal_power(x, x, form) for x in (a, b)]
        return views.terms(invariance, (power[0] + power[1]) / 2, lambda_)


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
    views = _Views(z_a, z_b, group, reference_world_size, eps)
    with views.full_precision():
        a, b = views.normalise(views.a, eps), views.normalise(views.b, eps)
        diagonal = views.diagonal(a, b)
        # sum_ij C_ij is the correlation of the rows' sums: no D x D matrix either.
        off_diagonal_sum = views.sum((a.sum(1) * b.sum(1)).sum()) / views.n - diagonal.sum()
        count = views.dim * (views.dim - 1)
        power = views.off_diagonal_power(a, b, form)
        return views.terms(
            (1 - diagonal).square().sum(), count + 2 * off_diagonal_sum + power, lambda_
        )


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
    _check(temperature > 0, "temperature", temperature, "above 0")
    views = _Views(z_a, z_b, group, reference_world_size, eps)
    _check(views.dim >= 2, "embedding dimensions", views.dim, "2 or more: one has no off-diagonal")
    with views.full_precision():
        c = cross_correlation(views.a, views.b, eps=eps, group=group) / temperature
        invariance = -c.diagonal().logsumexp(0)
        scores = c.clamp(min=0).fill_diagonal_(-math.inf)
        return views.terms(invariance, scores.flatten().logsumexp(0), lambda_)


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
    leaves the positive pair out, which SimCLR's keeps.
    """
    _check(temperature > 0, "temperature", temperature, "above 0")
    views = _Views(z_a, z_b, group, reference_world_size)
    with views.full_precision():
        a, b = F.normalize(views.a, dim=1), F.normalize(views.b, dim=1)
        scores = a @ views.gather(b).T / temperature
        own = torch.arange(views.begin, views.begin + len(a), device=a.device)[:, None]
        similarity = views.sum(scores.gather(1, own).sum())
        contrast = scores.scatter(1, own, -math.inf).logsumexp(1)
        return views.terms(-similarity, views.sum(contrast.sum()))


def cosine_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """The cosine objective of asymmetric twins (section 5.1): -sum_b cos(z_a_b, z_b_b).

    By itself it collapses; `vissl_barlow.byol` has the networks that keep it from doing so.
    """
    views = _Views(z_a, z_b, group, reference_world_size)
    with views.full_precision():
        similarity = views.sum(F.cosine_similarity(views.a, views.b).sum())
        return views.terms(-similarity, torch.zeros_like(similarity))


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
    _check(0 <= eps < 1, "eps", eps, "in [0, 1)")
    views = _Views(z_a, z_b, group, reference_world_size)
    rows = views.n if sub_batch_size is None else sub_batch_size
    _check(
        rows > 1 and views.n % rows == 0,
        "sub_batch_size",
        sub_batch_size,
        f"a divisor of the global batch, {views.n}, above 1",
    )
    _check(
        rows > views.dim or eps > 0,
        "sub_batch_size",
        rows,
        f"above the embedding's {views.dim} dimensions, or eps above 0",
    )
    with views.full_precision():
        a, b = (
            _whiten(views.gather(z).double().unflatten(0, (-1, rows)), eps)
            for z in (views.a, views.b)
        )
        distance = (2 - 2 * F.cosine_similarity(a, b, dim=-1)).mean()
        return views.terms(distance, torch.zeros_like(distance))


def _whiten(x: Tensor, eps: float) -> Tensor:
    """(S, M, D): S sub-batches of M rows, each with covariance I afterwards (for eps 0)."""
    x = x - x.mean(1, keepdim=True)
    covariance = x.mT @ x / (x.shape[1] - 1)
    eye = torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    factor = torch.linalg.cholesky((1 - eps) * covariance + eps * eye)
    return torch.linalg.solve_triangular(factor, x.mT, upper=False).mT


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
    _check(eps > 0, "eps", eps, "above 0: the determinant of a singular covariance is 0")
    _check(form in FORMS, "form", form, f"one of {', '.join(FORMS)}")
    views = _Views(z_a, z_b, group, reference_world_size)
    if form == "auto":
        form = "gram" if views.n < views.dim else "correlation"
    with views.full_precision():
        a, b = views.centre(views.a).double(), views.centre(views.b).double()

        def log_determinant(x: Tensor) -> Tensor:
            if form == "gram":
                x = views.gather(x)
                matrix = x @ x.T / (views.n * eps)
                offset, jitter = views.dim * math.log(eps), 1.0
            else:
                matrix = views.sum(x.T @ x) / views.n
                offset, jitter = 0.0, eps
            eye = torch.eye(len(matrix), dtype=x.dtype, device=x.device)
            factor = torch.linalg.cholesky(matrix + jitter * eye)
            return offset + 2 * factor.diagonal().log().sum()

        return views.terms(log_determinant(a - b), -log_determinant(a + b))


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
    """
    _check_weight("invariance_weight", invariance_weight)
    _check_weight("variance_weight", variance_weight)
    _check_weight("covariance_weight", covariance_weight)
    views = _Views(z_a, z_b, group, reference_world_size, eps)
    with views.full_precision():
        distance = views.sum((views.a - views.b).square().sum()) / (views.n * views.dim)
        unbiased = views.n / (views.n - 1)
        spread = torch.zeros_like(distance)
        for x in (views.centre(views.a), views.centre(views.b)):
            std = (unbiased * views.diagonal(x, x) + eps).sqrt()
            covariance = unbiased**2 * views.off_diagonal_power(x, x, form) / views.dim
            spread = spread + variance_weight * (gamma - std).relu().mean()
            spread = spread + covariance_weight * covariance
        return views.terms(invariance_weight * distance, spread)


def _check(ok: bool, name: str, value, wanted: str) -> None:
    if not ok:
        raise ValueError(f"{name}={value!r} must be {wanted}")


def _check_weight(name: str, value: float) -> None:
    _check(math.isfinite(value) and value >= 0, name, value, "finite, 0 or more")


OBJECTIVES: dict[str, Callable[..., LossTerms]] = {
    "weighted_terms": weighted_terms_loss,
    "feature_normalised": feature_normalised_loss,
    "cross_covariance": cross_covariance_loss,
    "auto_correlation": auto_correlation_loss,
    "hsic": hsic_loss,
    "cross_entropy": cross_entropy_loss,
    "info_nce": info_nce_loss,
    "cosine": cosine_loss,
    "w_mse": w_mse_loss,
    "imax": imax_loss,
    "vicreg": vicreg_loss,
}
