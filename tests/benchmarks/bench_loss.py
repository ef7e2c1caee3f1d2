"""The loss, forward and backward, against the authors' formula: time, peak memory, scaling.

All implementations run in turn on the same embeddings, in one thread; times are processor time, which
other work on the machine disturbs little. Memory is measured in a fresh process each.
In turn with them run the bare matrix products that the form `auto` takes cannot do without: their time
over the loss's is the share of the machine's speed that it reaches.
The figure shows each resource against N, D and the number of processes: points are measured, lines
are computed from the counts of operations and bytes.
"""

import importlib
import time
from collections.abc import Callable
from functools import partial
from math import nan

import matplotlib
import torch
from bench_common import (
    arguments,
    interleaved_times,
    markdown_table,
    median,
    peak_extra_mib,
    write_results,
)
from torch import Tensor, nn

from vissl_barlow.loss import barlow_twins_loss, choose_form, form_cost

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LAMBDA = 5e-3
AUTHORS = "authors"
# (N, D): the ratio to the authors' formula that is to be reached; 1 elsewhere.
TARGETS = {(256, 8192): 40.0, (64, 2048): 25.0, (1024, 8192): 6.0, (2048, 8192): 3.0}
# (N, D): the share of the products' speed that is to be reached; 0.8 where N is 1024 or more.
SHARES = {(256, 8192): 0.6, (256, 65536): 0.6}
PRODUCTS = "products alone"
BATCHES = (64, 256, 1024, 2048, 4096)
WIDTHS = (256, 1024, 2048, 8192, 16384, 65536)
QUICK = [(64, 256), (64, 2048), (256, 2048), (256, 8192), (1024, 1024), (2048, 1024)]
# Beyond these the D x D formulas take minutes or more memory than a workstation has; the authors'
# alone is followed so far, or the others would take most of the benchmark's time.
MOST_OPERATIONS, WIDEST = 1e12, 16384
MOST_OPERATIONS_OF_OTHERS, WIDEST_OF_OTHERS = 1.2e11, 8192
MEMORY_QUICK = [(64, 2048), (256, 8192), (256, 65536)]
MEMORY = [*MEMORY_QUICK, (256, 2048), (1024, 8192), (256, 16384), (2048, 1024)]
PROCESSES = (1, 2, 4, 8, 16, 32)
FIXED_N, FIXED_D, FIXED_PROCESSES = 256, 8192, 8
MIB = 2**20
LARGEST_KEPT = 2**21  # elements of a view

Step = Callable[[], None]


def authors_loss(z_a: Tensor, z_b: Tensor, bn: nn.BatchNorm1d) -> Tensor:
    """Equations 1 and 2 as the authors compute them: BN on each view, then all of C."""
    c = bn(z_a).T @ bn(z_b)
    c.div_(len(z_a))
    d = len(c)
    invariance = torch.diagonal(c).add(-1).pow(2).sum()
    # Without the last element, rows of d + 1 put the diagonal into the first column.
    redundancy = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten().pow(2).sum()
    return invariance + LAMBDA * redundancy


def _vissl_loss(d: int) -> Callable[[Tensor, Tensor], Tensor]:
    import vissl_barlow

    vissl_barlow.register()  # VISSL does not import on current libraries by itself
    module = importlib.import_module("vissl.losses.barlow_twins_loss")
    criterion = module.BarlowTwinsCriterion(lambda_=LAMBDA, scale_loss=1.0, embedding_dim=d)
    return lambda z_a, z_b: criterion(torch.cat((z_a, z_b)))


def _lightly_loss(d: int) -> Callable[[Tensor, Tensor], Tensor]:
    return importlib.import_module("lightly.loss").BarlowTwinsLoss(lambda_param=LAMBDA)


def _solo_loss(d: int) -> Callable[[Tensor, Tensor], Tensor]:
    loss = importlib.import_module("solo.losses.barlow").barlow_loss_func
    return partial(loss, lamb=LAMBDA, scale_loss=1.0)


def _ours(form: str, d: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z_a, z_b: barlow_twins_loss(z_a, z_b, lambda_=LAMBDA, form=form).loss


LOSSES: dict[str, Callable[[int], Callable[[Tensor, Tensor], Tensor]]] = {
    AUTHORS: lambda d: partial(authors_loss, bn=nn.BatchNorm1d(d, affine=False)),
    "VISSL": _vissl_loss,
    "lightly": _lightly_loss,
    "solo-learn": _solo_loss,
    "ours, correlation": partial(_ours, "correlation"),
    "ours, gram": partial(_ours, "gram"),
    "ours": partial(_ours, "auto"),
}
FORMS_IN_D = [name for name in LOSSES if name not in ("ours", "ours, gram")]


def forward_backward(name: str, n: int, d: int) -> Step:
    """Embeddings of the two views, correlated as in training, and one step of a loss on them."""
    loss = LOSSES[name](d)
    generator = torch.Generator().manual_seed(0)
    z_a = torch.randn(n, d, generator=generator)
    z_b = torch.randn(n, d, generator=generator).mul_(0.5).add_(z_a).requires_grad_()
    z_a.requires_grad_()

    def step() -> None:
        z_a.grad = z_b.grad = None
        loss(z_a, z_b).backward()

    return step


def products_alone(n: int, d: int) -> Step:
    """The matrix products of `auto`'s form, forward and backward, into memory that is there already.

    Each form has three of equal cost. The gram form has two symmetric matrices, of which half is
    enough: one product. Then, as in the correlation form, comes one for the gradient of either
    view. Whatever else the loss computes, and all it computes of the other halves, counts as waste.
    """
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    gram = choose_form(n, d, 1) == "gram"
    first = (z, z.T) if gram else (z.T, z)
    square, grad = torch.mm(*first), torch.empty_like(z)
    second = (square, z) if gram else (z, square)

    def step() -> None:
        torch.mm(*first, out=square)
        for _ in range(2):
            torch.mm(*second, out=grad)

    return step


def ready_to_measure(name: str, n: int, d: int) -> Step:
    """A step in a process whose libraries have their buffers already."""
    forward_backward(name, 32, 128)()
    return forward_backward(name, n, d)


def installed() -> tuple[list[str], dict[str, str]]:
    """Losses that run here, and why the others do not."""
    names, missing = [], {}
    for name in LOSSES:
        try:
            forward_backward(name, 4, 6)()
            names.append(name)
        except ImportError as error:
            missing[name] = f"{type(error).__name__}: {error}"
    return names, missing


def within_reach(name: str, n: int, d: int) -> bool:
    if name == AUTHORS:
        return d <= WIDEST and 6 * n * d * d <= MOST_OPERATIONS
    if name in FORMS_IN_D:
        return d <= WIDEST_OF_OTHERS and 6 * n * d * d <= MOST_OPERATIONS_OF_OTHERS
    form = choose_form(n, d, 1) if name == "ours" else "gram"
    return form_cost(form, n, d, 1).operations <= MOST_OPERATIONS and n * d <= 2**26


def _form(name: str, n: int, d: int, processes: int) -> str:
    return "correlation" if name == AUTHORS else choose_form(n, d, processes)


def computed_operations(name: str, n: int, d: int, processes: int) -> float:
    return form_cost(_form(name, n, d, processes), n, d, processes).operations


def computed_memory(name: str, n: int, d: int, processes: int) -> float:
    """Bytes of one process: both normalised views, both gradients and the large matrices.

    A process alone keeps no large views in the Gram form (`kernels._column_blocks`).
    """
    rows = n / processes
    if name == AUTHORS:
        return 4 * (4 * d * d + 6 * rows * d)
    if _form(name, n, d, processes) == "correlation":
        return 4 * (4 * rows * d + d * d)
    gathered = 2 * n * d if processes > 1 else 0
    views = 0 if processes == 1 and n * d > LARGEST_KEPT else 2 * rows * d
    return 4 * (gathered + views + 2 * rows * d + 2 * rows * n)


def computed_sent(name: str, n: int, d: int, processes: int) -> float:
    """Bytes."""
    return form_cost(_form(name, n, d, processes), n, d, processes).bytes_sent


def draw_scaling(path, times: dict, memory: dict) -> None:
    """Time, memory and bytes sent (rows) against N, D and processes (columns).

    One process sends nothing, which a logarithmic axis leaves out.
    """
    columns = {
        f"N (D = {FIXED_D})": (BATCHES, lambda n, p: (n, FIXED_D, p)),
        f"D (N = {FIXED_N})": (WIDTHS, lambda d, p: (FIXED_N, d, p)),
        f"processes (N = 2048, D = {FIXED_D})": (PROCESSES, lambda w, p: (2048, FIXED_D, w)),
    }
    speed = {}  # operations per second, from the largest size measured
    for name in (AUTHORS, "ours"):
        measured = {size: t[name] for size, t in times.items() if name in t}
        operations = {size: computed_operations(name, *size, 1) for size in measured}
        largest = max(operations, key=operations.get)
        speed[name] = operations[largest] / measured[largest]
    rows = {
        "time (s)": (1, times, lambda name, *s: computed_operations(name, *s) / speed[name]),
        "memory of a process (MiB)": (1, memory, lambda *s: computed_memory(*s) / MIB),
        "sent by a process (MiB)": (FIXED_PROCESSES, {}, lambda *s: computed_sent(*s) / MIB or nan),
    }
    figure, grid = plt.subplots(len(rows), len(columns), figsize=(13, 10), sharex="col")
    for axes, (resource, (processes, measured, compute)) in zip(grid, rows.items()):
        for axis, (label, (x, size_at)) in zip(axes, columns.items()):
            for name, colour in ((AUTHORS, "tab:red"), ("ours", "tab:blue")):
                sizes = [size_at(value, processes) for value in x]
                axis.plot(x, [compute(name, *size) for size in sizes], color=colour, alpha=0.6)
                points = [
                    (value, measured[n, d][name])
                    for value, (n, d, p) in zip(x, sizes)
                    if p == 1 and name in measured.get((n, d), {})
                ]
                if points:
                    axis.plot(*zip(*points), "o", color=colour)
            note = f"; {processes} processes" if processes > 1 and x is not PROCESSES else ""
            axis.set(xscale="log", yscale="log", title=label + note)
            axis.set_xticks(x, [str(value) for value in x], rotation=30)
            axis.minorticks_off()
        axes[0].set_ylabel(resource)
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, linestyle=line, label=f"{name}, {what}")
        for name, colour in ((AUTHORS, "tab:red"), ("ours", "tab:blue"))
        for what, marker, line in (("measured", "o", ""), ("computed", "", "-"))
    ]
    figure.legend(handles=handles, ncols=4, loc="lower center")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def measure_times(sizes, names: list[str], *, repeats: int) -> dict:
    """(N, D) -> name -> median seconds, and those of `PRODUCTS`."""
    times = {}
    for n, d in sizes:
        steps = {name: forward_backward(name, n, d) for name in names if within_reach(name, n, d)}
        if steps:
            steps[PRODUCTS] = products_alone(n, d)
            samples = interleaved_times(
                steps, repeats=repeats, seconds=15.0, clock=time.process_time
            )
            times[n, d] = {name: median(values) for name, values in samples.items()}
            print(n, d, {name: f"{t * 1e3:.2f} ms" for name, t in times[n, d].items()}, flush=True)
    return times


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    names, missing = installed()
    sizes = QUICK if args.quick else [(n, d) for d in WIDTHS for n in BATCHES]
    times = measure_times(sizes, names, repeats=7 if args.quick else 9)
    memory = {
        size: {
            name: peak_extra_mib(ready_to_measure, name, *size)
            for name in ((AUTHORS, "ours") if within_reach(AUTHORS, *size) else ("ours",))
        }
        for size in (MEMORY_QUICK if args.quick else MEMORY)
    }

    def time_row(n: int, d: int) -> list:
        found = times[n, d]
        ratio = found[AUTHORS] / found["ours"] if {AUTHORS, "ours"} <= found.keys() else None
        milliseconds = [found[name] * 1e3 if name in found else None for name in names]
        return [
            f"({n}, {d})",
            choose_form(n, d, 1),
            *milliseconds,
            ratio,
            TARGETS.get((n, d), 1.0),
            found[PRODUCTS] / found["ours"],
            SHARES.get((n, d), 0.8 if n >= 1024 else None),
        ]

    def memory_row(n: int, d: int) -> list:
        found = memory[n, d]
        ratio = found[AUTHORS] / found["ours"] if AUTHORS in found else None
        return [f"({n}, {d})", found.get(AUTHORS), found["ours"], ratio]

    header = ["(N, D)", "auto", *(f"{name} (ms)" for name in names), "authors / ours", "target"]
    header += ["products / ours", "target"]
    tables = [
        markdown_table(header, [time_row(*size) for size in times]),
        markdown_table(
            ["(N, D)", "authors, peak extra MiB", "ours", "authors / ours"],
            [memory_row(*size) for size in memory],
        ),
        *(f"{name}: not measured, {why}" for name, why in missing.items()),
    ]
    results = {
        "seconds": {f"{n}x{d}": found for (n, d), found in times.items()},
        "peak_extra_mib": {f"{n}x{d}": found for (n, d), found in memory.items()},
        "not_measured": missing,
    }
    write_results(args.out, "bench_loss", table="\n\n".join(tables), results=results)
    draw_scaling(args.out / "bench_loss.png", times, memory)


if __name__ == "__main__":
    main()
