"""The studies' files: their experiments, the commands of these, and the tables of their results."""

import pytest
import yaml
from pretend_runs import experiment, pretend_study, probed
from vissl_runs import ANYWHERE, resolve

from vissl_barlow.reproduce.__main__ import main
from vissl_barlow.reproduce.studies import load_study, pretraining, study_names

STUDIES = {
    "table5": (7, 7),
    "table6": (4, 4),
    "table7": (6, 6),
    "figure2": (30, 12),
    "figure3": (5, 4),
    "figure4": (50, 25),
    "figure5": (7, 5),
    "objectives": (11, 11),
}


def test_every_study_has_its_experiments():
    counted = {
        name: tuple(len(load_study(name, data).experiments) for data in ("imagenet", "digits"))
        for name in study_names()
    }
    assert counted == STUDIES


@pytest.mark.parametrize("data", ["imagenet", "digits"])
@pytest.mark.parametrize("study", STUDIES)
def test_every_experiment_of_a_study_resolves_in_a_folder_of_its_own(study, data, tmp_path):
    experiments = load_study(study, data).experiments
    folders = set()
    for each in experiments:
        config, *rest = pretraining(each, data, tmp_path)
        resolve(tmp_path, config.removeprefix("config="), *rest, *ANYWHERE)
        folders.add(each.folder)
    # Only the baseline may be in a figure more than once.
    shared = {"figure4": 4}.get(study, 0)
    assert len(folders) == len(experiments) - shared


def test_table_7_has_the_papers_shapes():
    shapes = []
    for each in load_study("table7", "imagenet").experiments:
        dims = [o.split("=")[1] for o in each.overrides if ".dims=" in o]
        shapes.append((each.name, *dims))
    for name, *dims in shapes[1:]:
        named = [f"[{widths.replace('-', ',')}]" for widths in name.split(" / ")]
        assert named == dims
    assert shapes[0][0] == "4096-256 / 4096-256"  # the config's own


def _figure_4(series: str, data: str = "imagenet") -> dict[int, dict[str, object]]:
    """What each point but the baseline's overrides, by its dimensions."""
    return {
        int(each.name): {
            key.rpartition(".")[2]: yaml.safe_load(value)
            for key, value in (override.split("=") for override in each.overrides)
        }
        for each in load_study("figure4", data).experiments
        if each.series == series and each.overrides
    }


PAPERS_WIDTHS = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384]  # and 8192, the baseline


def test_figure_4_widens_the_last_layer_or_all_three():
    """The caption has the last; a co-author (issue 48 of the authors' code) 16384-16384-16384."""
    assert _figure_4("width") == {
        width: {"dims": [8192, 8192, width]} for width in [*PAPERS_WIDTHS, 32768, 65536]
    }
    assert _figure_4("width of all layers") == {
        width: {"dims": [width] * 3} for width in PAPERS_WIDTHS
    }


@pytest.mark.parametrize(("data", "scale"), [("imagenet", 196), ("digits", 196 / 16)])
@pytest.mark.parametrize("widened", ["width", "width of all layers"])
def test_figure_4s_bias_rate_moves_as_in_the_research_code(widened, data, scale):
    """It scaled the loss by 196 / D (the authors' issue 9); the digits' widths are divided by 16."""
    plain, scaled = (_figure_4(f"{widened}{rest}", data) for rest in ("", ", bias rate 196 / D"))
    assert len(scaled) == (10 if data == "imagenet" else 4)
    for width, overrides in scaled.items():
        assert overrides["bias_lr_scale"] * width == pytest.approx(scale, rel=1e-12)
        assert overrides["dims"] == plain[width]["dims"]


def test_a_figure_shows_the_best_of_the_grid_and_says_which_data(tmp_path):
    found = {("32", "0.1"): 0.5, ("32", "0.2"): 0.7, ("128", "0.1"): 0.9, ("128", "0.2"): 0.8}
    pretend_study(tmp_path, "figure2", found)
    assert main(["figure2", "--list", "--data", "digits", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "digits" / "figure2.md").read_text()
    assert "digits, NOT ImageNet" in table
    assert "| batch size 32 (lr 0.2) | probe | 30.0 | 70.0 | +40.0 |" in table
    assert "| batch size 128 (lr 0.1) | probe | 30.0 | 90.0 | +60.0 |" in table
    assert "| batch size 64 | probe |  |  |  |" in table
    assert (tmp_path / "digits" / "figure2.png").read_bytes().startswith(b"\x89PNG")


def test_a_series_that_must_be_named_is_shown_once_it_was_run(tmp_path):
    def table() -> str:
        assert main(["figure4", "--list", "--data", "digits", "--out", str(tmp_path)]) == 0
        return (tmp_path / "digits" / "figure4.md").read_text()

    series = "width of all layers"
    probed(experiment(tmp_path, "figure4", "512", "digits"), 0.9)  # the baseline, of every series
    assert "| width 512 | probe | 30.0 | 90.0 | +60.0 |" in table() and series not in table()
    probed(experiment(tmp_path, "figure4", "128", "digits", series=series), 0.8)
    assert f"| {series} 128 | probe | 30.0 | 80.0 | +50.0 |" in table()
    assert f"| {series} 512 | probe | 30.0 | 90.0 | +60.0 |" in table()
    assert f"| {series}, bias rate" not in table()


def test_several_seeds_are_averaged_and_counted(tmp_path):
    for seed, accuracy in ((0, 0.9), (1, 0.94)):
        probed(experiment(tmp_path, "table6", "(b) predictor", "digits", seed=seed), accuracy)
    assert main(["table6", "--list", "--data", "digits", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "digits" / "table6.md").read_text()
    assert "| (b) predictor | probe | 30.0 | 92.0 ± 2.8 (2 runs) | +62.0 |" in table


def test_the_papers_numbers_stand_beside_imagenets_only(tmp_path):
    for data in ("imagenet", "digits"):
        assert main(["table5", "--list", "--data", data, "--out", str(tmp_path)]) == 0
    row = "| Only invariance term (on-diag term) |"
    assert f"{row} top-1 | 57.3 |  |" in (tmp_path / "table5.md").read_text()
    assert f"{row} probe |  |" in (tmp_path / "digits" / "table5.md").read_text()
