"""Which of the two exact forms of sum_ij C_ij^2 is cheaper.

With A, B (N, D) the normalised views and C = A^T B, the sum of the squares of C is
sum((A A^T) * (B B^T)): N x N memory instead of D x D, and fewer operations where N < D. The form is
"correlation" where C (D x D) is computed and "gram" where the two Gram matrices (N x N) are.
"""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

from vissl_barlow.loss.terms import check

logger = logging.getLogger(__name__)

FORMS = ("auto", "correlation", "gram")

# Floating-point operations that take as long as moving one byte from memory, and between processes.
_OPS_PER_BYTE = 12
_OPS_PER_BYTE_SENT = 150


def resolve_form(form: str, n: int, d: int, world_size: int) -> str:
    """`form`, or what `choose_form` says where it is "auto".

    Raises:
        ValueError: `form` is none of `FORMS`.
    """
    check(form in FORMS, "form", form, f"one of {', '.join(FORMS)}")
    return choose_form(n, d, world_size) if form == "auto" else form


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
        forward = _symmetric_gram_operations(n, d) if world_size == 1 else 2 * rows * n * d
        return FormCost(2 * (forward + 2 * rows * n * d), 4 * 6 * rows * n, 4 * 2 * n * d * others)
    return FormCost(6 * rows * d * d, 4 * 6 * d * d, 4 * 2 * d * d * others)


def gram_block_rows(n: int) -> int:
    """How many rows of a symmetric N x N matrix are computed at a time.

    Few enough to skip most of its lower half, enough for the matrix product to run at full speed.
    """
    return max(64, n // 8)


def _symmetric_gram_operations(n: int, d: int) -> float:
    rows = gram_block_rows(n)
    return sum(2 * min(rows, n - i) * (n - i) * d for i in range(0, n, rows))
