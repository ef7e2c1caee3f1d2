"""LARS (You et al., 2017) as the paper uses it (section 2.2): 1-D parameters, which are the biases and
the batch normalisation parameters, are excluded from adaptation and decay and have their own rate.

Built on torch's foreach and fused operations: few kernels, no temporaries, no waiting for a device.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from vissl_barlow.cpu_cache import rows_in_cache


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum.

    For a parameter p of two dimensions or more with gradient g, all norms Euclidean:

        d = g + weight_decay p
        q = trust_coefficient |p| / |d|, or 1 where |p| or |d| is 0
        m = momentum m + q d
        p = p - lr m

    and for one of at most one dimension m = momentum m + g, p = p - lr bias_lr_scale m.
    Every hyper-parameter may differ between parameter groups. Where `weight_decay` is not 0, `step`
    may turn `.grad` of the weights into d, in place: read gradients before it, and take one step per
    backward pass. `torch.amp.GradScaler` unscales before it steps, so the two agree.

    Args:
        params: parameters, or dicts of parameter groups.
        lr: learning rate of the weights; the paper's is 0.2 times batch size / 256 at its peak.
        momentum: in [0, 1).
        weight_decay: at least 0; the paper's is 1.5e-6.
        trust_coefficient: above 0.
        clip: let the adapted rate be no larger than `lr`, instead of a multiple of it: q is the smaller
            of trust_coefficient |p| / |d| and lr, divided by lr (apex's LARC; solo-learn's `clip_lr`).
        bias_lr_scale: what `lr` is multiplied by for 1-D parameters; the paper's is 0.0048 / 0.2.

    Raises:
        ValueError: a hyper-parameter outside its range, parameters in FullyShardedDataParallel, or,
            in `step`, a sparse gradient.
    """

    def __init__(
        self,
        params,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        clip: bool = False,
        bias_lr_scale: float = 1.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "clip": clip,
            "bias_lr_scale": bias_lr_scale,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; hyper-parameters it lacks are the optimizer's. Raises as the class does."""
        options = {**self.defaults, **param_group}
        for name in ("lr", "weight_decay", "bias_lr_scale"):
            _check(options, name, "0 or more", lambda value: value >= 0)
        _check(options, "momentum", "in [0, 1)", lambda value: 0 <= value < 1)
        _check(options, "trust_coefficient", "above 0", lambda value: value > 0)
        if not isinstance(options["clip"], bool):
            raise ValueError(f"LARS: clip={options['clip']!r} must be true or false")
        super().add_param_group(param_group)
        # Set by torch.distributed.fsdp on what it has flattened, in both of its modes.
        if any(hasattr(p, "_fsdp_flattened") for p in self.param_groups[-1]["params"]):
            raise ValueError(
                "LARS: parameters that FullyShardedDataParallel has flattened are weights no more, and "
                "would be updated as biases: use DistributedDataParallel, and "
                "ZeroRedundancyOptimizer to share the optimizer's state"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("clip", False)  # states from before it

    # torch's compilers know no fused SGD on the CPU; what they would fuse is fused.
    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure`, if given, returns. `torch.compile` leaves it out."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.layout != torch.strided:
                    raise ValueError(
                        f"LARS needs dense gradients, got {p.grad.layout} for a parameter of shape "
                        f"{tuple(p.shape)}; build its layer with sparse=False"
                    )
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                alike[p.ndim > 1, p.device, p.dtype].append((p, p.grad, state["momentum_buffer"]))
            for (is_weight, *_), triples in alike.items():
                update = _update_weights if is_weight else _update_biases
                params, grads, momenta = map(list, zip(*triples))
                update(params, grads, momenta, group)
        return loss


def _check(options: dict[str, Any], name: str, range_: str, accepts: Callable[[Any], bool]) -> None:
    value = options[name]
    if not isinstance(value, Real) or not math.isfinite(value) or not accepts(value):
        raise ValueError(f"LARS: {name}={value!r} must be a finite number, {range_}")


def _update_weights(
    params: list[Tensor], grads: list[Tensor], momenta: list[Tensor], group: dict[str, Any]
) -> None:
    decay = group["weight_decay"]
    fused = group["momentum"] > 0 and _fusable(params, grads, momenta)
    if decay and not fused:
        torch._foreach_add_(grads, params, alpha=decay)
        decay = 0.0
    param_norms, update_norms = _norms(params, grads, decay)
    trust = group["trust_coefficient"] * param_norms / update_norms
    if group["clip"]:
        trust = (trust / group["lr"]).clamp(max=1.0)
    trust = torch.where((param_norms > 0) & (update_norms > 0), trust, 1.0)
    if fused:
        # One pass over memory in place of four. SGD's m is momentum m + (1 - dampening) d.
        for p, g, m, q in zip(params, grads, momenta, trust.tolist()):
            torch._fused_sgd_(
                [p],
                [g],
                [m],
                weight_decay=decay,
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=1 - q,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
        return
    torch._foreach_mul_(momenta, group["momentum"])
    torch._foreach_addcmul_(momenta, grads, trust.unbind())
    torch._foreach_add_(params, momenta, alpha=-group["lr"])


def _update_biases(
    params: list[Tensor], grads: list[Tensor], momenta: list[Tensor], group: dict[str, Any]
) -> None:
    torch._foreach_mul_(momenta, group["momentum"])
    torch._foreach_add_(momenta, grads)
    torch._foreach_add_(params, momenta, alpha=-group["lr"] * group["bias_lr_scale"])


def _fusable(*tensor_lists: list[Tensor]) -> bool:
    # On other devices the fused kernel would wait for the ratios; it walks memory, not indices.
    return all(t.is_cpu and t.is_contiguous() for tensors in tensor_lists for t in tensors)


def _norms(params: list[Tensor], grads: list[Tensor], decay: float) -> tuple[Tensor, Tensor]:
    """Euclidean norms of params and of grads + decay params; `decay` is 0 but on the CPU.

    For K tensors of one device and dtype, (K,) each, in float32 or wider.
    """
    dtype = torch.promote_types(params[0].dtype, torch.float32)
    if not params[0].is_cpu:
        param_norms, grad_norms = (torch._foreach_norm(ts, dtype=dtype) for ts in (params, grads))
        return torch.stack(param_norms), torch.stack(grad_norms)
    norms = []
    for p, g in zip(params, grads):
        # Row by row: the float32 norm of all 8192 x 8192 elements at once is 0.5% short on CPU.
        norm = functools.partial(torch.linalg.vector_norm, dim=tuple(range(1, p.ndim)), dtype=dtype)
        rows = rows_in_cache(p)
        of_rows = [
            (norm(p_rows), norm(torch.add(g_rows, p_rows, alpha=decay) if decay else g_rows))
            for p_rows, g_rows in zip(p.split(rows), g.split(rows))
        ]
        norms.append([torch.linalg.vector_norm(torch.cat(parts)) for parts in zip(*of_rows)])
    param_norms, update_norms = zip(*norms)
    return torch.stack(param_norms), torch.stack(update_norms)
