"""The pictures: matplotlib on plain numbers, written to a file."""

import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

matplotlib.use("Agg")  # training machines have no screen

LARGEST_CORRELATION_SHOWN = 1.0


def draw_pretraining(
    path: str | os.PathLike,
    history: Sequence[dict],
    lambda_: float,
    before: np.ndarray,
    after: np.ndarray,
    title: str,
) -> None:
    """Loss curves beside the cross-correlation matrix before and after training (Figure 1).

    Args:
        path: of the PNG.
        history: one dict per logged step with `iteration`, `loss`, `invariance`, `redundancy`.
        lambda_: weight of the redundancy term, for its curve.
        before, after: C of equation 2, (D, D).
        title: of the whole figure.
    """
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    figure.suptitle(title)
    curves, first, last = figure.subplots(1, 3, width_ratios=(1.35, 1, 1))
    steps = [entry["iteration"] for entry in history]
    curves.plot(steps, [entry["loss"] for entry in history], label="loss", color="black")
    curves.plot(steps, [entry["invariance"] for entry in history], label="invariance term")
    curves.plot(
        steps,
        [lambda_ * entry["redundancy"] for entry in history],
        label=f"{lambda_:g} x redundancy reduction term",
    )
    curves.set(xlabel="step", ylabel="equation 1", yscale="log")
    curves.grid(alpha=0.3)
    curves.legend()
    limit = LARGEST_CORRELATION_SHOWN
    for axes, matrix, name in ((first, before, "before"), (last, after, "after")):
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="none")
        off_diagonal = matrix[~np.eye(len(matrix), dtype=bool)]
        axes.set_title(
            f"C {name} training\ndiagonal {np.diag(matrix).mean():.2f}, "
            f"off-diagonal RMS {np.sqrt((off_diagonal**2).mean()):.2f}"
        )
    figure.colorbar(image, ax=(first, last), shrink=0.85)
    figure.savefig(path, dpi=110)


def draw_accuracies(
    path: str | os.PathLike,
    lines: dict[str, Sequence[tuple[str, Sequence[float]]]],
    x_label: str,
    y_label: str,
    title: str,
) -> None:
    """Accuracy against what was varied, one panel per series, every run a point (Figures 2 to 5).

    Args:
        path: of the PNG.
        lines: series to its points, (value, accuracies of its runs in %). The axis is logarithmic where
            all values are numbers more than tenfold apart, else by name.
        x_label, y_label, title: x_label names the first series' axis, the others name theirs.
    """
    figure = Figure(figsize=(5.5 * len(lines) + 1, 4.4), layout="constrained")
    figure.suptitle(title)
    for axes, (series, points) in zip(
        figure.subplots(1, len(lines), squeeze=False)[0], lines.items()
    ):
        names = [name for name, _ in points]
        try:
            positions = [float(name) for name in names]
        except ValueError:
            positions = list(range(len(names)))
            axes.set_xticks(positions, names, rotation=20, ha="right")
        else:
            if max(positions) > 10 * min(positions) > 0:
                axes.set_xscale("log")
            axes.set_xticks(positions, names, rotation=45)
            axes.minorticks_off()
        axes.plot(positions, [np.mean(accuracies) for _, accuracies in points], color="black")
        for position, (_, accuracies) in zip(positions, points):
            axes.plot([position] * len(accuracies), accuracies, "o", color="tab:blue", alpha=0.6)
        axes.set(xlabel=x_label if series == next(iter(lines)) else series, ylabel=y_label)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
