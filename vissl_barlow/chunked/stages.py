"""A step in pieces whose batch norm layers see the whole batch: exact, by sweeps over the pieces.

A network is a chain of stages. Stage by stage the batch norm layers are taken in the order of their
calls, k in a stage:

- forward, once per layer: all pieces run up to the layer, whose statistics are pooled from theirs. With
  all statistics known, a last sweep gives the inputs of the next stage;
- backward, once per layer from the last to the first: dL/dx of a batch norm (see
  `vissl_barlow.sync_batch_norm`) needs the sums of g and g x^ over all rows, and g is known when the
  sums of all later layers are. All pieces run the stage with a graph, back to the layer, and their
  sums are added. With all sums known, a last sweep gives the parameters' gradients, and the gradient
  of the stage's inputs.

Every sweep starts a piece from the same seed. Statistics and sums of synchronised layers are those of
all processes, which need not have as many pieces each.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from vissl_barlow.chunked.network import Network, is_synchronised, uses_batch_statistics
from vissl_barlow.chunked.random_state import (
    draw_seed,
    random_state,
    seed_all,
    set_random_state,
)
from vissl_barlow.chunked.whole_batch import (
    GradScaler,
    Repeatability,
    embed_afresh,
    loss_and_gradient,
    outside_autocast,
)
from vissl_barlow.distributed import all_reduce_sum_
from vissl_barlow.sync_batch_norm import (
    Statistics,
    batch_statistics,
    check_count,
    normalize,
    pooled_statistics,
    update_running_statistics,
)


def backward_in_stages(
    embed: Callable[[Tensor], Tensor],
    stages: Sequence[nn.Module] | None,
    views: Sequence[Tensor],
    rows_per_piece: Sequence[int],
    loss: Callable[[Tensor, Tensor], Any],
    grad_scaler: GradScaler | None,
) -> Any:
    if not isinstance(embed, nn.Module):
        raise ValueError(
            f"embed is a {type(embed).__name__}, of which batch_norm='exact' cannot tell whether it is "
            "in DistributedDataParallel: give a module"
        )
    # One piece as far as its checks go: here the layers see all rows, however they are cut.
    network = Network(embed, [sum(rows_per_piece)])
    if stages is None:
        stages = [embed.module if isinstance(embed, DistributedDataParallel) else embed]
    check_stages(embed, stages)
    pieces = [view.split(list(rows_per_piece)) for view in views]
    chains = [
        [_Stage(stage, len(rows_per_piece), is_first=i == 0) for i, stage in enumerate(stages)]
        for _ in views
    ]
    state = random_state()
    with torch.no_grad():
        embeddings = [_embed(chain, x) for chain, x in zip(chains, pieces)]
    set_random_state(state)
    output, gradients = loss_and_gradient(loss, embeddings, network, grad_scaler)
    state = random_state()
    repeatability = Repeatability()
    for chain, x, first, gradient in zip(chains, pieces, embeddings, gradients):
        if gradient is not None:
            _back_propagate(chain, x, first, gradient.split(list(rows_per_piece)), repeatability)
    set_random_state(state)
    for module in network.ddp_modules:
        _average_gradients(module)
    repeatability.check()
    return output


def check_stages(embed: nn.Module, stages: Sequence[Any]) -> None:
    """Raises ValueError unless the modules `stages` can do what `embed` does, in many sweeps."""
    for i, stage in enumerate(stages):
        if not isinstance(stage, nn.Module):
            raise ValueError(
                f"stages[{i}] is a {type(stage).__name__}, whose batch norm layers cannot be found: "
                "give modules"
            )
        if any(isinstance(m, torch._dynamo.OptimizedModule) for m in stage.modules()):
            raise ValueError(
                f"stages[{i}] is compiled, and batch_norm='exact' runs its layers one by one: give "
                "the module from before torch.compile"
            )
        moving = [
            name
            for name, _ in stage.named_buffers()
            if not isinstance(stage.get_submodule(name.rpartition(".")[0]), _BatchNorm)
        ]
        if moving:
            raise ValueError(
                f"stages[{i}] has the buffer {moving[0]!r}, which many sweeps may move as often: "
                "batch_norm='exact' takes networks whose only buffers are batch norm's"
            )
    expected = dict(embed.named_parameters())
    found = {f"stages[{i}].{n}": p for i, s in enumerate(stages) for n, p in s.named_parameters()}
    for here, there, where in ((expected, found, "stages lack"), (found, expected, "embed lacks")):
        others = set(there.values())
        missing = [name for name, parameter in here.items() if parameter not in others]
        if missing:
            raise ValueError(
                f"{where} the parameter {missing[0]!r} (1 of {len(missing)}): give stages that compute "
                "what embed computes, one after the other"
            )


def _embed(chain: Sequence[_Stage], pieces: Sequence[Tensor]) -> list[Tensor]:
    outputs = list(pieces)
    for stage in chain:
        outputs = stage.find_statistics(outputs)
    return outputs


def _back_propagate(
    chain: Sequence[_Stage],
    pieces: Sequence[Tensor],
    embeddings: Sequence[Tensor],
    gradients: Sequence[Tensor],
    repeatability: Repeatability,
) -> None:
    inputs = [list(pieces)]
    with torch.no_grad():
        for stage in chain:
            inputs.append([stage.run(i, x) for i, x in enumerate(inputs[-1])])
    for z, first in zip(inputs.pop(), embeddings):
        repeatability.compare(z, first)
    for stage in reversed(chain):
        gradients = stage.back_propagate(inputs.pop(), gradients)


class _StatisticsWanted(Exception):
    """Ends a forward pass at the batch norm layer whose statistics are being found."""


class _Stage:
    """One stage on one view: what is known of its batch norm layers, in the order of their calls."""

    def __init__(self, module: nn.Module, pieces: int, *, is_first: bool) -> None:
        self._module = module
        self._is_first = is_first
        self._seeds = [draw_seed() for _ in range(pieces)]
        self._layers: list[_BatchNorm] = []
        self._statistics: list[Statistics] = []
        self._sums: list[Tensor] = []
        # Of the sweep or the forward pass under way:
        self._calls = 0
        self._parts: list[Statistics] | None = None
        self._target: int | None = None
        self._input_of_target: Tensor | None = None

    def find_statistics(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Sweeps until the statistics of every layer are known; moves the running ones.

        Returns:
            The stage's outputs.
        """
        while True:
            self._parts, outputs = [], []
            for i, x in enumerate(inputs):
                with contextlib.suppress(_StatisticsWanted):
                    outputs.append(self.run(i, x))
            if not self._parts:
                break
            if outputs:
                raise ValueError(_OTHER_CALLS)
            layer = self._layers[-1]
            statistics = pooled_statistics(self._parts, _group(layer))
            check_count(statistics.n, inputs[0])
            update_running_statistics(layer, statistics)
            self._statistics.append(statistics)
        self._parts = None
        return outputs

    def run(self, piece: int, x: Tensor) -> Tensor:
        """The output for one piece, always with the same random numbers."""
        seed_all(self._seeds[piece])
        self._calls = 0
        with self._layers_replaced():
            y = embed_afresh(self._module, x)
        if self._calls != len(self._statistics):
            raise ValueError(_OTHER_CALLS)
        return y

    def back_propagate(self, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Adds to the parameters' gradients, in the first stage to the images' where they want one.

        Returns:
            The gradients of the inputs; none for the first stage.
        """
        self._sums = [torch.zeros_like(torch.stack(s[:2])) for s in self._statistics]
        for target in reversed(range(len(self._statistics))):
            self._target = target
            for i, (x, gradient) in enumerate(zip(inputs, gradients)):
                self._add_sums(i, x, gradient)
            group = _group(self._layers[target])
            if group is not None:
                all_reduce_sum_(self._sums[target], group)
        self._target = None
        of_inputs = []
        for i, (x, gradient) in enumerate(zip(inputs, gradients)):
            leaf = self._input(x)
            y = self.run(i, leaf)
            if y.requires_grad:
                with outside_autocast(y), self._layers_replaced():
                    y.backward(gradient)
            if not self._is_first:
                # Of a stage that ignores its input there is none.
                of_inputs.append(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
        return of_inputs

    def _input(self, x: Tensor) -> Tensor:
        return x if self._is_first else x.detach().requires_grad_()

    def _add_sums(self, piece: int, x: Tensor, gradient: Tensor) -> None:
        """Adds one piece's sums of g and g x^ at the layer `_target` to those of the others."""
        y = self.run(piece, self._input(x))
        at_target, self._input_of_target = self._input_of_target, None
        assert at_target is not None
        # Where no gradient goes beyond the layer, nobody asks for its sums.
        if at_target.requires_grad and y.requires_grad:
            with outside_autocast(y), self._layers_replaced():
                torch.autograd.grad(y, at_target, gradient, allow_unused=True)

    @contextlib.contextmanager
    def _layers_replaced(self) -> Iterator[None]:
        """In here, the layers compute with what is known of the whole batch."""
        layers = [m for m in self._module.modules() if uses_batch_statistics(m)]
        before = [vars(layer).get("forward") for layer in layers]
        for layer in layers:
            vars(layer)["forward"] = functools.partial(self._normalize, layer)
        try:
            yield
        finally:
            for layer, forward in zip(layers, before):
                del vars(layer)["forward"]
                if forward is not None:
                    vars(layer)["forward"] = forward

    def _normalize(self, layer: _BatchNorm, x: Tensor) -> Tensor:
        call = self._calls
        self._calls += 1
        if self._parts is not None and call == len(self._layers):
            self._layers.append(layer)
        if call >= len(self._layers) or self._layers[call] is not layer:
            raise ValueError(_OTHER_CALLS)
        if self._parts is not None and call == len(self._statistics):
            self._parts.append(batch_statistics(x))
            raise _StatisticsWanted
        if call == self._target:
            self._input_of_target = x
        sums_over_batch = functools.partial(self._sums_over_batch, call)
        statistics = self._statistics[call]
        return normalize(x, layer.weight, layer.bias, statistics, layer.eps, sums_over_batch)

    def _sums_over_batch(self, call: int, sums: Tensor) -> Tensor:
        if call == self._target:
            self._sums[call] += sums
        return self._sums[call].to(sums.dtype)


_OTHER_CALLS = (
    "the batch norm layers are not called in the same order each time, which batch_norm='exact' "
    "needs: take out activation checkpointing and random depth, or use another mode"
)


def _group(layer: _BatchNorm) -> ProcessGroup | None:
    """The processes that `layer` takes statistics over, None for this one alone."""
    if not is_synchronised(layer):
        return None
    return layer.process_group or dist.group.WORLD


def _average_gradients(module: DistributedDataParallel) -> None:
    """What DistributedDataParallel does in a backward pass of its own."""
    group = module.process_group
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    for work in [dist.all_reduce(g, group=group, async_op=True) for g in gradients]:
        work.wait()
    for gradient in gradients:
        gradient.div_(dist.get_world_size(group))
