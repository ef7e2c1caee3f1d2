"""What is done with all rows at once: the loss of the embeddings, and its gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vissl_barlow.chunked.network import Network

# Another draw of random layers, even rare ones, moves embeddings by more than this share of their
# length; another kernel of the same precision does not.
_REPEATABLE = 0.1


class GradScaler(Protocol):
    """`torch.amp.GradScaler`, or whatever scales a loss as it does."""

    def scale(self, outputs: Tensor, /) -> Any: ...


class LossGradient(NamedTuple):
    """What the loss returned, and the scaled dL/dz of each view, None where there is none."""

    output: Any
    gradients: tuple[Tensor | None, Tensor | None]


def loss_and_gradient(
    loss: Callable[[Tensor, Tensor], Any],
    embeddings: Sequence[Sequence[Tensor]],
    network: Network,
    grad_scaler: GradScaler | None,
) -> LossGradient:
    """Takes the loss of the joined pieces of both views, and back-propagates it to them.

    Parameters that the loss has of its own get their gradients here.
    """
    z_a, z_b = (torch.cat([z.detach() for z in view]).requires_grad_() for view in embeddings)
    output = loss(z_a, z_b)
    network.note_buffers()
    value = first_of(output)
    network.check_loss(value, (z_a, z_b))
    back_propagate(value if grad_scaler is None else grad_scaler.scale(value))
    gradients = (z_a.grad, z_b.grad)
    # The caller may keep the loss, and with it these leaves.
    z_a.grad = z_b.grad = None
    return LossGradient(output, gradients)


def first_of(output: Any) -> Tensor:
    """The scalar that `loss` returned, alone or first in a tuple.

    Raises:
        ValueError: it is no scalar tensor.
    """
    value = output[0] if isinstance(output, tuple) else output
    if not isinstance(value, Tensor) or value.ndim:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"loss returned {shape}: return a scalar tensor, or a tuple that begins with one"
        )
    return value


@contextlib.contextmanager
def outside_autocast(x: Tensor) -> Iterator[None]:
    """For backward passes: they compute in the precision that their forward pass chose."""
    with torch.autocast("cpu", enabled=False), torch.autocast(x.device.type, enabled=False):
        yield


def back_propagate(output: Tensor, gradient: Tensor | None = None) -> None:
    with outside_autocast(output):
        output.backward(gradient)


def embed_afresh(embed: Callable[[Tensor], Tensor], piece: Tensor) -> Tensor:
    """`embed(piece)`, whose result must be rows of it."""
    # Autocast keeps the copies of weights it has made. In torch before pull request 165068, those of a
    # pass without a graph leave the weights of a later pass without a gradient; in any version, those
    # from before an optimizer's step are out of date.
    torch.clear_autocast_cache()
    z = embed(piece)
    if not isinstance(z, Tensor) or z.ndim < 1 or z.shape[0] != piece.shape[0]:
        shape = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(
            f"embed returned {shape} for {piece.shape[0]} rows: return one tensor with a row for each"
        )
    return z


class Repeatability:
    """Compares the embeddings of the first and the second pass, without waiting for the device."""

    def __init__(self) -> None:
        self._squares: list[Tensor] = []

    @torch.no_grad()
    def compare(self, z: Tensor, first: Tensor) -> None:
        first = first.float()
        norms = (torch.linalg.vector_norm(z.float() - first), torch.linalg.vector_norm(first))
        self._squares.append(torch.stack(norms).square())

    def check(self) -> None:
        """Waits for the device, once.

        Raises:
            ValueError: the passes differ by more than rounding.
        """
        difference, norm = torch.stack(self._squares).sum(0).sqrt().tolist()
        if difference > _REPEATABLE * norm:
            raise ValueError(
                f"embed gave other embeddings for the same rows the second time (they differ by "
                f"{difference / max(norm, 1e-30):.0%}), and .grad is of neither: draw random numbers "
                "from the default generators only, and count no calls"
            )
