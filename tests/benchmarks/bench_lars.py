"""Time of one LARS step on the parameters of ResNet-50 and the paper's projector.

Ours against VISSL's and against torch's SGD, which does the same without norms: the floor. On CPU in
one thread, by processor time, which other work on the machine disturbs little; on a CUDA device also
the kernels each launches.
"""

import importlib.util
import time
from collections.abc import Callable

import matplotlib
import torch
from bench_common import (
    arguments,
    interleaved_times,
    markdown_table,
    median,
    median_ratio,
    write_results,
)
from torch import nn
from torch.profiler import ProfilerActivity, profile

from vissl_barlow.lars import LARS
from vissl_barlow.projector import build_projector
from vissl_barlow.resnet import build_trunk

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, VISSL, SGD = "ours", "VISSL's", "torch SGD"
TARGET = 0.4  # of VISSL's time, on CPU
OPTIONS = {"momentum": 0.9, "weight_decay": 1.5e-6}


def parameters(quick: bool, device: str) -> list[nn.Parameter]:
    """Pretraining's parameters, each with a gradient."""
    dims = [2048] * 3 if quick else [8192] * 3
    with torch.device("meta"):
        model = nn.Sequential(build_trunk(50), build_projector(2048, dims))
    params = []
    for p in model.parameters():
        params.append(nn.Parameter(0.01 * torch.randn(p.shape, device=device)))
        params[-1].grad = 0.01 * torch.randn(p.shape, device=device)
    return params


def optimizers(params: list[nn.Parameter]) -> dict[str, torch.optim.Optimizer]:
    """They share parameters and gradients: only the time of a step counts here."""
    candidates: dict[str, torch.optim.Optimizer] = {}
    if importlib.util.find_spec("vissl"):
        from vissl.optimizers.lars import _LARS

        candidates[VISSL] = _LARS(params, lr=1e-3, exclude_bias_and_norm=True, **OPTIONS)
    candidates[OURS] = LARS(params, lr=1e-3, bias_lr_scale=0.024, **OPTIONS)
    candidates[SGD] = torch.optim.SGD(params, lr=1e-6, foreach=True, **OPTIONS)
    return candidates


def finished(step: Callable[[], object], device: str) -> Callable[[], None]:
    def call():
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def kernel_launches(step: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    return sum(event.count for event in trace.key_averages() if event.key == "cudaLaunchKernel")


def main() -> None:
    args = arguments(__doc__)
    torch.set_num_threads(1)
    rows, results = [], {}
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        candidates = optimizers(parameters(args.quick, device))
        steps = {name: finished(candidate.step, device) for name, candidate in candidates.items()}
        clock = time.process_time if device == "cpu" else time.perf_counter
        times = interleaved_times(steps, repeats=5 if args.quick else 15, clock=clock)
        results[device] = times
        for name, seconds in times.items():
            share = 1 / median_ratio(times[VISSL], seconds) if VISSL in times else None
            kernels = kernel_launches(steps[name]) if device == "cuda" else None
            rows.append([device, name, 1000 * median(seconds), share, kernels])
            if name == OURS and device == "cpu" and share is not None:
                print(f"ours takes {share:.2f} of VISSL's time, target at most {TARGET}")

    header = ["device", "LARS", "ms per step", "of VISSL's time", "kernels launched"]
    write_results(args.out, "lars", table=markdown_table(header, rows), results=results)

    fig, axes = plt.subplots(1, len(results), figsize=(5 * len(results), 2.2), squeeze=False)
    for ax, (device, times) in zip(axes[0], results.items()):
        ax.barh(list(times), [1000 * median(seconds) for seconds in times.values()])
        ax.set(xlabel="ms per step", title=device)
    fig.tight_layout()
    fig.savefig(args.out / "lars.png", dpi=150)


if __name__ == "__main__":
    main()
