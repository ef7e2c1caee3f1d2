"""What a step in pieces must know of the modules behind `embed`: their buffers, DDP, batch norm."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from vissl_barlow.distributed import batch_sizes, world_size
from vissl_barlow.sync_batch_norm import SyncBatchNorm


def uses_batch_statistics(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether `module` is a batch norm that normalises with its input's own statistics."""
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


def is_synchronised(module: nn.Module) -> TypeGuard[SyncBatchNorm | nn.SyncBatchNorm]:
    """Whether `module` is a batch norm whose statistics are taken over processes."""
    return (
        isinstance(module, SyncBatchNorm | nn.SyncBatchNorm)
        and module.training
        and world_size(module.process_group) > 1
    )


class Network:
    """The modules that `embed` runs.

    Where `embed` is a module or a module's method they are known beforehand. Of any other function,
    they are those that are called while `watched`.
    """

    def __init__(self, embed: Callable, rows_per_piece: Sequence[int]) -> None:
        self._rows_per_piece = rows_per_piece
        self._modules: set[nn.Module] = set()
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._ahead: list[Tensor] = []
        owner = embed if isinstance(embed, nn.Module) else getattr(embed, "__self__", None)
        self._is_known = isinstance(owner, nn.Module)
        if isinstance(owner, nn.Module):
            self._add(owner)
        elif hasattr(embed, "_torchdynamo_orig_callable"):
            raise ValueError(
                "embed is a compiled function, whose layers cannot be found: give a compiled module, "
                "or a function that calls one"
            )

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        if self._is_known:
            yield
            return

        def add(module: nn.Module, _: Any) -> None:
            # What is called within compiled code belongs to a module that was seen before it.
            if not torch.compiler.is_compiling():
                self._add(module)

        handle = register_module_forward_pre_hook(add)
        try:
            with warnings.catch_warnings():
                # That the hook fires for the wrapper of a compiled module, too, is what is wanted.
                warnings.filterwarnings(
                    "ignore", message=".*when there are global hooks on modules"
                )
                yield
        finally:
            handle.remove()

    def _add(self, module: nn.Module) -> None:
        if module in self._modules:
            return
        added = [m for m in module.modules() if m not in self._modules]
        self._modules.update(added)
        self._check_pieces(added)
        for m in added:
            own = (buffer for buffer in m.buffers(recurse=False))
            self._buffers.extend((buffer, buffer.clone()) for buffer in own)

    def _check_pieces(self, modules: Iterable[nn.Module]) -> None:
        sizes = self._rows_per_piece
        layers = [module for module in modules if uses_batch_statistics(module)]
        if len(sizes) > 1 and 1 in sizes and not all(map(is_synchronised, layers)):
            raise ValueError(
                f"chunk_size={max(sizes)} leaves a piece of 1 of the {sum(sizes)} rows, which has no "
                "batch statistics: choose a chunk_size that leaves more"
            )
        if any(map(is_synchronised, layers)):
            pieces = batch_sizes(len(sizes))
            if len(set(pieces)) > 1:
                raise ValueError(
                    f"chunk_size={max(sizes)} gives the processes {pieces} pieces, and synchronised "
                    "batch norm needs as many on each: give all processes as many rows"
                )

    @property
    def ddp_modules(self) -> list[DistributedDataParallel]:
        return [m for m in self._modules if isinstance(m, DistributedDataParallel)]

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients stay with this process, for forward passes and their backward passes in here."""
        with contextlib.ExitStack() as stack:
            for module in self.ddp_modules:
                stack.enter_context(module.no_sync())
            yield

    def check_loss(self, value: Tensor, embeddings: Sequence[Tensor]) -> None:
        """Raises ValueError where DDP would have to average a gradient that comes from the loss."""
        parameters = {p for module in self.ddp_modules for p in module.parameters()}
        found = parameters & _leaves(value) if parameters else set()
        if found:
            raise ValueError(
                f"loss uses {len(found)} parameter(s) of the network in DistributedDataParallel: let "
                "embed compute what depends on parameters, and loss only what is left"
            )
        if not _leaves(value) & set(embeddings):
            raise ValueError(
                "loss(z_a, z_b) has no gradient with respect to z_a or z_b: make it a differentiable "
                "function of the embeddings it is given"
            )

    def note_buffers(self) -> None:
        """Notes where the first pass and the loss have moved the buffers.

        Before any backward pass: activation checkpointing moves them again there.
        """
        self._ahead = [buffer.clone() for buffer, _ in self._buffers]

    @torch.no_grad()
    def rewind_buffers(self) -> None:
        """Puts the buffers where they were before the first pass."""
        _copy_all((buffer, before) for buffer, before in self._buffers)

    @torch.no_grad()
    def forward_buffers(self) -> None:
        """Puts the buffers where they were when they were noted."""
        _copy_all((buffer, after) for (buffer, _), after in zip(self._buffers, self._ahead))


def _copy_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for destination, source in pairs:
        destination.copy_(source)


def _leaves(value: Tensor) -> set[Tensor]:
    """The leaves of autograd's graph that `value` depends on."""
    leaves, seen, waiting = set(), set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        waiting.extend(parent for parent, _ in node.next_functions)
    return leaves
