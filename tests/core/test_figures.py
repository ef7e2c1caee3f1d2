"""What the pictures show, read from matplotlib's axes."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vissl_barlow import figures


@pytest.fixture
def drawn(monkeypatch):
    """The figures made during a test."""
    made = []

    def figure(**options):
        made.append(Figure(**options))
        return made[-1]

    monkeypatch.setattr(figures, "Figure", figure)
    return made


def lines(axes):
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
    }


HISTORY = [
    {"iteration": 1, "loss": 3.0, "invariance": 2.0, "redundancy": 200.0},
    {"iteration": 5, "loss": 1.5, "invariance": 1.0, "redundancy": 100.0},
]


def test_pretraining_shows_the_terms_and_the_correlation(drawn, tmp_path):
    before, after = np.array([[0.5, 0.2], [0.2, 0.7]]), np.array([[1.0, 0.1], [-0.1, 0.8]])
    path = tmp_path / "barlow.png"
    figures.draw_pretraining(path, HISTORY, 0.005, before, after, "a title")
    assert Image.open(path).size[0] > 1000
    (figure,) = drawn
    curves, first, last = figure.axes[:3]
    assert lines(curves) == {
        "loss": ([1, 5], [3.0, 1.5]),
        "invariance term": ([1, 5], [2.0, 1.0]),
        "0.005 x redundancy reduction term": ([1, 5], [1.0, 0.5]),
    }
    assert curves.get_yscale() == "log"
    assert first.get_title() == "C before training\ndiagonal 0.60, off-diagonal RMS 0.20"
    assert last.get_title() == "C after training\ndiagonal 0.90, off-diagonal RMS 0.10"
    np.testing.assert_array_equal(last.get_images()[0].get_array(), after)
    assert last.get_images()[0].get_clim() == (-1, 1)


def test_a_matrix_that_is_not_known_is_left_out(drawn, tmp_path):
    figures.draw_pretraining(tmp_path / "x.png", HISTORY, 0.005, None, np.eye(2), "")
    assert [len(axes.get_images()) for axes in drawn[0].axes[:3]] == [0, 0, 1]


def test_accuracies_are_points_with_their_mean_and_the_papers(drawn, tmp_path):
    panels = {
        "batch size": [("64", [50.0, 54.0], None), ("1024", [60.0], 71.4), ("4096", [], 70.0)],
        "loss": [("ours", [60.0], 71.4), ("theirs", [61.0], None)],
    }
    figures.draw_accuracies(tmp_path / "x.png", panels, "x", "top-1", "title")
    numeric, named = drawn[0].axes
    mean, *runs, paper = numeric.get_lines()
    assert (list(mean.get_xdata()), list(mean.get_ydata())) == ([64, 1024], [52.0, 60.0])
    assert [list(run.get_ydata()) for run in runs] == [[50.0, 54.0], [60.0]]
    assert (list(paper.get_xdata()), list(paper.get_ydata())) == ([1024, 4096], [71.4, 70.0])
    assert numeric.get_xscale() == "log" and named.get_xscale() == "linear"
    assert [label.get_text() for label in named.get_xticklabels()] == ["ours", "theirs"]
    assert (numeric.get_xlabel(), named.get_xlabel()) == ("x", "loss")
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["ours", "paper"]


def test_a_comparison_has_its_rows_from_the_top_and_a_colour_per_source(drawn, tmp_path):
    rows = [("linear", {"paper": [73.2], "ours": [70.0, 71.0]}), ("1%", {"ours": [50.0]})]
    figures.draw_comparison(tmp_path / "x.png", rows, "accuracy", "title")
    (axes,) = drawn[0].axes
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert [label.get_text() for label in axes.get_yticklabels()] == ["linear", "1%"]
    points = [(list(x.get_xdata()), list(x.get_ydata())) for x in axes.get_lines()[:3]]
    assert points == [([73.2], [0]), ([70.0, 71.0], [0, 0]), ([50.0], [1])]
    colours = [line.get_color() for line in axes.get_lines()[:3]]
    assert colours == [figures.REFERENCE, figures.OURS, figures.OURS]
    assert [x.get_text() for x in axes.get_legend().get_texts()] == ["paper", "ours"]


def test_curves_have_one_colour_a_run_and_skip_what_was_not_logged(drawn, tmp_path):
    entry = {"loss": 1.0, "diagonal_mean": 0.5, "off_diagonal_rms": 0.1}
    ranks = {"effective_rank_representation": 9.0, "effective_rank_embedding": 8.0}
    histories = {
        "a": [{"iteration": 1, **entry}, {"iteration": 2, **entry, **ranks}],
        "b": [{"iteration": 1, **entry}],
    }
    figures.draw_curves(tmp_path / "x.png", histories, "title")
    loss, correlation, rank = drawn[0].axes
    assert [line.get_color() for line in loss.get_lines()] == ["C0", "C1"]
    assert [line.get_linestyle() for line in correlation.get_lines()] == ["-", "--"] * 2
    assert [list(line.get_xdata()) for line in rank.get_lines()] == [[2], [2]]
    assert [list(line.get_ydata()) for line in rank.get_lines()] == [[9.0], [8.0]]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["a", "b"]
