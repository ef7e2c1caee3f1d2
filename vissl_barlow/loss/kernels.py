"""Equation 1 and its gradient as fused autograd nodes, in two exact forms.

Matrix products here are in place or have an `out`: autocast leaves such alone.

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
# Columns whose products are summed at a time, at least: fewer cost the product its speed.
_GRAM_COLUMNS = 512


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
        _, (shift,), (deviation,) = _centre_into(x[None], [z], sizes, group)
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

    Everything but the Gram matrices is of one dimension, and they are sums over dimensions. A CPU
    takes as many dimensions at a time as its caches hold. Where that is not all of them, it keeps
    the embeddings and normalises them again in the backward pass, and nothing of their size is
    written but the gradient; else the normalised views of all processes are kept. Each process has
    its own N_p rows of both Gram matrices.
    """

    @staticmethod
    def forward(ctx, z_a: Tensor, z_b: Tensor, options: TermsOptions) -> tuple[Tensor, Tensor]:
        sizes, own = options.sizes, _own_rows(options)
        grams = z_a.new_zeros((2, len(z_a), sum(sizes)), dtype=compute_dtype(z_a, z_b))
        parts = []
        for columns_a, columns_b in _column_blocks(options, z_a, z_b):
            views, statistics = _normalize_views(columns_a, columns_b, options)
            parts.append(statistics)
            # The name is used again so that the process's own rows are freed.
            views = _gather_views(views, own, options)
            _add_gram_matrices_(grams, views, own)
        _mirror_(grams, own)
        if len(parts) > 1:
            statistics = _Statistics(*(torch.cat(part, -1) for part in zip(*parts)))
        near_mean, factor, offset, deviation, half_squared_distance = statistics
        one_minus_diagonal = _one_minus_diagonal(statistics, options)
        # The factor twice, not its square, which may vanish where neither it nor the result does.
        squared_length = deviation.mul_(factor).mul_(factor)
        diagonal = squared_length.mean((0, 1)).sub_(half_squared_distance)
        invariance = torch.dot(one_minus_diagonal, one_minus_diagonal)
        total = all_reduce_sum_(_sum_of_products(*grams.unbind()), options.group)
        redundancy = (total - torch.dot(diagonal, diagonal)).to(grams.dtype)
        kept = (views,) if len(parts) == 1 else (z_a, z_b, near_mean, factor, offset)
        ctx.save_for_backward(factor, diagonal, one_minus_diagonal, grams, *kept)
        ctx.own, ctx.options, ctx.dtypes = own, options, (z_a.dtype, z_b.dtype)
        return invariance, redundancy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_invariance: Tensor, grad_redundancy: Tensor):
        factor, diagonal, one_minus_diagonal, grams, *kept = ctx.saved_tensors
        rate = factor * (2 * ctx.options.gradient_scale)
        weight = rate * grad_redundancy
        pull = one_minus_diagonal * grad_invariance
        pull = rate * pull.addcmul_(diagonal, grad_redundancy)
        grads = factor.new_empty(2, grams.shape[1], factor.shape[2])

        gram_a, gram_b = grams.unbind()
        columns = (grads, weight, pull, pull * diagonal, *kept)
        for out, weight, pull, pull_diagonal, *kept in _column_blocks(ctx.options, *columns):
            at_once = len(kept) == 1
            views = kept[0] if at_once else _normalized_again(*kept)
            grad = out if at_once else out.new_empty(out.shape)
            # grad = P; no faster all at once, but with larger buffers inside the product.
            for (a, b), (block_a, block_b) in _split(_PRODUCT_COLUMNS, views, grad):
                torch.mm(gram_b, a, out=block_a)
                torch.mm(gram_a, b, out=block_b)
            own = views[:, ctx.own]
            parts = ((p * x).sum(1, keepdim=True) for p, x in _row_blocks(grad, own))
            projection = all_reduce_sum_(_sum(parts), ctx.options.group)
            correction = torch.addcmul(pull_diagonal, projection, weight, value=-1)
            pull_a, pull_b = pull.unbind()
            # grad = weight P + correction A - pull B
            for rows, x, (out_a, out_b) in _row_blocks(grad, own, out):
                rows.mul_(weight).addcmul_(x, correction)
                (rows_a, rows_b), (a, b) = rows.unbind(), x.unbind()
                torch.addcmul(rows_a, b, pull_a, value=-1, out=out_a)
                torch.addcmul(rows_b, a, pull_b, value=-1, out=out_b)
        grad_a, grad_b = (g.to(dtype) for g, dtype in zip(grads.unbind(), ctx.dtypes))
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
        views, statistics = _normalize_views(z_a, z_b, options)
        one_minus_diagonal = _one_minus_diagonal(statistics, options)
        invariance = torch.dot(one_minus_diagonal, one_minus_diagonal)
        a, b = views.unbind()
        c = torch.mm(a.T, b, out=views.new_empty(2 * a.shape[1:]))
        off_diagonal = all_reduce_sum_(c, options.group)
        diagonal = off_diagonal.diagonal().clone()
        off_diagonal.fill_diagonal_(0)
        projection = _sums_of_squares(off_diagonal)
        redundancy = projection[0].sum()
        factor = statistics.factor
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
        # The product gives weight P - pull B at once: B (E^T diag(weight) - diag(pull)). Each view is
        # finished while its product is in cache.
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
    held = square.clamp(limits.tiny / limits.eps, limits.max)
    return square.where(square == held, math.nan)


class _Statistics(NamedTuple):
    """Of two views over the global batch, (2, 1, D) each: A = factor (z - near_mean) + offset."""

    near_mean: Tensor
    factor: Tensor
    """f."""
    offset: Tensor
    deviation: Tensor
    """S."""
    half_squared_distance: Tensor
    """h (D,)."""


def _normalize_views(z_a: Tensor, z_b: Tensor, options: TermsOptions) -> tuple[Tensor, _Statistics]:
    """A and B (2, N_p, D), and the statistics of z_a and z_b."""
    views = z_a.new_empty((2, *z_a.shape), dtype=compute_dtype(z_a, z_b))
    near_mean, shift, deviation = _centre_into(views, (z_a, z_b), options.sizes, options.group)
    factor = representable(deviation + sum(options.sizes) * options.eps).rsqrt_()
    offset = shift.mul_(factor)

    def squared_distances() -> Iterator[Tensor]:
        # From the last block to the first: `_centre_into` wrote the last ones last, so that they are
        # in the CPU's cache still.
        for (block,) in reversed(_row_blocks(views)):
            torch.addcmul(offset, block, factor, out=block)
            a, b = block.unbind()
            # One pass over memory, which (a - b).square() would make two.
            yield mse_loss(a, b, reduction="none").sum(0)

    half_squared_distance = all_reduce_sum_(_sum(squared_distances()), options.group).div_(2)
    return views, _Statistics(near_mean, factor, offset, deviation, half_squared_distance)


def _normalized_again(
    z_a: Tensor, z_b: Tensor, near_mean: Tensor, factor: Tensor, offset: Tensor
) -> Tensor:
    """The views of `_normalize_views`, to the bit, from what it found."""
    views = factor.new_empty((2, *z_a.shape))
    for view, z, near in zip(views.unbind(), (z_a, z_b), near_mean.unbind()):
        torch.sub(z, near, out=view)
    return torch.addcmul(offset, views, factor, out=views)


def _one_minus_diagonal(statistics: _Statistics, options: TermsOptions) -> Tensor:
    """1 - C_ii (D,)."""
    half_n_eps = sum(options.sizes) * options.eps / 2
    squares = statistics.factor.square().sum((0, 1))
    return torch.add(statistics.half_squared_distance, squares, alpha=half_n_eps)


def _centre_into(
    x: Tensor, views: Sequence[Tensor], sizes: Sequence[int], group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes V views (N_p, D), each dimension less a number near its mean, to x (V, N_p, D).

    Returns:
        (V, 1, D) each: that number, what to add to x for a mean of 0 over the global batch, and the
        sums of its squared deviations from the mean.
    """
    n = sum(sizes)
    # However far z is from 0, and whatever the order of its rows, the mean of one row in eight is
    # within sqrt(8) standard deviations of the true one. What is left of z after subtracting it is
    # small enough that the difference of squares below loses one digit at most.
    sums = torch.stack([z[::_ROWS_PER_SAMPLE].sum(0, keepdim=True, dtype=x.dtype) for z in views])
    sampled = sum(-(-size // _ROWS_PER_SAMPLE) for size in sizes)
    near_mean = all_reduce_sum_(sums, group).div_(sampled)

    def moments() -> Iterator[Tensor]:
        for block, *parts in _row_blocks(x, *views):
            for view, z, near in zip(block.unbind(), parts, near_mean.unbind()):
                torch.sub(z, near, out=view)
            yield torch.stack((block.sum(1, keepdim=True), block.square().sum(1, keepdim=True)))

    sums, squares = all_reduce_sum_(_sum(moments()), group).unbind()
    shift = sums / -n
    return near_mean, shift, squares.addcmul_(sums, shift)


def _own_rows(options: TermsOptions) -> slice:
    """Which rows of the global batch are this process's."""
    of_this = rank(options.group) if len(options.sizes) > 1 else 0
    first = sum(options.sizes[:of_this])
    return slice(first, first + options.sizes[of_this])


def _gather_views(views: Tensor, own: slice, options: TermsOptions) -> Tensor:
    """Both views' rows on all processes (2, N, D)."""
    sizes, group, dtype = options.sizes, options.group, options.gather_dtype
    if len(sizes) == 1:
        return views
    gathered = views.new_empty(2, sum(sizes), views.shape[2])
    for view, out in zip(views, gathered):
        out.copy_(all_gather_rows(view if dtype is None else view.to(dtype), sizes, group))
    if dtype is not None:
        gathered[:, own] = views
    return gathered


def _add_gram_matrices_(grams: Tensor, x: Tensor, own: slice) -> None:
    """Adds the rows `own` of A A^T and B B^T to (2, N_p, N), for x = (A, B), (2, N, D).

    Where they are all rows, the matrices are symmetric: those left of the diagonal's blocks are left
    to `_mirror_`.
    """
    columns = x.mT
    if own != slice(0, x.shape[1]):
        grams.baddbmm_(x[:, own], columns)
        return
    step = gram_block_rows(x.shape[1])
    for i in range(0, x.shape[1], step):
        rows = slice(i, i + step)
        grams[:, rows, i:].baddbmm_(x[:, rows], columns[..., i:])


def _mirror_(grams: Tensor, own: slice) -> None:
    """Completes what `_add_gram_matrices_` left."""
    n = grams.shape[2]
    if own == slice(0, n):
        step = gram_block_rows(n)
        for i in range(step, n, step):
            rows, rest = slice(i - step, i), slice(i, n)
            grams[:, rest, rows] = grams[:, rows, rest].mT


def _weighted_product_into(
    out: Tensor, x: Tensor, matrix: Tensor, weight: Tensor, diagonal: Tensor
) -> None:
    """out = x (matrix diag(weight) - diag(diagonal)), by columns: no second D x D matrix."""
    begin = 0
    for block, *of_columns, out_block in _split(_PRODUCT_COLUMNS, matrix, weight, diagonal, out):
        weighted = block * of_columns[0]
        weighted.diagonal(-begin).sub_(of_columns[1][0])
        torch.mm(x, weighted, out=out_block)
        begin += block.shape[1]


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


def _column_blocks(options: TermsOptions, *matrices: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The same columns (dimension -1) of all matrices at a time, as many as the CPU's caches hold."""
    # One block on a device, as in `_row_blocks`, where processes would wait for each other's, and where
    # the CPU's last cache holds all.
    rows, columns = matrices[0].shape[-2:]
    at_once = len(options.sizes) > 1 or rows * columns <= 16 * CACHED_ELEMENTS
    if at_once or matrices[0].device.type != "cpu":
        return [matrices]
    return _split(max(_GRAM_COLUMNS, CACHED_ELEMENTS // rows), *matrices)


def _split(columns: int, *matrices: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """So many columns of all matrices at a time."""
    if matrices[0].shape[-1] <= columns:
        return [matrices]
    return zip(*(x.split(columns, -1) for x in matrices))


def _row_blocks(x: Tensor, *others: Tensor) -> Sequence[tuple[Tensor, ...]]:
    """The same rows (dimension -2) of all matrices at a time, as many as the CPU's cache holds."""
    # One block on a device, whose cache is larger, and where launching kernels costs more than memory
    # traffic; one, too, where the CPU would need up to four, which cost more than they save.
    if x.device.type != "cpu" or x.numel() <= 4 * CACHED_ELEMENTS:
        return [(x, *others)]
    rows = rows_in_cache(x, -2)
    return list(zip(*(y.split(rows, -2) for y in (x, *others))))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(Tensor.add_, parts)
