"""The pictures: matplotlib on plain numbers, written to a file."""

import os
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle

from vissl_barlow.atomic_files import atomic_file

matplotlib.use("Agg")  # training machines have no screen

LARGEST_CORRELATION_SHOWN = 1.0
OURS, REFERENCE = "tab:blue", "tab:orange"
# Of a map: the side of an image in points, and how many classes have colours.
_THUMBNAIL = 16
_COLORED_CLASSES = 20
_TWENTY = matplotlib.colormaps["tab20"]
# Of a grid of images, before there is a second column.
_LINES = 8


def draw_pretraining(
    path: str | os.PathLike | BinaryIO,
    history: Sequence[dict],
    lambda_: float,
    before: np.ndarray | None,
    after: np.ndarray,
    title: str,
) -> None:
    """Loss curves beside the cross-correlation matrix before and after training (Figure 1).

    Args:
        path: of the PNG, or an open file.
        history: one dict per logged step with `iteration`, `loss`, `invariance`, `redundancy`.
        lambda_: weight of the redundancy term, for its curve.
        before, after: C of equation 2, (D, D); None where it is not known.
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
        if matrix is None:
            axes.set_axis_off()
            continue
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="none")
        off_diagonal = matrix[~np.eye(len(matrix), dtype=bool)]
        axes.set_title(
            f"C {name} training\ndiagonal {np.diag(matrix).mean():.2f}, "
            f"off-diagonal RMS {np.sqrt((off_diagonal**2).mean()):.2f}"
        )
    figure.colorbar(image, ax=(first, last), shrink=0.85)
    _save(figure, path)


def draw_views(
    path: str | os.PathLike | BinaryIO,
    images: Sequence[np.ndarray],
    views: Sequence[tuple[np.ndarray, np.ndarray]],
    crops: Sequence[Sequence[tuple[int, int, int, int] | None]],
    title: str,
) -> None:
    """A grid of images, each with its view A and view B beside it and their crops on it.

    Args:
        path: of the PNG, or an open file.
        images: uint8 RGB (H, W, 3), of any sizes.
        views: of each image the two, uint8 RGB (S, S, 3).
        crops: of each image those of its views, as top, left, height and width; None: the whole image.
        title: of the whole figure.
    """
    triples = -(-len(images) // _LINES)
    lines = -(-len(images) // triples)
    figure = Figure(figsize=(5.4 * triples, 1.8 * lines + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(lines, 3 * triples, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (image, pair) in enumerate(zip(images, views)):
        line, column = number // triples, 3 * (number % triples)
        own, *others = grid[line, column : column + 3]
        own.imshow(image)
        for axes, view, crop, color in zip(others, pair, crops[number], (OURS, REFERENCE)):
            axes.imshow(view)
            if crop is not None:
                top, left, height, width = crop
                corner = left - 0.5, top - 0.5  # a pixel's centre is at its number
                own.add_patch(Rectangle(corner, width, height, fill=False, color=color, lw=1.5))
        if line == 0:
            own.set_title("image", fontsize=9)
            for axes, name, color in zip(others, ("view A", "view B"), (OURS, REFERENCE)):
                axes.set_title(name, fontsize=9, color=color)
    _save(figure, path)


def draw_representations(
    path: str | os.PathLike | BinaryIO,
    images: Sequence[np.ndarray],
    places: np.ndarray,
    neighbours: Sequence[tuple[int, Sequence[tuple[int, float]]]],
    labels: Sequence[int] | None,
    title: str,
) -> None:
    """A map of images by their representations, beside some of them with their nearest neighbours.

    Args:
        path: of the PNG, or an open file.
        images: uint8 RGB (S, S, 3), N of them.
        places: (N, 2), where each is on the map.
        neighbours: numbers of images, each with those nearest to it and their cosine similarity.
        labels: classes, shown by colours where they are at most 20; None: unknown.
        title: of the whole figure.
    """
    figure = Figure(figsize=(16, 8.4), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.35, 1))[0]
    axes = left.subplots()
    classes = sorted(set(labels)) if labels is not None else []
    colors = {
        label: f"C{i}" if len(classes) <= 10 else _TWENTY(i) for i, label in enumerate(classes)
    }
    colored = labels if labels is not None and 1 < len(classes) <= _COLORED_CLASSES else None
    for number, (image, place) in enumerate(zip(images, places)):
        frame = (
            {"edgecolor": colors[colored[number]], "lw": 2} if colored is not None else {"lw": 0}
        )
        thumbnail = OffsetImage(image, zoom=_THUMBNAIL / len(image))
        axes.add_artist(AnnotationBbox(thumbnail, place, pad=0, bboxprops=frame))
    axes.set_title(
        "map (t-SNE)" + (", framed by class" if colored is not None else ""), fontsize=10
    )
    axes.update_datalim(places)
    axes.autoscale_view()
    axes.margins(0.04)
    axes.set_xticks([])
    axes.set_yticks([])
    right.suptitle("an image and its nearest, by cosine similarity", fontsize=10)
    grid = right.subplots(
        len(neighbours), 1 + max(len(nearest) for _, nearest in neighbours), squeeze=False
    )
    for line, (query, nearest) in zip(grid, neighbours):
        for axes in line:
            axes.set_axis_off()
        line[0].imshow(images[query])
        for axes, (number, similarity) in zip(line[1:], nearest):
            axes.imshow(images[number])
            axes.set_title(f"{similarity:.2f}", fontsize=8, pad=2)
    _save(figure, path)


def draw_accuracies(
    path: str | os.PathLike,
    panels: Mapping[str, Sequence[tuple[str, Sequence[float], float | None]]],
    x_label: str,
    y_label: str,
    title: str,
) -> None:
    """Accuracy against what was varied, one panel per series, every run a point (Figures 2 to 5).

    Args:
        path: of the PNG.
        panels: series to its points, (value, accuracies of its runs in %, what the paper reports). The
            axis is logarithmic where all values are numbers more than tenfold apart, else by name.
        x_label, y_label, title: x_label names the first series' axis, the others name theirs.
    """
    figure = Figure(figsize=(5.5 * len(panels) + 1, 4.4), layout="constrained")
    figure.suptitle(title)
    for axes, (series, points) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items()
    ):
        names = [name for name, _, _ in points]
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
        measured = [(x, values) for x, (_, values, _) in zip(positions, points) if values]
        axes.plot([x for x, _ in measured], [np.mean(v) for _, v in measured], color="black")
        for x, values in measured:
            axes.plot([x] * len(values), values, "o", color=OURS, alpha=0.6)
        paper = [(x, value) for x, (_, _, value) in zip(positions, points) if value is not None]
        axes.plot([x for x, _ in paper], [value for _, value in paper], "D", color=REFERENCE)
        axes.set(xlabel=x_label if series == next(iter(panels)) else series, ylabel=y_label)
        axes.margins(0.08)
        axes.grid(alpha=0.3)
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=label)
        for label, color, marker in (("ours", OURS, "o"), ("paper", REFERENCE, "D"))
        if any(
            values if label == "ours" else reported is not None
            for points in panels.values()
            for _, values, reported in points
        )
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=2)
    _save(figure, path)


def draw_comparison(
    path: str | os.PathLike,
    rows: Sequence[tuple[str, Mapping[str, Sequence[float]]]],
    x_label: str,
    title: str,
) -> None:
    """The rows of a table as dots on one axis, each source of numbers with a colour of its own.

    Args:
        path: of the PNG.
        rows: labels, each with values by their source; the last source is ours.
        x_label, title: the axis' and the figure's.
    """
    figure = Figure(figsize=(9, 0.26 * len(rows) + 1.5), layout="constrained")
    axes = figure.subplots()
    sources = list(dict.fromkeys(name for _, values in rows for name in values))
    styles = {"ours": (OURS, "o"), "VISSL's built-in": ("tab:green", "s")}
    for y, (_, by_source) in enumerate(rows):
        for source, values in by_source.items():
            color, marker = styles.get(source, (REFERENCE, "D"))
            axes.plot(values, [y] * len(values), marker, color=color, alpha=0.75)
    for source in sources:
        color, marker = styles.get(source, (REFERENCE, "D"))
        axes.plot([], [], marker, color=color, label=source)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(xlabel=x_label, title=title)
    axes.grid(alpha=0.3)
    if sources:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    _save(figure, path)


def draw_curves(
    path: str | os.PathLike, histories: Mapping[str, Sequence[dict]], title: str
) -> None:
    """What pretraining changes, step by step: the loss, C and the effective ranks, one colour a run.

    Args:
        path: of the PNG.
        histories: label to one dict per logged step, with the monitor's keys.
        title: of the whole figure.
    """
    panels = {
        "loss (equation 1)": {"loss": "-"},
        "C: mean diagonal (solid), off-diagonal RMS (dashed)": {
            "diagonal_mean": "-",
            "off_diagonal_rms": "--",
        },
        "effective rank: representations (solid), embeddings (dashed)": {
            "effective_rank_representation": "-",
            "effective_rank_embedding": "--",
        },
    }
    height = 4.2 + 0.2 * len(histories)
    figure = Figure(figsize=(15, height), layout="constrained")
    figure.suptitle(title)
    for axes, (name, keys) in zip(figure.subplots(1, len(panels)), panels.items()):
        for number, history in enumerate(histories.values()):
            for key, style in keys.items():
                points = [(entry["iteration"], entry[key]) for entry in history if key in entry]
                if points:
                    axes.plot(*zip(*points), style, color=f"C{number % 10}")
        axes.set(xlabel="step", title=name)
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.3)
    figure.axes[0].set_yscale("log")
    handles = [
        Line2D([], [], color=f"C{number % 10}", label=label)
        for number, label in enumerate(histories)
    ]
    figure.legend(handles=handles, loc="outside lower left", fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike | BinaryIO) -> None:
    if isinstance(path, str | os.PathLike):
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=110)
    else:
        figure.savefig(path, format="png", dpi=110)
