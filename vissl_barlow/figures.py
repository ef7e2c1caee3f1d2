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
