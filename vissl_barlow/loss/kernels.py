"""Equation 1 and its gradient as fused autograd nodes, in two exact forms.

`barlow_twins.equation_1` is what both compute. N rows of the global batch, N_p of them on this
process, D dimensions; i, j are dimensions, b is a row. Of a view z (N, D),

    A_i = f_i (z_i - mean_b z_bi),   f_i = 1 / sqrt(S_i + N eps),   S_i = sum_b (z_bi - mean_b z_bi)^2

is the normalised one, B the same of the other view, and C = A^T B. The two terms are

    invariance = sum_i (1 - C_ii)^2,   redundancy = sum_ij C_ij^2 - sum_i C_ii^2.

C_ii and 1 - C_ii are both taken from h_i = sum_b (A_bi - B_bi)^2 / 2, half the squared distance:

    1 - C_ii = h_i + N eps (f^A_i^2 + f^B_i^2) / 2,   C_ii = (S^A_i f^A_i^2 + S^B_i f^B_i^2) / 2 - h_i

so that neither loses digits, be the views nearly identical (1 - C_ii is small) or nearly collapsed
(C_ii is small).

Gradient. Let g_inv and g_red be what arrives for the two terms. From C = A^T B, with respect to A,

    G_i = 2 g_red sum_{j != i} C_ij B_j - 2 g_inv (1 - C_ii) B_i

and through the normalisation, with respect to z,

    dL/dz_i = f_i (G_i - A_i <A_i, G_i>),

the part of G_i along A_i taken away (its mean over the batch is 0 already, since B_j's is). With

    weight_i     = 2 f_i g_red
    P_i          = sum_j C_ij B_j                 all j in the Gram form, j != i in the correlation form
    pull_i       = 2 f_i (g_inv (1 - C_ii) + g_red C_ii)                             in the Gram form
    pull_i       = 2 f_i  g_inv (1 - C_ii)                                    in the correlation form
    projection_i = <A_i, P_i>
    correction_i = pull_i C_ii - weight_i projection_i

that is

    dL/dz_i = weight_i P_i - pull_i B_i + correction_i A_i.

For the other view A and B swap, and C is transposed. `gradient_scale` multiplies it all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn.functional import mse_loss

from vissl_barlow.cpu_cache import CACHED_ELEMENTS, rows_in_cache
from vissl_barlow.distributed import all_gather_rows, all_reduce_sum_, rank
from vissl_barlow.loss.form import gram_block_rows

# One row in so many is summed for a number near the mean, which is then subtracted from all rows.
_ROWS_PER_SAMPLE = 8
# Columns of a matrix product that are computed at a time: enough for full speed.
_PRODUCT_COLUMNS = 2048


class Normalize(torch.autograd.Function):
    """z (N_p, D) with mean 0 and variance 1 over the global batch: x = (z - mean) / sqrt(var + eps).

    With r = 1 / sqrt(var + eps), the gradient is r (g - mean_b g - x mean_b(g x)).
    """

    @staticmethod
    def forward(
        ctx, z: Tensor, eps: float, sizes: Sequence[int], group: ProcessGroup | None
    ) -> Tensor:
        n = sum(sizes)
        x = torch.empty_like(z, dtype=compute_dtype(z))
        (shift,), (deviation,) = _centre_into(x[None], [z], sizes, group)
        inv_std = representable(deviation / n + eps).rsqrt_()
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


class TermsOptions(NamedTuple):
    """What the two nodes below need besides the embeddings."""

    eps: float
    sizes: Sequence[int]
    """N_p of every process."""
    group: ProcessGroup | None
    gradient_scale: float
    """W / reference_world_size, by which the gradient is multiplied."""
    gather_dtype: torch.dtype | None = None
    """What the rows of other processes are rounded to on their way; None: not at all."""


class GramTerms(torch.autograd.Function):
    """(invariance, redundancy) by the Gram matrices A A^T and B B^T (N x N); C is never formed.

        sum_ij C_ij^2 = sum_bb' (A A^T)_bb' (B B^T)_bb'
        P = sum_j C_ij B_j = B B^T A  for the first view,  A A^T B  for the second

    A process has its own N_p rows of both Gram matrices, and the normalised views of all processes;
    these are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, z_a: Tensor, z_b: Tensor, options: TermsOptions) -> tuple[Tensor, Tensor]:
        with torch.autocast(z_a.device.type, enabled=False):
            views, factor, diagonal, one_minus_diagonal = _normalize_views(z_a, z_b, options)
            invariance = torch.dot(one_minus_diagonal, one_minus_diagonal)
            # From here on of all processes; the name is used again so that its own rows are freed.
            views, own = _gather_views(views, options)
            grams = _gram_matrices(views, own)
            total = all_reduce_sum_(_sum_of_products(*grams.unbind()), options.group)
            redundancy = (total - torch.dot(diagonal, diagonal)).to(views.dtype)
        ctx.save_for_backward(views, factor, diagonal, one_minus_diagonal, grams)
        ctx.own, ctx.group = own, options.group
        ctx.gradient_scale, ctx.dtypes = options.gradient_scale, (z_a.dtype, z_b.dtype)
        return invariance, redundancy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_invariance: Tensor, grad_redundancy: Tensor):
        all_rows, factor, diagonal, one_minus_diagonal, grams = ctx.saved_tensors
        views = all_rows[:, ctx.own]
        grad = torch.empty_like(views)
        rate = factor * (2 * ctx.gradient_scale)
        weight = rate * grad_redundancy
        pull = one_minus_diagonal * grad_invariance
        pull = rate * pull.addcmul_(diagonal, grad_redundancy)
        pull_a, pull_b = pull.unbind()

        with torch.autocast(views.device.type, enabled=False):
            gram_a, gram_b = grams.unbind()
            # grad = P, by columns: as fast as at once, with smaller buffers inside the product.
            for columns, out in zip(*(x.split(_PRODUCT_COLUMNS, -1) for x in (all_rows, grad))):
                (a, b), (out_a, out_b) = columns.unbind(), out.unbind()
                torch.mm(gram_b, a, out=out_a)
                torch.mm(gram_a, b, out=out_b)
            parts = ((p * x).sum(1, keepdim=True) for p, x in _row_blocks(grad, views))
            projection = all_reduce_sum_(_sum(parts), ctx.group)
            correction = torch.addcmul(pull * diagonal, projection, weight, value=-1)
            # grad_a = weight P - pull B + correction A
            for block, rows in _row_blocks(grad, views):
                block.mul_(weight).addcmul_(rows, correction)
                (grad_a, grad_b), (a, b) = block.unbind(), rows.unbind()
                grad_a.addcmul_(b, pull_a, value=-1)
                grad_b.addcmul_(a, pull_b, value=-1)
        grad_a, grad_b = (g.to(dtype) for g, dtype in zip(grad.unbind(), ctx.dtypes))
        return grad_a, grad_b, None


class CorrelationTerms(torch.autograd.Function):
    """(invariance, redundancy) by C (D x D), of which only the part off the diagonal is kept.

        E = C without its diagonal
        redundancy = sum_ij E_ij^2
        P = B E^T  for the first view,  A E  for the second
        projection_i = sum_j E_ij^2  for the first view,  sum_j E_ji^2  for the second

    A process keeps E, its own normalised rows and the projections for the backward pass.
    """

    @staticmethod
    def forward(ctx, z_a: Tensor, z_b: Tensor, options: TermsOptions) -> tuple[Tensor, Tensor]:
        with torch.autocast(z_a.device.type, enabled=False):
            views, factor, diagonal, one_minus_diagonal = _normalize_views(z_a, z_b, options)
            invariance = torch.dot(one_minus_diagonal, one_minus_diagonal)
            a, b = views.unbind()
            off_diagonal = all_reduce_sum_(a.T @ b, options.group)
            off_diagonal.diagonal().zero_()
            projection = _sums_of_squares(off_diagonal)
            redundancy = projection[0].sum()
        ctx.save_for_backward(views, factor, diagonal, one_minus_diagonal, off_diagonal, projection)
        ctx.gradient_scale, ctx.dtypes = options.gradient_scale, (z_a.dtype, z_b.dtype)
        return invariance, redundancy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_invariance: Tensor, grad_redundancy: Tensor):
        views, factor, diagonal, one_minus_diagonal, off_diagonal, projection = ctx.saved_tensors
        rate = factor * (2 * ctx.gradient_scale)
        weight = rate * grad_redundancy
        pull = rate * (one_minus_diagonal * grad_invariance)
        correction = torch.addcmul(pull * diagonal, projection, weight, value=-1)
        (weight_a, weight_b), (pull_a, pull_b) = weight.unbind(), pull.unbind()
        correction_a, correction_b = correction.unbind()

        a, b = views.unbind()
        grad_a, grad_b = torch.empty_like(views).unbind()
        with torch.autocast(views.device.type, enabled=False):
            # The product gives weight P - pull B at once: B (E^T diag(weight) - diag(pull)). Each view
            # is finished while its product is in cache.
            _weighted_product_into(grad_a, b, off_diagonal.T, weight_a, pull_a)
            grad_a.addcmul_(a, correction_a)
            _weighted_product_into(grad_b, a, off_diagonal, weight_b, pull_b)
            grad_b.addcmul_(b, correction_b)
        grad_a, grad_b = (g.to(dtype) for g, dtype in zip((grad_a, grad_b), ctx.dtypes))
        return grad_a, grad_b, None


def compute_dtype(*views: Tensor) -> torch.dtype:
    """What the loss of these embeddings is computed in: float32, or wider if one of them is."""
    return functools.reduce(torch.promote_types, [z.dtype for z in views], torch.float32)


def representable(square: Tensor) -> Tensor:
    """Sums of squares, NaN in place of those that their dtype does not hold.

    In float32, those above 3e38 (embeddings of 1e19), whose inverse would pass for 0, and below 1e-31
    (embeddings of 1e-16 and an eps of 0), which have lost digits. A loss of such embeddings is NaN, in
    every form.
    """
    limits = torch.finfo(square.dtype)
    held = (square >= limits.tiny / limits.eps) & (square <= limits.max)
    return square.where(held, math.nan)


class _NormalizedViews(NamedTuple):
    """Two normalised views and what both terms take from them; the names are the module's."""

    views: Tensor
    """(2, N_p, D): A and B."""
    factor: Tensor
    """(2, 1, D): f of either view."""
    diagonal: Tensor
    """(D,): C_ii."""
    one_minus_diagonal: Tensor
    """(D,): 1 - C_ii."""


def _normalize_views(z_a: Tensor, z_b: Tensor, options: TermsOptions) -> _NormalizedViews:
    n, eps = sum(options.sizes), options.eps
    views = z_a.new_empty((2, *z_a.shape), dtype=compute_dtype(z_a, z_b))
    shift, deviation = _centre_into(views, (z_a, z_b), options.sizes, options.group)
    factor = representable(deviation + n * eps).rsqrt_()
    shift.mul_(factor)

    def squared_distances() -> Iterator[Tensor]:
        # From the last block to the first: `_centre_into` wrote the last ones last, so that they are
        # in the CPU's cache still.
        for (block,) in reversed(_row_blocks(views)):
            torch.addcmul(shift, block, factor, out=block)
            a, b = block.unbind()
            # One pass over memory, which (a - b).square() would make two.
            yield mse_loss(a, b, reduction="none").sum(0)

    half_squared_distance = all_reduce_sum_(_sum(squared_distances()), options.group).div_(2)
    # The factor twice, not its square, which may vanish where neither it nor the result does.
    squared_length = deviation.mul_(factor).mul_(factor)
    diagonal = squared_length.mean((0, 1)).sub_(half_squared_distance)
    one_minus_diagonal = half_squared_distance.add_(factor.square().mean((0, 1)), alpha=n * eps)
    return _NormalizedViews(views, factor, diagonal, one_minus_diagonal)


def _centre_into(
    x: Tensor, views: Sequence[Tensor], sizes: Sequence[int], group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Writes V views (N_p, D), each dimension less a number near its mean, to x (V, N_p, D).

    Returns:
        (V, 1, D) each: what to add to x for a mean of 0 over the global batch, and the sums of its
        squared deviations from the mean.
    """
    n = sum(sizes)
    # However far z is from 0, and whatever the order of its rows, the mean of one row in eight is
    # within sqrt(8) standard deviations of the true one. What is left of z after subtracting it is
    # small enough that the difference of squares below loses one digit at most.
    sums = torch.stack([z[::_ROWS_PER_SAMPLE].sum(0, keepdim=True, dtype=x.dtype) for z in views])
    sampled = sum(-(-size // _ROWS_PER_SAMPLE) for size in sizes)
    near_mean = all_reduce_sum_(sums, group).div_(sampled).unbind()

    def moments() -> Iterator[Tensor]:
        for block, *parts in _row_blocks(x, *views):
            for view, z, near in zip(block.unbind(), parts, near_mean):
                torch.sub(z, near, out=view)
            yield torch.stack((block.sum(1, keepdim=True), block.square().sum(1, keepdim=True)))

    sums, squares = all_reduce_sum_(_sum(moments()), group).unbind()
    shift = sums / -n
    return shift, squares.addcmul_(sums, shift)


def _gather_views(views: Tensor, options: TermsOptions) -> tuple[Tensor, slice]:
    """Both views' rows on all processes (2, N, D), and which of them are this process's."""
    sizes, group, dtype = options.sizes, options.group, options.gather_dtype
    if len(sizes) == 1:
        return views, slice(0, sizes[0])
    first = sum(sizes[: rank(group)])
    own = slice(first, first + views.shape[1])
    gathered = views.new_empty(2, sum(sizes), views.shape[2])
    for view, out in zip(views, gathered):
        out.copy_(all_gather_rows(view if dtype is None else view.to(dtype), sizes, group))
    if dtype is not None:
        gathered[:, own] = views
    return gathered, own


def _gram_matrices(x: Tensor, own: slice) -> Tensor:
    """The rows `own` of A A^T and B B^T, (2, N_p, N), for x = (A, B), (2, N, D)."""
    n = x.shape[1]
    columns = x.mT
    if own != slice(0, n):
        return x[:, own] @ columns
    grams = x.new_empty(2, n, n)
    step = gram_block_rows(n)
    for i in range(0, n, step):
        # Symmetric: compute from the diagonal on, then mirror.
        rows, rest = slice(i, i + step), slice(i + step, n)
        torch.bmm(x[:, rows], columns[..., i:], out=grams[:, rows, i:])
        if i + step < n:
            grams[:, rest, rows] = grams[:, rows, rest].mT
    return grams


def _weighted_product_into(
    out: Tensor, x: Tensor, matrix: Tensor, weight: Tensor, diagonal: Tensor
) -> None:
    """out = x (matrix diag(weight) - diag(diagonal)), by columns: no second D x D matrix."""
    for begin in range(0, len(matrix), _PRODUCT_COLUMNS):
        cols = slice(begin, begin + _PRODUCT_COLUMNS)
        weighted = matrix[:, cols] * weight[:, cols]
        weighted.diagonal(-begin).sub_(diagonal[0, cols])
        torch.mm(x, weighted, out=out[:, cols])


def _sums_of_squares(x: Tensor) -> Tensor:
    """Sums of the squares of a D x D matrix, of each row and of each column, (2, 1, D)."""
    of_rows = x.new_empty(len(x), 1)

    def of_columns() -> Iterator[Tensor]:
        for block, sums in _row_blocks(x, of_rows):
            squares = block.square()
            torch.sum(squares, 1, keepdim=True, out=sums)
            yield squares.sum(0, keepdim=True)

    total = _sum(of_columns())
    return torch.stack((of_rows.T, total))


def _sum_of_products(x: Tensor, y: Tensor) -> Tensor:
    """sum(x * y) in float64, without a temporary of their size."""
    x, y = x.view(-1), y.view(-1)
    if x.device.type != "cpu" or x.numel() <= CACHED_ELEMENTS:
        return torch.dot(x, y).double()
    blocks = zip(x.split(CACHED_ELEMENTS), y.split(CACHED_ELEMENTS))
    return torch.stack([torch.dot(*block) for block in blocks]).sum(dtype=torch.float64)


def _row_blocks(x: Tensor, *others: Tensor) -> Sequence[tuple[Tensor, ...]]:
    """The same rows (dimension -2) of all matrices at a time, as many as the CPU's cache holds."""
    # One block on a device, whose cache is larger, and where launching kernels costs more than memory
    # traffic; one, too, where the CPU would need two, which cost more than they save.
    if x.device.type != "cpu" or x.numel() <= 2 * CACHED_ELEMENTS:
        return [(x, *others)]
    rows = rows_in_cache(x, -2)
    return list(zip(*(y.split(rows, -2) for y in (x, *others))))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(Tensor.add_, parts)
