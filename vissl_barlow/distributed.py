"""Sums and gathers over processes, and the rule their gradients follow; on one process they do nothing.

Every process runs the same program on its own rows. What is differentiated is the sum, over the
processes, of the number each one calls `backward` on. The backward pass of a sum over processes is
therefore the same sum, of the gradients. If that number is a loss of the global batch, equal on all
`W` processes, each process gets `W` times the true gradient with respect to its own rows, and the
average that DistributedDataParallel takes of the parameters' gradients is the true gradient.

`group=None` means the default group where torch.distributed is initialised, else this process
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size(group: ProcessGroup | None = None) -> int:
    """Number of processes in `group`."""
    return dist.get_world_size(group) if is_distributed() else 1


def rank(group: ProcessGroup | None = None) -> int:
    """Index of this process in `group`."""
    return dist.get_rank(group) if is_distributed() else 0


# Weak: a group that is kept after `destroy_process_group` keeps its threads, and one of them may
# abort the process when the interpreter exits.
_host_groups: WeakKeyDictionary[ProcessGroup, ProcessGroup] = WeakKeyDictionary()


def _host_group(group: ProcessGroup) -> ProcessGroup:
    """A group of the same processes that moves host memory: `group` itself, or one over gloo."""
    if "cpu:" in dist.get_backend_config(group):
        return group
    if group not in _host_groups:
        ranks = dist.get_process_group_ranks(group)
        host = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
        _host_groups[group] = cast(ProcessGroup, host)  # this process is one of its ranks
    return _host_groups[group]


def batch_sizes(local_size: int, group: ProcessGroup | None = None) -> tuple[int, ...]:
    """Rows held by each process of `group`, in order of rank.

    The numbers travel between hosts (over gloo where the group itself moves device memory only), so
    that the accelerator is never waited for.
    """
    if is_distributed():
        group = group or dist.group.WORLD
    if group is None or world_size(group) == 1:
        return (local_size,)
    host_group = _host_group(group)
    sizes = torch.empty(world_size(group), dtype=torch.int64)
    dist.all_gather_into_tensor(sizes, torch.tensor([local_size]), group=host_group)
    return tuple(sizes.tolist())


def all_reduce_sum_(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Replaces `x` by its sum over processes, outside of autograd; returns it."""
    if world_size(group) > 1:
        dist.all_reduce(x, group=group)
    return x


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        return all_reduce_sum_(x.clone(memory_format=torch.contiguous_format), group)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        return all_reduce_sum_(grad, ctx.group), None


def all_reduce_sum(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Sum of `x` over processes, differentiable by the rule at the top of this module."""
    return _AllReduceSum.apply(x, group) if world_size(group) > 1 else x


def all_gather_rows(x: Tensor, sizes: Sequence[int], group: ProcessGroup | None = None) -> Tensor:
    """Concatenates the (N_p, D) rows of all processes in order of rank, outside of autograd.

    Args:
        x: contiguous rows of this process.
        sizes: N_p of every process, as `batch_sizes` gives them; they may differ.

    Returns:
        (sum of sizes, D), equal on all processes; `x` itself on one process.
    """
    if len(sizes) == 1:
        return x
    longest = max(sizes)
    gathered = x.new_empty(len(sizes) * longest, *x.shape[1:])
    if min(sizes) == longest:
        dist.all_gather_into_tensor(gathered, x, group=group)
        return gathered
    padded = x.new_zeros(longest, *x.shape[1:])
    padded[: x.shape[0]] = x
    dist.all_gather_into_tensor(gathered, padded, group=group)
    return torch.cat([part[:n] for part, n in zip(gathered.split(longest), sizes)])


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied by `factor` on its way back."""
    return x if factor == 1 else _ScaleGradient.apply(x, factor)
