"""Barlow Twins (Zbontar et al., 2021): equations 1 and 2 as the paper writes them, and as they are run.

`equation_1` and `equation_2` are the definition, in plain torch, for one process. The tests compare
`barlow_twins_loss` and its kernels (`kernels.py`) with them in float64, values and gradients. They are
not for training: in float32 their invariance loses most of its digits where the views are nearly
identical, or where one row in eight lies far from the others.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed import ProcessGroup

from vissl_barlow.distributed import all_reduce_sum
from vissl_barlow.loss.form import FORMS, resolve_form
from vissl_barlow.loss.kernels import (
    CorrelationTerms,
    GramTerms,
    Normalize,
    TermsOptions,
    representable,
)
from vissl_barlow.loss.terms import (
    LossTerms,
    check,
    check_embeddings,
    check_reference_world_size,
    check_weight,
    checked_batch_sizes,
)


def equation_1(z_a: Tensor, z_b: Tensor, *, lambda_: float = 5e-3, eps: float = 1e-5) -> LossTerms:
    """Equation 1, the loss of two views (N, D), with C of equation 2:

    sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2
    """
    c = equation_2(z_a, z_b, eps=eps)
    on_diagonal = torch.eye(len(c), dtype=torch.bool, device=c.device)
    invariance = (1 - c[on_diagonal]).square().sum()
    redundancy = c[~on_diagonal].square().sum()
    return LossTerms(invariance + lambda_ * redundancy, invariance, redundancy)


def equation_2(z_a: Tensor, z_b: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Equation 2, the cross-correlation matrix C (D, D) of two views (N, D), along the batch:

    C_ij = sum_b z^A_bi z^B_bj / (sqrt(sum_b (z^A_bi)^2) sqrt(sum_b (z^B_bj)^2))

    of mean-centred views, that is C = A^T B of the normalised ones.
    """
    check_embeddings(z_a=z_a, z_b=z_b)
    a, b = normalized_along_batch(z_a, eps), normalized_along_batch(z_b, eps)
    return a.T @ b


def normalized_along_batch(z: Tensor, eps: float) -> Tensor:
    """z (N, D), each dimension less its mean over the batch, and then divided by its length.

    `eps`, which the paper's formula has not, is added to the (biased) variance as BatchNorm1d does; the
    variance is the squared length divided by N.
    """
    centred = z - z.mean(0)
    return centred / representable(centred.square().sum(0) + len(z) * eps).sqrt()


# The kernels are fused already, and Inductor of torch 2.14 makes other gradients of the Gram form's, in
# silence. `torch.compiler.disable` is the same, but takes seconds to import.
@_disable_dynamo
def barlow_twins_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    lambda_: float = 5e-3,
    eps: float = 1e-5,
    form: str = "auto",
    gather_in_bfloat16: bool = False,
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """Equation 1 on the global batch of all processes, by fused kernels.

    Computed in float32, under autocast too (float64 if the embeddings are). `torch.compile` leaves it
    out, and with `fullgraph=True` refuses it.

    Gradients: what each process back-propagates is the true gradient of the global loss with respect
    to its own rows, times W / reference_world_size for W processes. After DistributedDataParallel's
    average the optimizer meets the true gradient over `reference_world_size`, whatever W is (see
    `vissl_barlow.distributed` for the rule). The authors' code amounts to reference_world_size = W.

    Args:
        z_a, z_b: (N_p, D) embeddings of the two views, the rows of this process. Row b of both
            comes from one image. N_p may differ between processes.
        lambda_: weight of the redundancy reduction term.
        eps: added to the (biased) variance of each dimension, as BatchNorm1d does.
        form: "correlation" forms C (D x D), "gram" the Gram matrices of the views (N x N), "auto"
            the cheaper of the two. Both are exact; where N > D, "gram" finds the redundancy as a
            small difference and loses digits if the dimensions are nearly uncorrelated.
        gather_in_bfloat16: in the "gram" form, which gathers the normalised rows of all processes,
            those of others arrive rounded to bfloat16: half the bytes. docs/speed.md has the error.
        group: processes whose rows make up the batch; None: the default group where
            torch.distributed is initialised, else this process alone.
        reference_world_size: the number of processes of the run whose gradient scale to reproduce;
            the gradient is divided by it (the values are not). The paper's run has 32.

    Returns:
        `LossTerms` (loss, invariance, redundancy): the true global values, or NaN where a sum of
        squares leaves float32's range (from embeddings of about 1e18 on; see `representable`). All
        three are differentiable, with the same gradient scale.

    Raises:
        ValueError: z_a and z_b are not dense floating-point matrices of one shape, of 16 bits or
            more, the global batch has fewer than 2 rows, or an option is out of range.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown: use one of {', '.join(FORMS)}")
    check_weight("lambda_", lambda_, "; the paper's is 0.005")
    check_reference_world_size(reference_world_size)
    check(
        isinstance(gather_in_bfloat16, bool),
        "gather_in_bfloat16",
        gather_in_bfloat16,
        "true or false",
    )
    sizes = checked_batch_sizes(z_a, z_b, eps, group)
    form = resolve_form(form, sum(sizes), z_a.shape[1], len(sizes))
    terms = GramTerms if form == "gram" else CorrelationTerms
    options = TermsOptions(
        eps,
        sizes,
        group,
        gradient_scale=len(sizes) / reference_world_size,
        gather_dtype=torch.bfloat16 if gather_in_bfloat16 else None,
    )
    invariance, redundancy = terms.apply(z_a, z_b, options)
    loss = torch.add(invariance, redundancy, alpha=lambda_)
    return LossTerms(loss, invariance, redundancy)


def cross_correlation(
    z_a: Tensor, z_b: Tensor, *, eps: float = 1e-5, group: ProcessGroup | None = None
) -> Tensor:
    """Equation 2, C (D, D), of two (N_p, D) views over the global batch of all processes.

    C[i, j] correlates dimension i of z_a with dimension j of z_b. Differentiable by the rule of
    `vissl_barlow.distributed`; float32, or float64 if the embeddings are.

    Raises:
        ValueError: as `barlow_twins_loss`.
    """
    sizes = checked_batch_sizes(z_a, z_b, eps, group)
    a, b = (Normalize.apply(z, eps, sizes, group) for z in (z_a, z_b))
    with torch.autocast(a.device.type, enabled=False):
        return all_reduce_sum(a.T @ b / sum(sizes), group)
