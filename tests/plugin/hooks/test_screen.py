"""What a person sees of a run: one screen, then the bar, and warnings above it."""

import io
import logging
import re
import sys
from types import SimpleNamespace

import cv2
import pytest
from forked_runs import TINY, RunServer
from rich.console import Console
from terminals import on_a_terminal, seen

import vissl_barlow
from vissl_barlow.digits import digits
from vissl_barlow.screen import ScreenHandler

TERMS = {"loss": 12.5, "invariance": 10.0, "redundancy": 500.0}


@pytest.fixture(autouse=True)
def registered():
    vissl_barlow.register()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def bar_on(screen: io.StringIO, width: int = 80, step: int = 16, steps: int = 60):
    from vissl_barlow.vissl_plugin.hooks.outputs import ProgressBar

    task = SimpleNamespace(iteration=step, max_iteration=steps)
    return ProgressBar(Console(file=screen, force_terminal=True, width=width), task)


def test_the_bar_starts_where_the_run_does_and_log_lines_pass_above_it(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(logging.root, "handlers", [ScreenHandler("stdout")])
    bar = bar_on(screen)
    (shown,) = bar.progress.tasks
    assert (shown.completed, shown.total) == (16, 60)
    bar.advance(20)
    bar.write(None, TERMS)
    assert shown.completed == 20
    assert shown.fields["terms"] == "loss 12.5, invariance 10, redundancy 500"
    logging.warning("a line")
    bar.close()
    assert sys.stdout is screen
    above, line, *_ = seen(screen.getvalue())
    assert above.strip() == "a line"
    assert line.startswith("20/60 ") and " loss 12.5, invariance 10, redundancy 500 " in line


@pytest.mark.parametrize("width", [50, 80, 200])
def test_the_bar_has_its_eta_however_long_the_rest_is(width):
    screen = io.StringIO()
    bar = bar_on(screen, width, step=500_400, steps=1_251_000)
    bar.write(None, {"loss": 1234.5, "invariance": 1.017e4, "redundancy": 1.017e4})
    bar.close()
    line = seen(screen.getvalue())[0]
    assert re.search(r"^500400/1251000 .* loss 1.* eta -:--:--$", line) and len(line) <= width


def test_a_bar_leaves_a_stdout_that_is_no_terminal_alone(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    bar = bar_on(io.StringIO())
    print("a line")
    bar.close()
    assert file.getvalue() == "a line\n"


def test_a_pretraining_on_a_terminal_shows_one_screen_then_the_bar(tmp_path):
    """As it is typed, with a loader worker that meets images it cannot read."""
    images = tmp_path / "images"
    images.mkdir()
    for index, pixels in enumerate(digits("train")[0][:62]):
        cv2.imwrite(str(images / f"{index:02}.png"), pixels)
    for name in ("bad1.png", "bad2.png"):
        (images / name).write_bytes(b"no image")
    status, lines = on_a_terminal(
        [
            *(sys.executable, "-m", "tools.run_distributed_engines"),
            *TINY,
            "config.OPTIMIZER.num_epochs=2",
            "config.DATA.TRAIN.DATA_SOURCES=[barlow_folder]",
            f"config.DATA.TRAIN.DATA_PATHS=[{images}]",
            "config.BARLOW.CHECK_IMAGES=0",
            "config.DATA.NUM_DATALOADER_WORKERS=1",
            "config.CHECKPOINT.DIR=run",
        ],
        tmp_path,
    )
    assert status == 0, "\n".join(lines)
    start = next(i for i, line in enumerate(lines) if line.startswith("vissl_barlow "))
    shown = dict(re.findall(r"^  (\w[\w ]*?)  +(.+)$", "\n".join(lines[start:]), re.MULTILINE))
    assert shown["config"] == "pretrain/vissl_barlow/digits_quickstart"
    assert shown["trunk"].startswith("ResNet-18, width 0.0625, ")
    assert shown["heads"] == "barlow_projector 32-32-32-32"
    assert shown["train images"].startswith("64 images ")
    assert shown["batch"] == "8" and shown["length"] == "2 epochs of 8 steps"
    assert shown["folder"].startswith("run, ")
    after = lines[start + len(shown) + 1 :]
    bars = [line for line in after if "eta" in line]
    assert len(bars) == 1  # it was never left behind by what others wrote
    assert bars[0].startswith("16/16 ") and bars[0].rstrip().endswith("eta 0:00:00")
    warnings = [line for line in after if line.startswith("WARNING: unreadable image ")]
    assert len(warnings) >= 4
    assert not [line for line in lines if re.match(r"(INFO|DEBUG) ", line)]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("bad1.png: ") + log.count("bad2.png: ") == len(warnings)
    for vissls in (
        "Env set for rank",
        "Training with config",
        "System config",
        "Model is",
        "iter: ",
    ):
        assert vissls in log
    assert shown["trunk"] in log


def test_without_a_terminal_there_is_the_same_screen_and_verbose_has_all(tmp_path):
    with RunServer() as server:
        quiet = server.finish(tmp_path / "quiet", "config.OPTIMIZER.num_epochs=2")
        verbose = server.finish(
            tmp_path / "verbose", "config.OPTIMIZER.num_epochs=2", "config.VERBOSE=true"
        )
        several = server.finish(
            tmp_path / "several",
            "config.OPTIMIZER.num_epochs=2",
            "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
            "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
        )
        again = server.finish(tmp_path / "quiet", "config.OPTIMIZER.num_epochs=2")
    for run in (quiet, several):
        assert run.output.count("  trunk ") == 1
        assert "step 8/" in run.output and "INFO" not in run.output
        assert "Training with config" in (run.folder / "log.txt").read_text()
    assert "8 in 2 processes of 4" in several.output
    assert re.search(r"^INFO .* Training with config", verbose.output, re.MULTILINE)
    assert "  trunk " in verbose.output
    assert f"Training already succeeded in {tmp_path / 'quiet'}" in again.output


def test_meters_are_numbers_by_name():
    from vissl_barlow.vissl_plugin.hooks.monitor import _flat

    one = {"top_1": {"res5avg": 62.5}, "top_5": {"res5avg": 90}}
    assert dict(_flat(one)) == {"top_1": 62.5, "top_5": 90}
    two = {"top_1": {"conv1": 10, "res5avg": 62.5}}
    assert dict(_flat(two)) == {"top_1 conv1": 10, "top_1 res5avg": 62.5}
    assert dict(_flat({"mAP": 3})) == {"mAP": 3}
