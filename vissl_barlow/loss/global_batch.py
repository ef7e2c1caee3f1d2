"""What takes the rows of all processes to compute: normalisation, and the sums of the objectives.

Barlow Twins itself takes the fused path (`kernels.py`); what it is compared with is built from here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from vissl_barlow.distributed import all_reduce_sum, rank, scale_gradient
from vissl_barlow.loss.form import resolve_form
from vissl_barlow.loss.kernels import Normalize, compute_dtype
from vissl_barlow.loss.terms import (
    LossTerms,
    check_embeddings,
    check_reference_world_size,
    check_weight,
    checked_batch_sizes,
)


def normalize(z: Tensor, *, eps: float = 1e-5, group: ProcessGroup | None = None) -> Tensor:
    """Gives each dimension of z (N_p, D) mean 0 and variance 1 over the global batch of N rows.

    (z - mean) / sqrt(var + eps) with the biased variance, as BatchNorm1d(affine=False) in training;
    in float32 at least, and by a two-pass formula that does not mind a mean far larger than the
    standard deviation. Differentiable by the rule of `vissl_barlow.distributed`.

    Raises:
        ValueError: as `barlow_twins_loss`.
    """
    check_embeddings(z=z)
    sizes = checked_batch_sizes(z, z, eps, group)
    return Normalize.apply(z, eps, sizes, group)


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """The cosine (N,) of each row of x with that of y, (N, D).

    As `F.cosine_similarity`, which takes rows whose squared length their dtype does not hold for
    orthogonal; here their cosine is NaN.
    """
    return (x * y).sum(1) / _row_lengths(x, 1e-8) / _row_lengths(y, 1e-8)


def unit_rows(x: Tensor) -> Tensor:
    """The rows of x (N, D) with length 1; as `F.normalize`, but NaN for such rows, not 0."""
    return x / _row_lengths(x, 1e-12)[:, None]


def _row_lengths(x: Tensor, at_least: float) -> Tensor:
    lengths = torch.linalg.vector_norm(x, dim=1)
    return lengths.where(lengths.isfinite(), math.nan).clamp(min=at_least)


class GlobalBatch:
    """The rows `a`, `b` (N_p, D) of two views on this process, of N = `n` on all of them.

    Gradients follow the rule of `vissl_barlow.distributed`, divided by `reference_world_size`. A
    context manager: within it, autocast is off, and everything is float32 or wider.

    Args:
        z_a, z_b, group, reference_world_size: as in `barlow_twins_loss`.
        eps: added to the variance of each dimension by `normalized`.

    Raises:
        ValueError: as `barlow_twins_loss`.
    """

    def __init__(
        self,
        z_a: Tensor,
        z_b: Tensor,
        group: ProcessGroup | None,
        reference_world_size: int,
        eps: float = 0.0,
    ) -> None:
        check_reference_world_size(reference_world_size)
        self.sizes = checked_batch_sizes(z_a, z_b, eps, group)
        self.n, self.dim = sum(self.sizes), z_a.shape[1]
        self.group, self.eps = group, eps
        self.dtype = compute_dtype(z_a, z_b)
        self.a, self.b = (
            scale_gradient(z.to(self.dtype), 1 / reference_world_size) for z in (z_a, z_b)
        )
        self.first_row = sum(self.sizes[: rank(group)])
        self._full_precision = torch.autocast(z_a.device.type, enabled=False)

    def __enter__(self) -> GlobalBatch:
        self._full_precision.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._full_precision.__exit__(*exception)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over processes."""
        return all_reduce_sum(x, self.group)

    def gather(self, x: Tensor) -> Tensor:
        """All processes' rows (N, D) of x (N_p, D), differentiable."""
        before, after = self.first_row, self.n - self.first_row - len(x)
        return self.sum(F.pad(x, (0, 0, before, after)))

    def centred(self) -> tuple[Tensor, Tensor]:
        """Both views less the mean of each dimension."""
        return self.centre(self.a), self.centre(self.b)

    def centre(self, x: Tensor) -> Tensor:
        return x - self.sum(x.sum(0)) / self.n

    def normalized(self) -> tuple[Tensor, Tensor]:
        """Both views as `normalize` gives them."""
        a, b = (Normalize.apply(z, self.eps, self.sizes, self.group) for z in (self.a, self.b))
        return a, b

    def cross_covariance(self, x: Tensor, y: Tensor) -> Tensor:
        """X^T Y / N (D, D): C, if x and y are normalised."""
        return self.sum(x.T @ y) / self.n

    def diagonal(self, x: Tensor, y: Tensor) -> Tensor:
        """The diagonal (D,) of C = X^T Y / N."""
        return self.sum((x * y).sum(0)) / self.n

    def invariance(self, x: Tensor, y: Tensor) -> Tensor:
        """The first sum of equation 1, sum_i (1 - C_ii)^2, of C = X^T Y / N."""
        return (1 - self.diagonal(x, y)).square().sum()

    def redundancy(self, x: Tensor, y: Tensor, form: str) -> Tensor:
        """The second sum of equation 1, sum_{i != j} C_ij^2, of C = X^T Y / N, as float64.

        Raises:
            ValueError: `form` is none of `FORMS`.
        """
        if resolve_form(form, self.n, self.dim, len(self.sizes)) == "gram":
            gram_x, gram_y = x @ self.gather(x).T, y @ self.gather(y).T
            total = self.sum((gram_x * gram_y).sum(dtype=torch.float64)) / self.n**2
            return total - self.diagonal(x, y).square().sum(dtype=torch.float64)
        squares = self.cross_covariance(x, y).square()
        return squares.sum(dtype=torch.float64) - squares.diagonal().sum(dtype=torch.float64)

    def terms(self, invariance: Tensor, redundancy: Tensor, lambda_: float = 1.0) -> LossTerms:
        """The result of an objective. Raises ValueError if `lambda_` is not finite and at least 0."""
        check_weight("lambda_", lambda_)
        invariance, redundancy = invariance.to(self.dtype), redundancy.to(self.dtype)
        return LossTerms(invariance + lambda_ * redundancy, invariance, redundancy)
