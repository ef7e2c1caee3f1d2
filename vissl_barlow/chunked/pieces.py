"""A step in pieces, each of which goes through the whole network on its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vissl_barlow.chunked.network import Network
from vissl_barlow.chunked.random_state import random_state, set_random_state
from vissl_barlow.chunked.whole_batch import (
    GradScaler,
    Repeatability,
    back_propagate,
    embed_afresh,
    first_of,
    loss_and_gradient,
)


def backward_at_once(
    embed: Callable[[Tensor], Tensor],
    views: Sequence[Tensor],
    loss: Callable[[Tensor, Tensor], Any],
    grad_scaler: GradScaler | None,
) -> Any:
    """The ordinary pass."""
    network = Network(embed, [len(views[0])])
    with network.watched():
        # DDP would broadcast the buffers again before the second pass, under the graph of the first.
        with network.no_sync():
            z_a = embed_afresh(embed, views[0])
        z_b = embed_afresh(embed, views[1])
    output = loss(z_a, z_b)
    value = first_of(output)
    back_propagate(value if grad_scaler is None else grad_scaler.scale(value))
    return output


def backward_in_pieces(
    embed: Callable[[Tensor], Tensor],
    views: Sequence[Tensor],
    rows_per_piece: Sequence[int],
    loss: Callable[[Tensor, Tensor], Any],
    grad_scaler: GradScaler | None,
) -> Any:
    """Embeds every piece without a graph but the last; takes the loss; embeds all others again.

    The graph of the last piece of the second view is kept from the first time on: it is in memory
    beside what the loss needs, and saves one forward pass.
    """
    network = Network(embed, rows_per_piece)
    pieces = [view.split(list(rows_per_piece)) for view in views]
    order = [(v, p) for v in range(len(views)) for p in range(len(rows_per_piece))]
    states = {}
    embeddings: list[list[Tensor]] = [[] for _ in views]
    with network.watched():
        for v, p in order[:-1]:
            states[v, p] = random_state()
            with torch.no_grad():
                embeddings[v].append(embed_afresh(embed, pieces[v][p]))
        v, p = order[-1]
        states[v, p] = random_state()
        with network.no_sync():
            kept = embed_afresh(embed, pieces[v][p])
    embeddings[v].append(kept.detach())

    output, gradients = loss_and_gradient(loss, embeddings, network, grad_scaler)
    state_after = random_state()
    rows = {v: g.split(list(rows_per_piece)) for v, g in enumerate(gradients) if g is not None}
    again = [(v, p) for v, p in order if v in rows]
    # DDP averages in the backward pass of the last piece, which must have begun in its sight.
    if again[-1] == order[-1] and len(again) > 1:
        again.pop()
        # Before the buffers go back: autograd notices what changes under a graph.
        with network.no_sync():
            _back_propagate_rows(kept, rows[v][p])
    del kept

    network.rewind_buffers()
    repeatability = Repeatability()
    for v, p in again:
        set_random_state(states[v, p])
        with contextlib.nullcontext() if (v, p) == again[-1] else network.no_sync():
            z = embed_afresh(embed, pieces[v][p])
            _back_propagate_rows(z, rows[v][p])
        repeatability.compare(z, embeddings[v][p])
    network.forward_buffers()
    set_random_state(state_after)
    repeatability.check()
    return output


def _back_propagate_rows(z: Tensor, gradient: Tensor) -> None:
    if not z.requires_grad:
        raise ValueError(
            "embed gives embeddings without a gradient: let a parameter of it require one"
        )
    back_propagate(z, gradient)
