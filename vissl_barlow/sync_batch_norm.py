"""Batch normalisation over the rows of all processes, on devices that torch's refuses (the CPU).

`torch.nn.SyncBatchNorm` computes on accelerators only, and DistributedDataParallel refuses it on the
CPU. This one gives, on every process, what `torch.nn.BatchNorm*d` gives on one process that holds
the whole batch (Ioffe & Szegedy, 2015, algorithm 1, forward and backward).

Shapes: x (N_p, C, ...) is the part of this process, n = sum over processes of N_p x (elements per
channel and row) the count behind each channel's mean and variance, both (C,).

With y = weight x^ + bias, x^ = (x - mean) / sqrt(variance + eps) and g = dL/dy:
  dL/dweight = sum(g x^),  dL/dbias = sum(g),
  dL/dx = weight / sqrt(variance + eps) (g - mean of g - x^ (mean of g x^)).
The means in dL/dx are over the whole batch. The first two stay sums over this process, as in torch's:
DistributedDataParallel averages them with all other gradients (see `vissl_barlow.distributed`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from vissl_barlow.distributed import all_gather_rows, all_reduce_sum_, world_size


class Statistics(NamedTuple):
    """Mean and biased variance of each channel, (C,) in float64, of n values each."""

    mean: Tensor
    variance: Tensor
    n: int


def batch_statistics(x: Tensor) -> Statistics:
    """Statistics of x (N, C, ...) along all dimensions but the second; of 0 rows, zeros."""
    count = x.numel() // x.shape[1]
    if count == 0:
        zeros = x.new_zeros(x.shape[1], dtype=torch.float64)
        return Statistics(zeros, zeros, 0)
    # torch's kernel takes the mean first and the squared distances from it second. It returns the
    # precision of the running statistics it is given, and with momentum 0 leaves them alone.
    running = x.new_zeros(x.shape[1], dtype=_compute_dtype(x))
    mean, variance = torch.batch_norm_update_stats(x.detach(), running, running.clone(), 0.0)
    return Statistics(mean.double(), variance.double(), count)


def pooled_statistics(parts: list[Statistics], group: ProcessGroup | None = None) -> Statistics:
    """Statistics of the union of `parts`, of all processes of `group` where that is not None.

    The variance within the parts plus that of their means (Chan, Golub & LeVeque, 1979), in float64:
    no difference of large numbers, however far the means are from 0.
    """
    rows = torch.stack([torch.cat((*part[:2], part.mean.new_tensor([part.n]))) for part in parts])
    if group is not None:
        # One row of each process.
        rows = _packed(_pool(rows))[None]
        rows = all_gather_rows(rows, (1,) * world_size(group), group)
    mean, variance, count = _pool(rows)
    return Statistics(mean, variance, int(count))


def _pool(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    means, variances = rows[:, :-1].tensor_split(2, dim=1)
    counts = rows[:, -1:]
    count = counts.sum()
    shares = counts / count.clamp(min=1)
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return mean, variance, count


def _packed(pooled: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    mean, variance, count = pooled
    return torch.cat((mean, variance, count[None]))


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Statistics,
    eps: float,
    sums_over_batch: Callable[[Tensor], Tensor],
) -> Tensor:
    """y above, for x (N, C, ...) and statistics of a batch that x is a part of.

    Args:
        sums_over_batch: maps (2, C), the sums of g and of g x^ over x, to those over the batch. It is
            called in the backward pass, once, if the gradient of x is wanted.

    Returns:
        As x in shape, dtype and memory format. Its gradients are those of algorithm 1, where the
        statistics count as functions of x.
    """
    return _Normalize.apply(x, weight, bias, statistics, eps, sums_over_batch)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, statistics, eps, sums_over_batch):
        dtype = _compute_dtype(x)
        mean, variance = statistics.mean.to(dtype), statistics.variance.to(dtype)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.count, ctx.eps, ctx.sums_over_batch = statistics.n, eps, sums_over_batch
        ctx.bias_dtype = None if bias is None else bias.dtype
        if x.numel() == 0:
            return torch.empty_like(x)
        scale, shift = (None if p is None else p.to(dtype) for p in (weight, bias))
        return F.batch_norm(x, mean, variance, scale, shift, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, mean, variance = ctx.saved_tensors
        dtype = mean.dtype
        inv_std = torch.rsqrt(variance + ctx.eps)
        sums = mean.new_zeros(2, len(mean))
        if x.numel():
            # Of the derivatives for fixed statistics, those of weight and bias alone: the sums.
            _, along, total = torch.ops.aten.native_batch_norm_backward(
                grad, x, None, mean, variance, None, None, False, ctx.eps, [False, True, True]
            )
            sums = torch.stack((total, along)).to(dtype)
        grad_weight = None if weight is None else sums[1].to(weight.dtype)
        grad_bias = None if ctx.bias_dtype is None else sums[0].to(ctx.bias_dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias, None, None, None
        mean_grad, mean_along = ctx.sums_over_batch(sums.clone()) / ctx.count
        scale = inv_std if weight is None else inv_std * weight.to(dtype)
        per_channel = (-1, *(1,) * (x.ndim - 2))

        def over_rows(y: Tensor) -> Tensor:
            return y.view(per_channel)

        grad_x = (x - over_rows(mean)).mul_(over_rows(-inv_std * mean_along))
        grad_x.add_(grad).sub_(over_rows(mean_grad)).mul_(over_rows(scale))
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def update_running_statistics(layer: _BatchNorm, statistics: Statistics) -> None:
    """Moves the running statistics of `layer` by one batch, as its own forward pass in training does.

    running = (1 - momentum) running + momentum new, with the unbiased variance; `momentum=None` is
    the mean of all batches so far. Nothing, where the layer does not track them.
    """
    if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        return
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    share = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    unbiased = statistics.variance * (statistics.n / (statistics.n - 1))
    for running, new in ((layer.running_mean, statistics.mean), (layer.running_var, unbiased)):
        running.lerp_(new.to(running.dtype), share)


class SyncBatchNorm(_BatchNorm):
    """`torch.nn.BatchNorm1d`, `2d` and `3d`, with statistics over the processes of a group.

    Input (N_p, C, ...), any number of dimensions from 2 on; N_p may differ between processes and be 0
    on some. Float32 and float64 are computed as such, lower precisions in float32. In eval mode, and
    on one process, it is plain batch normalisation. In training every process calls it, and its
    backward pass, equally often.

    Args:
        num_features: C.
        process_group: whose rows make up the batch; default all processes.
        eps, momentum, affine, track_running_stats: as in `torch.nn.BatchNorm1d`, with its defaults.

    Raises:
        ValueError: the input has fewer than 2 dimensions, or there is only one value per channel in
            the batch of all processes.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: ProcessGroup | None = None,
        **kwargs,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **kwargs)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(
                f"input has shape {tuple(input.shape)}: give (rows, channels) or (rows, channels, ...)"
            )

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size(self.process_group) < 2:
            return super().forward(input)
        return self._forward_synchronised(input)

    @torch.compiler.disable  # Reads counts of other processes on the host.
    def _forward_synchronised(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        group = self.process_group or torch.distributed.group.WORLD
        statistics = pooled_statistics([batch_statistics(input)], group)
        check_count(statistics.n, input)
        update_running_statistics(self, statistics)
        return normalize(
            input,
            self.weight,
            self.bias,
            statistics,
            self.eps,
            lambda sums: all_reduce_sum_(sums, group),
        )


def check_count(count: int, x: Tensor) -> None:
    """Raises ValueError where `count` values per channel have no variance."""
    if count < 2:
        raise ValueError(
            f"batch normalisation in training got {count} value(s) per channel (here: input of shape "
            f"{tuple(x.shape)}) over all processes: it takes at least 2, raise the batch size"
        )


def convert(module: nn.Module, group: ProcessGroup | None = None) -> nn.Module:
    """Swaps every batch normalisation in `module` for a `SyncBatchNorm` over `group`, in place.

    A layer's parameters, buffers, hooks, training flag, `qconfig` and any other attribute are kept,
    the same tensors under the same names: optimizers and state dicts fit as before. A layer that stands
    in several places, of which torch's own conversion swaps the first, is one layer still.

    Returns:
        `module`, or the new layer where `module` is a batch normalisation itself.

    Raises:
        ValueError: a lazy layer has not seen its first batch.
    """
    return _convert(module, group, {})


def _convert(
    module: nn.Module, group: ProcessGroup | None, converted: dict[nn.Module, nn.Module]
) -> nn.Module:
    if module in converted:
        return converted[module]
    before = module
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
        if (
            isinstance(module, nn.modules.lazy.LazyModuleMixin)
            and module.has_uninitialized_params()
        ):
            raise ValueError(
                f"{type(module).__name__} does not know its number of channels yet: pass one batch "
                "through the network before it is converted"
            )
        module = SyncBatchNorm(module.num_features, device="meta")
        module.__dict__.update(vars(before))
    if isinstance(module, SyncBatchNorm):
        module.process_group = group
    converted[before] = module
    for name, child in module._modules.items():
        if child is not None:
            setattr(module, name, _convert(child, group, converted))
    return module
