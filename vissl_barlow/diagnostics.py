"""Numbers worth watching during pretraining: they show a collapse before an evaluation does.

All describe the embeddings of this process alone (nothing is communicated, so any subset of the
processes may call them), ignore autograd, and return tensors on the embeddings' device. Only
`effective_rank` waits for the device: call it where you log.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vissl_barlow.loss.barlow_twins import normalized_along_batch


class EmbeddingStd(NamedTuple):
    """Smallest and mean standard deviation of the dimensions."""

    min: Tensor
    mean: Tensor


class CrossCorrelationSummary(NamedTuple):
    """The mean of C_ii, and the root mean square of C_ij over i != j."""

    mean_diagonal: Tensor
    off_diagonal_rms: Tensor


def _at_least_float32(z: Tensor) -> Tensor:
    return z.to(torch.promote_types(z.dtype, torch.float32))


@torch.no_grad()
def embedding_std(z: Tensor) -> EmbeddingStd:
    """Biased standard deviation of each dimension of z (N, D) along the batch; 0 is a collapse."""
    std = _at_least_float32(z).std(0, correction=0)
    return EmbeddingStd(std.min(), std.mean())


@torch.no_grad()
def effective_rank(z: Tensor) -> Tensor:
    """RankMe of z (N, D) (Garrido et al., 2023): exp(-sum_k p_k log p_k), p_k = s_k / sum_l s_l.

    s_k are the singular values of z as it is, not centred: the result lies between 1 (a collapse)
    and min(N, D). They are the roots of the eigenvalues of the smaller of z z^T and z^T z, taken in
    float64 because the product squares the condition number. The paper's 1e-7 inside p_k, there to
    keep the logarithm finite, is not needed here.
    """
    z = z.double()
    gram = z @ z.T if z.shape[0] <= z.shape[1] else z.T @ z
    singular_values = torch.linalg.eigvalsh(gram).clamp_(min=0).sqrt_()
    # Of nothing but zeros, too, all is in one direction or less: 1, not NaN.
    total = singular_values.sum().clamp(min=torch.finfo(z.dtype).tiny)
    return torch.special.entr(singular_values / total).sum().exp()


@torch.no_grad()
def cross_correlation_summary(
    z_a: Tensor, z_b: Tensor, *, eps: float = 1e-5
) -> CrossCorrelationSummary:
    """Summary of C (equation 2) of two views (N, D), D >= 2, without forming C where N < D.

    Pretraining drives the first number to 1 and the second to 0. `eps` is the loss's.
    """
    n, d = z_a.shape
    with torch.autocast(z_a.device.type, enabled=False):
        a, b = (normalized_along_batch(_at_least_float32(z), eps) for z in (z_a, z_b))
        diagonal = (a * b).sum(0)
        squares = ((a @ a.T) * (b @ b.T)).sum() if n < d else (a.T @ b).square().sum()
        off_diagonal_squares = (squares - diagonal.square().sum()).clamp_(min=0)
    return CrossCorrelationSummary(diagonal.mean(), (off_diagonal_squares / (d * (d - 1))).sqrt())
