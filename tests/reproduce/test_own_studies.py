"""`python -m vissl_barlow.reproduce table5 --data FOLDER`: the studies on one's own images."""

import shlex

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf
from pretend_runs import pretraining, probed

from vissl_barlow.reproduce import report_tables
from vissl_barlow.reproduce.__main__ import main
from vissl_barlow.reproduce.batch import global_batch
from vissl_barlow.reproduce.departures import config_departures
from vissl_barlow.reproduce.overrides import PRETRAIN_GROUP, compose_config
from vissl_barlow.reproduce.runs import find_runs
from vissl_barlow.reproduce.studies import BASE, load_study, study_names
from vissl_barlow.reproduce.studies import pretraining as overrides_of
from vissl_barlow.reproduce.transfer import OWN


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(3):
            path = tmp_path / "images" / name / f"{number}.png"
            cv2.imwrite(str(path), np.full((9, 9, 3), number, np.uint8))
    return tmp_path / "images"


def test_an_overlay_goes_onto_own_images(images, tmp_path, capsys):
    arguments = ["table5", "--data", "images", "--only", "only inv", "--dry-run"]
    assert main(arguments) == 0
    (line,) = capsys.readouterr().out.splitlines()
    words = shlex.split(line)
    assert words[3:5] == [
        f"config={PRETRAIN_GROUP}/ablations/only_invariance",
        f"config/{PRETRAIN_GROUP}=own_images",
    ]
    # Widths divided by 16, the digits' length and batch, in one process.
    assert {
        "config.MODEL.HEAD.PARAMS.0.1.dims=[512,512,512]",
        "config.OPTIMIZER.num_epochs=20",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=128",
        "config.DISTRIBUTED.NUM_PROC_PER_NODE=1",
        f"config.DATA.TRAIN.DATA_PATHS=[{images}]",
    } <= set(words)
    (folder,) = [word.split("=")[1] for word in words if word.startswith("config.CHECKPOINT.DIR=")]
    assert folder.startswith(f"{tmp_path}/report/own/images-")


def test_heads_of_their_own_begin_at_whatever_the_trunk_has(tmp_path):
    (experiment, *_) = load_study("table7", OWN).experiments
    words = overrides_of(experiment, OWN, tmp_path)
    (heads,) = [word for word in words if word.startswith("config.MODEL.HEAD.PARAMS=")]
    assert heads.startswith(
        "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:auto,dims:[256,16]"
    )


def test_own_images_have_colours():
    names = [experiment.name for experiment in load_study("figure3", OWN).experiments]
    assert "Remove grayscale" in names
    assert names == [
        experiment.name for experiment in load_study("figure3", "imagenet").experiments
    ]


def test_own_images_have_every_key_that_a_study_sets_on_the_baseline():
    own = compose_config(f"{PRETRAIN_GROUP}/own_images")
    keys = {
        word.partition("=")[0].removeprefix("config.")
        for name in study_names()
        for experiment in load_study(name, OWN).experiments
        if experiment.config == BASE
        for word in experiment.overrides
    }
    assert "DATA.TRAIN.TRANSFORMS.0.grayscale_p" in keys
    assert [key for key in keys if OmegaConf.select(own, key) is None] == []


def test_the_augmentations_of_own_images_are_the_papers_but_for_what_follows_from_the_images():
    own, paper = (
        compose_config(f"{PRETRAIN_GROUP}/{name}").DATA.TRAIN.TRANSFORMS[0]
        for name in ("own_images", BASE)
    )
    chosen = {key for key in own if own[key] == "auto"}
    assert chosen == {"size", "crop_scale", "blur_sigma"}
    assert [key for key in own if key not in chosen and own[key] != paper[key]] == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "image",
            "there is no such folder; give imagenet, digits or a folder of class folders; try",
        ),
        ("images/a", "3 images without labels; a study compares accuracies: sort the images into"),
    ],
)
def test_what_a_study_cannot_be_asked_of_is_refused(images, capsys, data, message):
    with pytest.raises(SystemExit):
        main(["table5", "--data", data])
    assert f"--data {images.parent}/{data}: {message}" in capsys.readouterr().err


def test_what_the_config_leaves_open_is_no_departure():
    config = f"{PRETRAIN_GROUP}/own_images"
    heads = [["barlow_projector", {"in_dim": 256, "dims": [512, 512, 512]}]]
    trunk = {"NAME": "barlow_resnet", "RESNETS": {"DEPTH": 18, "WIDTH_MULTIPLIER": 0.5}}
    resolved = {"MODEL": {"TRUNK": trunk, "HEAD": {"PARAMS": heads}}}
    typed = "config.MODEL.HEAD.PARAMS.0.1.dims=[512,512,512]"
    assert list(config_departures(config, [typed], resolved)) == []
    heads[0][1]["dims"] = [512, 512, 64]
    assert len(list(config_departures(config, [typed], resolved))) == 1
    assert global_batch(config) is None


def test_the_report_says_whose_images(tmp_path, monkeypatch):
    """Runs on two folders share no mean, and stand beside no number of the paper's."""
    experiments = {each.name: each for each in load_study("table5", OWN).experiments}
    chosen = experiments["Baseline"]
    for number, (folder, accuracy) in enumerate((("x", 0.5), ("x", 0.7), ("y", 0.9))):
        run = tmp_path / "runs" / str(number)
        config, *overrides = overrides_of(chosen, OWN, run, number)
        data = {"train": {"images": 90, "classes": 3, "paths": [f"/{folder}"], "source": "s"}}
        name = config.removeprefix(f"config={PRETRAIN_GROUP}/")
        options = {"batch": 128, "processes": 1, "seed": number, "data": data}
        probed(pretraining(run, name, *overrides, **options), accuracy)
    table = report_tables.study_table("table5", OWN, find_runs(tmp_path / "runs"))
    assert table.title == "Table 5: loss function explorations — own images, NOT ImageNet"
    assert table.reference_name == "untrained trunk"
    measured = {row.label: row.values for row in table.rows if row.values}
    assert measured == {
        "Baseline, 90 images in 3 classes of /x": (pytest.approx(50), pytest.approx(70)),
        "Baseline, 90 images in 3 classes of /y": (pytest.approx(90),),
    }
    batch = ["config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=32"]
    other = report_tables.study_table("table5", OWN, find_runs(tmp_path / "runs"), batch)
    assert other.title == f"{table.title}, with global batch=32"
    # Nor are they among ImageNet's curves, with names that can be written.
    figure = report_tables.training_table
    monkeypatch.setattr(report_tables, "study_names", list)
    assert figure("imagenet", find_runs(tmp_path / "runs")).rows == ()
    assert figure(OWN, find_runs(tmp_path / "runs")).rows
