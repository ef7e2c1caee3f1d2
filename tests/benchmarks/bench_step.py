"""Images per second of a whole training step: ResNet-50, projector, two views, loss, LARS.

Ours, with its options, beside VISSL's built-in and the authors' step, on images that are on the
device already. On a CUDA device at the paper's sizes and a batch of 256; on a CPU, where nobody
pretrains, at sizes that show no more than that every variant runs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import torch
from bench_common import arguments, interleaved_times, markdown_table, median, write_results
from bench_lars import OPTIONS, finished
from bench_loss import LAMBDA, authors_loss
from torch import Tensor, nn
from vissl.losses.barlow_twins_loss import BarlowTwinsCriterion
from vissl.optimizers.lars import _LARS

from vissl_barlow.lars import LARS
from vissl_barlow.loss import barlow_twins_loss
from vissl_barlow.projector import build_projector
from vissl_barlow.resnet import build_trunk
from vissl_barlow.views import normalize

matplotlib.use("Agg")
import matplotlib.pyplot as plt

AUTHORS, VISSL, OURS = "authors' step", "VISSL's built-in", "ours"
PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Sizes:
    """Batch, side of a view, width of the projector, steps between two looks at the clock."""

    n: int
    side: int
    d: int
    steps: int


@dataclass(frozen=True)
class Variant:
    code: str
    precision: str = "float32"
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        options = [self.precision]
        options += ["channels_last"] * self.channels_last + ["compile"] * self.compiled
        return f"{self.code}, {', '.join(options)}"


GPU_VARIANTS = [
    Variant(AUTHORS, "float16"),
    Variant(VISSL, "float16"),
    Variant(OURS, "float16"),
    Variant(OURS, "float16", channels_last=True),
    Variant(OURS, "bfloat16"),
    Variant(OURS, "bfloat16", channels_last=True),
    Variant(OURS, "bfloat16", channels_last=True, compiled=True),
]
CPU_VARIANTS = [
    Variant(AUTHORS),
    Variant(VISSL),
    Variant(OURS),
    Variant(OURS, channels_last=True),
    Variant(OURS, "bfloat16"),
]


def training_step(variant: Variant, sizes: Sizes, device: str) -> Callable[[], None]:
    """One step of `variant` on the same two views again and again."""
    torch.manual_seed(0)
    memory_format = torch.channels_last if variant.channels_last else torch.contiguous_format
    trunk = build_trunk(50).to(device, memory_format=memory_format)
    trunk.fc = nn.Identity()
    projector = build_projector(2048, [sizes.d] * 3).to(device)
    params = [*trunk.parameters(), *projector.parameters()]
    if variant.compiled:
        trunk.compile()
        projector.compile()

    def embed(views: Tensor) -> Tensor:
        return projector(trunk(views))

    views = torch.randint(0, 256, (2, sizes.n, 3, sizes.side, sizes.side), dtype=torch.uint8)
    views = views.to(device)
    if variant.code == OURS:
        optimizer = LARS(params, lr=1e-3, bias_lr_scale=0.024, **OPTIONS)

        def loss() -> Tensor:
            # The bytes are what the loader sends: normalising them is part of the step.
            ready = (normalize(v).contiguous(memory_format=memory_format) for v in views)
            return barlow_twins_loss(*map(embed, ready), lambda_=LAMBDA).loss
    else:
        optimizer = _LARS(params, lr=1e-3, exclude_bias_and_norm=True, **OPTIONS)
        normalised = normalize(views)
        if variant.code == VISSL:
            criterion = BarlowTwinsCriterion(LAMBDA, scale_loss=0.024, embedding_dim=sizes.d)

            def loss() -> Tensor:
                value = criterion(embed(normalised.flatten(0, 1)))
                value.item()  # VISSL's train step reads it back each time
                return value
        else:
            bn = nn.BatchNorm1d(sizes.d, affine=False).to(device)

            def loss() -> Tensor:
                return authors_loss(*map(embed, normalised), bn)

    dtype = PRECISIONS[variant.precision]
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def steps() -> None:
        for _ in range(sizes.steps):
            optimizer.zero_grad()
            with torch.autocast(device, dtype, enabled=dtype is not None):
                value = loss()
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()

    return finished(steps, device)


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    if torch.cuda.is_available():
        device, variants = "cuda", GPU_VARIANTS
        sizes = Sizes(64, 224, 2048, 2) if args.quick else Sizes(256, 224, 8192, 10)
        torch.backends.cudnn.benchmark = True
    else:
        device, variants = "cpu", CPU_VARIANTS
        sizes = Sizes(2, 32, 256, 1) if args.quick else Sizes(8, 64, 1024, 1)
    calls = {str(variant): training_step(variant, sizes, device) for variant in variants}
    times = interleaved_times(calls, repeats=3 if args.quick else 7, seconds=90)
    rates = {name: sizes.n * sizes.steps / median(values) for name, values in times.items()}
    reference = rates[str(variants[0])]
    header = [f"step on {device}", "images/s", f"times {variants[0]}"]
    table = markdown_table(header, [[name, rate, rate / reference] for name, rate in rates.items()])
    setting = (
        f"ResNet-50, batch {sizes.n}, two views of {sizes.side} x {sizes.side}, projector "
        f"{sizes.d}-{sizes.d}-{sizes.d}, one process"
    )
    write_results(
        args.out,
        f"step_{device}",
        table=f"{setting}\n\n{table}",
        results={"setting": setting, "images_per_second": rates},
    )
    figure, axes = plt.subplots(figsize=(7, 0.4 * len(rates) + 0.8), layout="constrained")
    bars = axes.barh(list(rates)[::-1], list(rates.values())[::-1], color="#4878d0")
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel(f"images per second on {device}")
    figure.savefig(args.out / f"step_{device}.png", dpi=120)


if __name__ == "__main__":
    main()
