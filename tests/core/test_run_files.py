"""What a run leaves in its folder, as it is read again."""

import json

import pytest

from vissl_barlow.run_files import METRICS_FILE, read_history


def test_steps_are_in_order_and_a_repeated_one_counts_once_the_last(tmp_path):
    # A resumed run logs from its checkpoint on again.
    logged = [(1, 0.9), (2, 0.8), (3, 0.7), (2, 0.75), (3, 0.65), (4, 0.6)]
    lines = [json.dumps({"iteration": step, "loss": loss}) for step, loss in logged]
    (tmp_path / METRICS_FILE).write_text("\n".join(lines) + "\n")
    assert [(x["iteration"], x["loss"]) for x in read_history(tmp_path)] == [
        (1, 0.9),
        (2, 0.75),
        (3, 0.65),
        (4, 0.6),
    ]


def test_a_line_cut_short_is_left_out_with_the_one_appended_to_it(tmp_path):
    text = '{"iteration": 1}\n{"iteration": 2, "lo{"iteration": 3}\n{"iteration": 4}\n'
    (tmp_path / METRICS_FILE).write_text(text)
    assert [entry["iteration"] for entry in read_history(tmp_path)] == [1, 4]


def test_a_run_that_logged_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=METRICS_FILE):
        read_history(tmp_path)
