"""`backward`: the modes of a step in pieces, and what is refused before any of them begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from vissl_barlow.chunked.pieces import backward_at_once, backward_in_pieces
from vissl_barlow.chunked.stages import backward_in_stages
from vissl_barlow.chunked.whole_batch import GradScaler
from vissl_barlow.distributed import batch_sizes

BATCH_NORM_MODES = ("per_piece", "per_view", "exact")


def backward(
    embed: Callable[[Tensor], Tensor],
    view_a: Tensor,
    view_b: Tensor,
    loss: Callable[[Tensor, Tensor], Any],
    *,
    chunk_size: int,
    batch_norm: str = "per_piece",
    stages: Sequence[nn.Module] | None = None,
    grad_scaler: GradScaler | None = None,
) -> Any:
    """Adds to `.grad` what one pass over the pieces of both views would, in the memory of one piece.

    With z the embeddings of all rows, theta the parameters and z_k the rows of piece k,
    dL/dtheta = sum_k (dL/dz_k) (dz_k/dtheta). A first pass without a graph gives z, from which the loss
    and dL/dz follow on all rows at once; a second gives one dz_k/dtheta after the other. Random layers
    draw the same numbers in both (from torch's, Python's and numpy's default generators), buffers such
    as running statistics move once, and generators and buffers end as after one pass.

    Call it where the forward pass would be: inside `torch.autocast` if there is one (the backward
    passes leave it). `embed` may be compiled, in channels_last, or DistributedDataParallel, which then
    averages gradients once, in the last piece. All processes call it, each with its own rows, and
    `loss` knows of the others, as `vissl_barlow.loss.barlow_twins_loss` does.

    Args:
        embed: maps (n, C, H, W) to (n, D) row by row, but for batch norm. A module, a module's method,
            or a function that calls modules.
        view_a, view_b: (N, C, H, W) each, N >= 1; row b of both comes from one image.
        loss: maps the two (N, D) embeddings to a scalar, or a tuple that begins with one.
        chunk_size: rows of a view in memory at a time, the last piece may have fewer; 0, or N and
            more: an ordinary pass over all of both views, whatever `batch_norm` says but "per_view".
        batch_norm: whose statistics each batch norm layer normalises with.
            "per_piece" (default): each piece its own, which is what unsynchronised batch norm does on
            as many devices. Time: at most one more forward pass, 4/3 of an ordinary step.
            "per_view": the view's, exactly as in the ordinary pass: the pieces are the two views,
            which halves the memory; give chunk_size 0. Time: 7/6.
            "exact": the view's, for any chunk_size, by as many sweeps over the pieces as there are
            batch norm layers in a stage. In memory: the inputs of all stages for all rows of one view,
            and the graph of one stage for one piece. Time: about (2.5 k + 5) / 3 of an ordinary step
            for k layers in each stage. Each piece draws its random numbers from a seed of its own,
            which torch's generator gives. Not for compiled modules, nor with activation checkpointing.
        stages: "exact" only: modules which, one after the other, compute what `embed` does. Default:
            `embed` is the only one, so that k counts all of its layers.
        grad_scaler: scales the loss on its way back, as in `grad_scaler.scale(loss).backward()`;
            unscaling, stepping and updating are left to the caller.

    Returns:
        What `loss(z_a, z_b)` returned.

    Raises:
        ValueError: views, chunk_size or options do not fit together; a piece of one row meets batch
            norm; `embed` or `loss` returned something else than said above; the loss uses parameters
            of a network in DistributedDataParallel; embeddings differ between the passes.
    """
    n = _checked_rows(view_a, view_b)
    sizes = piece_sizes(n, chunk_size)
    _check_modes(batch_norm, chunk_size, stages)
    views = (view_a, view_b)
    if batch_norm == "per_view":
        return backward_in_pieces(embed, views, [n], loss, grad_scaler)
    # One way for all processes: what they exchange, and in which order, differs between the two.
    if max(batch_sizes(len(sizes))) == 1:
        return backward_at_once(embed, views, loss, grad_scaler)
    if batch_norm == "exact":
        return backward_in_stages(embed, stages, views, sizes, loss, grad_scaler)
    return backward_in_pieces(embed, views, sizes, loss, grad_scaler)


def piece_sizes(rows: int, chunk_size: int) -> list[int]:
    """Rows of each piece of a view of `rows` rows: `chunk_size` each, the last what is left.

    Raises:
        ValueError: chunk_size is no whole number from 0 on.
    """
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 0:
        raise ValueError(
            f"chunk_size={chunk_size!r} must be a whole number of rows, or 0 for all at once"
        )
    if chunk_size == 0 or chunk_size >= rows:
        return [rows]
    whole, rest = divmod(rows, chunk_size)
    return [chunk_size] * whole + [rest] * (rest > 0)


def _checked_rows(view_a: Tensor, view_b: Tensor) -> int:
    if view_a.ndim < 1 or view_a.shape != view_b.shape or view_a.shape[0] == 0:
        raise ValueError(
            f"view_a has shape {tuple(view_a.shape)} and view_b {tuple(view_b.shape)}: give both views "
            "of the same images, at least one"
        )
    return view_a.shape[0]


def _check_modes(batch_norm: str, chunk_size: int, stages: Sequence[nn.Module] | None) -> None:
    if batch_norm not in BATCH_NORM_MODES:
        raise ValueError(
            f"batch_norm={batch_norm!r} is unknown: use one of {', '.join(BATCH_NORM_MODES)}"
        )
    if batch_norm == "per_view" and chunk_size:
        raise ValueError(
            f"chunk_size={chunk_size} has no effect with batch_norm='per_view', whose pieces are the "
            "two views: set it to 0, or batch_norm to 'exact'"
        )
    if stages is not None and (batch_norm != "exact" or not stages):
        raise ValueError(
            f"stages={stages!r} with batch_norm={batch_norm!r}: give at least one, and for 'exact' only"
        )
