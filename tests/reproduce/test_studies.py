"""The studies' files: their experiments, the commands of these, and the tables of their results."""

import pytest
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
    "figure4": (17, 10),
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
    # Only the baseline may be in a figure twice.
    shared = {"figure4": 1}.get(study, 0)
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
