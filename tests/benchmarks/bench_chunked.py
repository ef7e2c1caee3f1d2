"""Peak memory and time of a step in pieces, by mode and chunk size, beside what there was before it.

One step is forward and backward of both views of a ResNet, projector and loss; no optimizer. Memory is
what the step adds to a fresh process at its peak, gradients of the parameters included. `--paper`
measures the paper's network at 224 pixels, as in docs/one-gpu.md: one step each, half an hour.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_common import (
    arguments,
    cost_of_one_call,
    interleaved_times,
    markdown_table,
    median,
    peak_extra_mib,
    write_results,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from vissl_barlow import chunked
from vissl_barlow.loss import barlow_twins_loss
from vissl_barlow.projector import build_projector
from vissl_barlow.resnet import build_trunk, representation_dim


@dataclass(frozen=True)
class Sizes:
    """Depth of the ResNet, images of each view, side of an image, width of the projector."""

    depth: int
    n: int
    side: int
    d: int


@dataclass(frozen=True)
class Variant:
    batch_norm: str = "per_piece"
    chunk_size: int = 0
    checkpointed: bool = False

    @property
    def name(self) -> str:
        if self.chunk_size:
            return self.batch_norm
        name = "one view at a time" if self.batch_norm == "per_view" else "all at once"
        return f"{name}, blocks checkpointed" if self.checkpointed else name


class _Checkpointed(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.module, x, use_reentrant=False)


def step(variant: Variant, sizes: Sizes) -> Callable[[], None]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    trunk = build_trunk(sizes.depth)
    projector = build_projector(representation_dim(sizes.depth), [sizes.d] * 3)
    stages = [
        nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool),
        *(b for layer in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4) for b in layer),
        nn.Sequential(trunk.avgpool, nn.Flatten(), projector),
    ]
    if variant.checkpointed:
        stages = [_Checkpointed(stage) for stage in stages]
    net = nn.Sequential(*stages).to(memory_format=torch.channels_last)
    views = torch.randn(2 * sizes.n, 3, sizes.side, sizes.side)
    view_a, view_b = views.contiguous(memory_format=torch.channels_last).chunk(2)

    def call() -> None:
        net.zero_grad()
        chunked.backward(
            net,
            view_a,
            view_b,
            barlow_twins_loss,
            chunk_size=variant.chunk_size,
            batch_norm=variant.batch_norm,
            stages=stages if variant.batch_norm == "exact" else None,
        )

    return call


def variants(n: int, quick: bool) -> list[Variant]:
    chunk_sizes = [n // 4] if quick else [n // 2, n // 4, n // 8]
    return [
        Variant(),
        Variant(checkpointed=True),
        Variant("per_view"),
        Variant("per_view", checkpointed=True),
        *(Variant("per_piece", chunk_size) for chunk_size in chunk_sizes),
        *(Variant("exact", chunk_size) for chunk_size in chunk_sizes),
    ]


# Images of each view; the steps that hold the activations of them all are of fewer, for 6 GB.
PAPERS_STEPS = (
    *((8, Variant()), (24, Variant()), (24, Variant("per_view")), (48, Variant("per_view"))),
    *((64, Variant(checkpointed=True)), (64, Variant("per_view", checkpointed=True))),
    *((64, Variant("per_piece", chunk_size)) for chunk_size in (32, 16, 8)),
    *((64, Variant("exact", chunk_size)) for chunk_size in (32, 16, 8)),
)


def papers_network(out: Path) -> None:
    rows, results = [], []
    for n, variant in PAPERS_STEPS:
        cost = cost_of_one_call(step, variant, Sizes(50, n, 224, 8192))
        rows.append([variant.name, n, variant.chunk_size or None, *cost])
        results.append({"n": n, **vars(variant), **cost._asdict()})
    header = ["step", "images of each view", "chunk size", "peak MiB", "seconds"]
    write_results(out, "chunked_paper", table=markdown_table(header, rows), results=results)


def main() -> None:
    args = arguments(__doc__, paper="the paper's network at 224 pixels instead")
    if args.paper:
        papers_network(args.out)
        return
    sizes = Sizes(18, 16, 32, 256) if args.quick else Sizes(18, 64, 64, 1024)
    chosen = variants(sizes.n, args.quick)
    # One thread, by its own clock: what else the machine does is left out.
    times = interleaved_times(
        {str(variant): step(variant, sizes) for variant in chosen},
        repeats=2 if args.quick else 3,
        seconds=600,
        clock=time.process_time,
    )
    ordinary = median(times[str(chosen[0])])
    rows, results = [], []
    for variant in chosen:
        mib = peak_extra_mib(step, variant, sizes)
        relative = median(times[str(variant)]) / ordinary
        exact = variant.batch_norm != "per_piece" or not variant.chunk_size
        rows.append(
            [variant.name, variant.chunk_size or None, "batch" if exact else "piece", mib, relative]
        )
        results.append({**vars(variant), "peak_mib": mib, "relative_time": relative})
    header = ["step", "chunk size", "BN statistics of the", "peak MiB", "time / all at once"]
    table = f"ResNet-{sizes.depth}, {sizes.n} images of {sizes.side} pixels, D = {sizes.d}\n\n"
    write_results(
        args.out,
        "chunked",
        table=table + markdown_table(header, rows),
        results={"sizes": vars(sizes), "steps": results},
    )


if __name__ == "__main__":
    main()
