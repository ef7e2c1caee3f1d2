"""The loss of Barlow Twins (Zbontar et al., 2021), equations 1 and 2.

Shapes: N rows of the global batch, N_p of them on this process, W processes, D dimensions of the
embedding. A, B (N, D) are the two views of the embeddings, each normalised along the batch on its
own: every column has mean 0 and length 1. C = A^T B is their cross-correlation.

C need not be formed: sum_ij C_ij^2 = sum((A A^T) * (B B^T)), and only its diagonal is wanted
besides. That is exact, takes N x N memory instead of D x D, and fewer operations where N < D.

Gradients: what each process back-propagates is the true gradient of the global loss with respect to
its own rows, times W / reference_world_size. After DistributedDataParallel's average the optimizer
meets the true gradient over `reference_world_size`, whatever the number of processes (see
`vissl_barlow.distributed` for the rule). The authors' code amounts to reference_world_size = W.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn.functional import mse_loss

from vissl_barlow.distributed import (
    all_gather_rows,
    all_reduce_sum,
    all_reduce_sum_,
    batch_sizes,
    rank,
)

logger = logging.getLogger(__name__)

FORMS = ("auto", "correlation", "gram")

# Elements that elementwise work on the CPU touches at a time, to find them in cache the next time.
_CACHED_ELEMENTS = 1 << 17
# One row in so many gives a number near the mean to begin with.
_ROWS_PER_SAMPLE = 8
# Columns of a matrix product at a time where its factor is made for it: enough for full speed.
_PRODUCT_COLUMNS = 2048
# Floating-point operations that take as long as moving one byte from memory, and between processes.
_OPS_PER_BYTE = 12
_OPS_PER_BYTE_SENT = 150


class LossTerms(NamedTuple):
    """`loss` = `invariance` + lambda * `redundancy`: scalars, equal on all processes."""

    loss: Tensor
    invariance: Tensor
    redundancy: Tensor


def barlow_twins_loss(
    z_a: Tensor,
    z_b: Tensor,
    *,
    lambda_: float = 5e-3,
    eps: float = 1e-5,
    form: str = "auto",
    group: ProcessGroup | None = None,
    reference_world_size: int = 1,
) -> LossTerms:
    """The loss of Barlow Twins on the global batch of all processes (equation 1).

    Computed in float32, under autocast too (float64 if the embeddings are).

    Args:
        z_a, z_b: (N_p, D) embeddings of the two views, the rows of this process. Row b of both
            comes from one image. N_p may differ between processes.
        lambda_: weight of the redundancy reduction term.
        eps: added to the (biased) variance of each dimension, as BatchNorm1d does.
        form: "correlation" forms C (D x D), "gram" the Gram matrices of the views (N x N), "auto"
            the cheaper of the two. Both are exact; where N > D, "gram" finds the redundancy as a
            small difference and loses digits if the dimensions are nearly uncorrelated.
        group: processes whose rows make up the batch; None: the default group where
            torch.distributed is initialised, else this process alone.
        reference_world_size: the number of processes of the run whose gradient scale to reproduce;
            the gradient is divided by it (the values are not). The paper's run has 32.

    Returns:
        `LossTerms` (loss, invariance, redundancy): the true global values. All three are
        differentiable, with the same gradient scale.

    Raises:
        ValueError: z_a and z_b are not floating-point matrices of one shape, the global batch has
            fewer than 2 rows, or an option is out of range.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown: use one of {', '.join(FORMS)}")
    if not (math.isfinite(lambda_) and lambda_ >= 0):
        raise ValueError(f"lambda_={lambda_} must be finite and at least 0; the paper's is 0.005")
    if not reference_world_size >= 1:
        raise ValueError(
            f"reference_world_size={reference_world_size} must be at least 1: give the number of "
            "processes whose gradient scale is wanted, 1 for the true gradient"
        )
    sizes = checked_batch_sizes(z_a, z_b, eps, group)
    if form == "auto":
        form = choose_form(sum(sizes), z_a.shape[1], len(sizes))
    gradient_scale = len(sizes) / reference_world_size
    invariance, redundancy = _Terms.apply(z_a, z_b, eps, form, sizes, group, gradient_scale)
    loss = torch.add(invariance, redundancy, alpha=lambda_)
    return LossTerms(loss, invariance, redundancy)


def cross_correlation(
    z_a: Tensor, z_b: Tensor, *, eps: float = 1e-5, group: ProcessGroup | None = None
) -> Tensor:
    """The cross-correlation C (D, D) of two (N_p, D) views over the global batch (equation 2).

    C[i, j] correlates dimension i of z_a with dimension j of z_b. Differentiable by the rule of
    `vissl_barlow.distributed`; float32, or float64 if the embeddings are.

    Raises:
        ValueError: as `barlow_twins_loss`.
    """
    sizes = checked_batch_sizes(z_a, z_b, eps, group)
    a, b = (_Normalise.apply(z, eps, sizes, group) for z in (z_a, z_b))
    with torch.autocast(a.device.type, enabled=False):
        return all_reduce_sum(a.T @ b / sum(sizes), group)


def normalise(z: Tensor, *, eps: float = 1e-5, group: ProcessGroup | None = None) -> Tensor:
    """Gives each dimension of z (N_p, D) mean 0 and variance 1 over the global batch of N rows.

    (z - mean) / sqrt(var + eps) with the biased variance, as BatchNorm1d(affine=False) in training;
    in float32 at least, and by a two-pass formula that does not mind a mean far larger than the
    standard deviation. Differentiable by the rule of `vissl_barlow.distributed`.

    Raises:
        ValueError: as `barlow_twins_loss`.
    """
    sizes = checked_batch_sizes(z, z, eps, group)
    return _Normalise.apply(z, eps, sizes, group)


@functools.cache
def choose_form(n: int, d: int, world_size: int) -> str:
    """The cheaper form, "gram" or "correlation", for a global batch n, d dimensions, W processes.

    Counts the floating-point operations, the bytes of the large matrices through memory and the
    bytes each process sends; the answer is logged once for each (n, d, W).
    """
    costs = {form: form_cost(form, n, d, world_size) for form in ("gram", "correlation")}
    form = min(costs, key=lambda name: costs[name].in_operations())
    logger.info(
        "Barlow Twins loss: %s form for N=%d, D=%d on %d process(es); %s",
        form,
        n,
        d,
        world_size,
        "; ".join(
            f"{name}: {cost.operations:.2e} operations, {cost.bytes_moved:.2e} bytes moved, "
            f"{cost.bytes_sent:.2e} sent"
            for name, cost in costs.items()
        ),
    )
    return form


class FormCost(NamedTuple):
    """What forward and backward cost one process in float32."""

    operations: float
    bytes_moved: float
    bytes_sent: float

    def in_operations(self) -> float:
        """All three in one unit, by the balance of current machines."""
        return (
            self.operations
            + _OPS_PER_BYTE * self.bytes_moved
            + _OPS_PER_BYTE_SENT * self.bytes_sent
        )


def form_cost(form: str, n: int, d: int, world_size: int) -> FormCost:
    """Counts the cost of `form` ("gram" or "correlation"); leaves out what both forms share."""
    rows = n / world_size
    others = (world_size - 1) / world_size
    if form == "gram":
        forward = _gram_operations(n, d) if world_size == 1 else 2 * rows * n * d
        return FormCost(2 * (forward + 2 * rows * n * d), 4 * 6 * rows * n, 4 * 2 * n * d * others)
    return FormCost(6 * rows * d * d, 4 * 6 * d * d, 4 * 2 * d * d * others)


def _gram_operations(n: int, d: int) -> float:
    step = _gram_rows(n)
    return sum(2 * min(step, n - i) * (n - i) * d for i in range(0, n, step))


def checked_batch_sizes(
    z_a: Tensor, z_b: Tensor, eps: float, group: ProcessGroup | None
) -> tuple[int, ...]:
    """`distributed.batch_sizes` of two views that can be normalised along the batch.

    Raises:
        ValueError: as `barlow_twins_loss`.
    """
    for name, z in (("z_a", z_a), ("z_b", z_b)):
        if z.ndim != 2:
            raise ValueError(
                f"{name} has shape {tuple(z.shape)}: give a matrix of (rows, dimensions)"
            )
        if not z.is_floating_point():
            raise ValueError(f"{name} has dtype {z.dtype}: give floating-point embeddings")
    if z_a.shape != z_b.shape:
        raise ValueError(
            f"z_a has shape {tuple(z_a.shape)} and z_b {tuple(z_b.shape)}: give both views of the "
            "same images in the same order"
        )
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps={eps} must be finite and at least 0; BatchNorm1d's is 1e-5")
    sizes = batch_sizes(z_a.shape[0], group)
    if sum(sizes) < 2:
        raise ValueError(
            f"the global batch has {sum(sizes)} row(s), {z_a.shape[0]} of them in z_a here: "
            "normalising along the batch takes at least 2, raise the batch size"
        )
    return sizes


def _row_blocks(x: Tensor, *others: Tensor) -> Sequence[tuple[Tensor, ...]]:
    """The same rows of all matrices at a time."""
    # Kernel launches cost more than a device's memory does, and its cache is larger: one block. On
    # the CPU, too, two cost more than they save.
    if x.device.type != "cpu" or x.numel() <= 2 * _CACHED_ELEMENTS:
        return [(x, *others)]
    rows = max(1, _CACHED_ELEMENTS * x.shape[-2] // x.numel())
    return list(zip(*(y.split(rows, -2) for y in (x, *others))))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(Tensor.add_, parts)


def _gram_rows(n: int) -> int:
    """Rows by which a symmetric N x N matrix is computed.

    Few enough to skip most of its lower half, enough for the matrix product to run at full speed.
    """
    return max(128, n // 8)


def _compute_dtype(*views: Tensor) -> torch.dtype:
    return functools.reduce(torch.promote_types, [z.dtype for z in views], torch.float32)


def _centre_into(
    x: Tensor, views: Sequence[Tensor], sizes: Sequence[int], group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Writes V views (N_p, D), each dimension less a number near its mean, to x (V, N_p, D).

    Returns:
        (V, 1, D) each: what to add to x for a mean of 0 over the global batch, and the sums of its
        squared deviations from the mean.
    """
    n = sum(sizes)
    # However far z is from 0, and whatever the order of its rows, the mean of one in eight is within
    # sqrt(8) standard deviations of the true one: the difference below keeps all digits but one.
    sums = torch.stack([z[::_ROWS_PER_SAMPLE].sum(0, keepdim=True, dtype=x.dtype) for z in views])
    sampled = sum(-(-size // _ROWS_PER_SAMPLE) for size in sizes)
    guess = all_reduce_sum_(sums, group).div_(sampled).unbind()

    def moments() -> Iterator[Tensor]:
        for block, *parts in _row_blocks(x, *views):
            for view, z, near in zip(block.unbind(), parts, guess):
                torch.sub(z, near, out=view)
            yield torch.stack((block.sum(1, keepdim=True), block.square().sum(1, keepdim=True)))

    sums, squares = all_reduce_sum_(_sum(moments()), group).unbind()
    shift = sums / -n
    return shift, squares.addcmul_(sums, shift)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, z: Tensor, eps: float, sizes: Sequence[int], group: ProcessGroup | None
    ) -> Tensor:
        n = sum(sizes)
        x = torch.empty_like(z, dtype=_compute_dtype(z))
        (shift,), (deviation,) = _centre_into(x[None], [z], sizes, group)
        inv_std = torch.rsqrt(deviation / n + eps)
        x.add_(shift).mul_(inv_std)
        ctx.save_for_backward(x, inv_std)
        ctx.n, ctx.group, ctx.dtype = n, group, z.dtype
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, inv_std = ctx.saved_tensors
        sums = torch.stack((grad.sum(0), (grad * x).sum(0)))
        mean, projection = all_reduce_sum_(sums, ctx.group) / ctx.n
        grad = inv_std * (grad - mean - x * projection)
        return grad.to(ctx.dtype), None, None, None


def _gram_matrices(x: Tensor, own: slice) -> Tensor:
    """The rows `own` of A A^T and B B^T, (2, N_p, N), for x = (A, B), (2, N, D)."""
    n = x.shape[1]
    columns = x.mT
    if own != slice(0, n):
        return x[:, own] @ columns
    grams = x.new_empty(2, n, n)
    step = _gram_rows(n)
    for i in range(0, n, step):
        # Symmetric: compute from the diagonal on, then mirror.
        rows, rest = slice(i, i + step), slice(i + step, n)
        torch.bmm(x[:, rows], columns[..., i:], out=grams[:, rows, i:])
        if i + step < n:
            grams[:, rest, rows] = grams[:, rows, rest].mT
    return grams


def _sum_of_products(x: Tensor, y: Tensor) -> Tensor:
    """sum(x * y) in float64, without a temporary of their size."""
    x, y = x.view(-1), y.view(-1)
    if x.device.type != "cpu" or x.numel() <= _CACHED_ELEMENTS:
        return torch.dot(x, y).double()
    blocks = zip(x.split(_CACHED_ELEMENTS), y.split(_CACHED_ELEMENTS))
    return torch.stack([torch.dot(*block) for block in blocks]).sum(dtype=torch.float64)


def _sums_of_squares(x: Tensor) -> Tensor:
    """Sums of the squares of a square matrix over columns and over rows, (2, 1, D)."""
    over_columns = x.new_empty(len(x), 1)

    def over_rows() -> Iterator[Tensor]:
        for block, sums in _row_blocks(x, over_columns):
            squares = block.square()
            torch.sum(squares, 1, keepdim=True, out=sums)
            yield squares.sum(0, keepdim=True)

    total = _sum(over_rows())
    return torch.stack((over_columns.T, total))


def _weighted_product_into(
    out: Tensor, x: Tensor, matrix: Tensor, weight: Tensor, diagonal: Tensor
) -> None:
    """out = x (matrix * weight - diag(diagonal)), by columns: no second D x D matrix."""
    for begin in range(0, len(matrix), _PRODUCT_COLUMNS):
        cols = slice(begin, begin + _PRODUCT_COLUMNS)
        weighted = matrix[:, cols] * weight[:, cols]
        weighted.diagonal(-begin).sub_(diagonal[0, cols])
        torch.mm(x, weighted, out=out[:, cols])


class _Terms(torch.autograd.Function):
    """(invariance, redundancy) of two views, with normalisation and both products in one node.

    Kept for the backward pass: the normalised views (of all processes in the Gram form) and either
    the two Gram matrices or the one D x D matrix.
    """

    @staticmethod
    def forward(ctx, z_a, z_b, eps, form, sizes, group, gradient_scale):
        n, world_size = sum(sizes), len(sizes)
        x = z_a.new_empty((2, *z_a.shape), dtype=_compute_dtype(z_a, z_b))

        def squared_distances(factor: Tensor, shift: Tensor) -> Iterator[Tensor]:
            # Backwards: the last rows were written last, and are in cache.
            for (block,) in reversed(_row_blocks(x)):
                torch.addcmul(shift, block, factor, out=block)
                yield mse_loss(*block.unbind(), reduction="none").sum(0)

        with torch.autocast(x.device.type, enabled=False):
            shift, deviation = _centre_into(x, (z_a, z_b), sizes, group)
            inv_square = (deviation + n * eps).reciprocal_()
            factor = inv_square.sqrt()
            gap = _sum(squared_distances(factor, shift.mul_(factor)))
            gap = all_reduce_sum_(gap, group).div_(2)
            # C_ii and 1 - C_ii from half the squared distance of the views: neither loses digits,
            # be the views nearly identical (1 - C_ii small) or nearly collapsed (C_ii small).
            diagonal = deviation.mul_(inv_square).mean((0, 1)).sub_(gap)
            shortfall = gap.add_(inv_square.mean((0, 1)), alpha=n * eps)
            invariance = torch.dot(shortfall, shortfall)

            own = slice(0, n)
            if form == "gram":
                if world_size > 1:
                    x = torch.stack([all_gather_rows(view, sizes, group) for view in x])
                    begin = sum(sizes[: rank(group)])
                    own = slice(begin, begin + z_a.shape[0])
                product = _gram_matrices(x, own)
                total = all_reduce_sum_(_sum_of_products(*product.unbind()), group)
                redundancy = (total - torch.dot(diagonal, diagonal)).to(x.dtype)
                along = None
            else:
                a, b = x.unbind()
                product = all_reduce_sum_(a.T @ b, group)
                product.diagonal().zero_()
                along = _sums_of_squares(product)
                redundancy = along[0].sum()
        ctx.save_for_backward(x, factor, diagonal, shortfall, product, along)
        ctx.form, ctx.own, ctx.group = form, own, group
        ctx.gradient_scale, ctx.dtypes = gradient_scale, (z_a.dtype, z_b.dtype)
        return invariance, redundancy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_invariance, grad_redundancy):
        everyone, factor, diagonal, shortfall, product, along = ctx.saved_tensors
        x = everyone[:, ctx.own]
        grad = torch.empty_like(x)
        # With P = B B^T A (or B C^T without its diagonal), the gradient with respect to z_a is
        # weight P - direct B, less its part along A, which normalisation takes away (its mean over
        # the batch is zero already). For z_b it is the same with A and B swapped.
        rate = factor * (2 * ctx.gradient_scale)
        weight = rate * grad_redundancy
        direct = shortfall * grad_invariance
        if ctx.form == "gram":
            direct.addcmul_(diagonal, grad_redundancy)
        direct = rate * direct
        (weight_a, weight_b), (direct_a, direct_b) = weight.unbind(), direct.unbind()

        with torch.autocast(x.device.type, enabled=False):
            if ctx.form == "gram":
                gram_a, gram_b = product.unbind()
                # By columns, as fast and with smaller buffers inside the product.
                for views, out in zip(*(y.split(_PRODUCT_COLUMNS, -1) for y in (everyone, grad))):
                    (a, b), (out_a, out_b) = views.unbind(), out.unbind()
                    torch.mm(gram_b, a, out=out_a)
                    torch.mm(gram_a, b, out=out_b)
                parts = ((g * v).sum(1, keepdim=True) for g, v in _row_blocks(grad, x))
                along = all_reduce_sum_(_sum(parts), ctx.group)
            kept = torch.addcmul(direct * diagonal, along, weight, value=-1)
            if ctx.form == "gram":
                for block, views in _row_blocks(grad, x):
                    block.mul_(weight).addcmul_(views, kept)
                    (grad_a, grad_b), (a, b) = block.unbind(), views.unbind()
                    grad_a.addcmul_(b, direct_a, value=-1)
                    grad_b.addcmul_(a, direct_b, value=-1)
            else:
                (grad_a, grad_b), (kept_a, kept_b), (a, b) = (y.unbind() for y in (grad, kept, x))
                # Each view's sum while its product is in cache.
                _weighted_product_into(grad_a, b, product.T, weight_a, direct_a)
                grad_a.addcmul_(a, kept_a)
                _weighted_product_into(grad_b, a, product, weight_b, direct_b)
                grad_b.addcmul_(b, kept_b)
        grad_a, grad_b = (g.to(dtype) for g, dtype in zip(grad.unbind(), ctx.dtypes))
        return grad_a, grad_b, None, None, None, None, None
