"""`python -m vissl_barlow.views`: the pictures are those that a run of the config would train on."""

import random

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vissl_barlow.digits import digits
from vissl_barlow.views import TwoViews, view_seed
from vissl_barlow.views import __main__ as command

SIZE = "config.DATA.TRAIN.TRANSFORMS.0.size=24"
DIGITS = ("--config", "pretrain/vissl_barlow/digits_quickstart")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / name)
    return folder


def drawn(monkeypatch, *arguments):
    """What the command hands to the figure: images, views, crops, title."""
    calls = []
    monkeypatch.setattr(command, "draw_views", lambda _, *rest: calls.append(rest))
    assert command.main(list(map(str, arguments))) == 0
    return calls[0]


def test_the_views_are_those_of_the_first_epoch(folder, monkeypatch, capsys):
    (folder / "a" / "0.png").write_text("no image")  # counts, as in the data source
    out = folder.parent / "views.png"
    images, views, crops, title = drawn(monkeypatch, folder, SIZE, "--out", out, "--seed", 3)
    assert len(images) == 3 and SIZE in title and "resnet50_in1k_1000ep" in title
    said = capsys.readouterr()
    assert "0.png" in said.err and "views of 3 of 4 images" in said.out and str(out) in said.out
    index = {
        np.asarray(Image.open(folder / n)).tobytes(): i
        for i, n in enumerate(("a/1.png", "a/2.png", "b/3.png"), 1)
    }
    two_views = TwoViews(24, normalize_on_device=True)
    for image, pair, boxes in zip(images, views, crops):
        seed = view_seed(3, 0, index[image.tobytes()])
        for view, expected in zip(pair, two_views(image, random.Random(seed))):
            assert torch.equal(torch.from_numpy(view).permute(2, 0, 1), expected)
        rng = random.Random(seed)
        assert list(boxes) == [
            two_views.sample_parameters(40, 60, view=view, rng=rng).crop for view in (0, 1)
        ]


def test_a_picture_comes_of_the_digits_without_a_folder(tmp_path):
    out = tmp_path / "digits.png"
    assert command.main([*DIGITS, "--images", "9", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.width > 1000  # nine images, two columns of them


def test_a_runs_own_config_is_drawn(tmp_path, monkeypatch):
    options = {"name": "BarlowTwoViews", "size": 8, "normalize_on_device": True}
    data = {"TRAIN": {"DATA_SOURCES": ["barlow_digits"], "TRANSFORMS": [options]}}
    (tmp_path / "train_config.yaml").write_text(yaml.safe_dump({"DATA": data}))
    arguments = ("--config", tmp_path / "train_config.yaml", "--out", tmp_path / "v.png")
    images, views, _, _ = drawn(monkeypatch, *arguments, "--images", 2)
    assert all(image.tobytes() in {i.tobytes() for i in digits("train")[0]} for image in images)
    assert views[0][0].shape == (8, 8, 3)


def test_images_that_own_images_hold_out_are_not_drawn(folder, monkeypatch, capsys):
    rng = np.random.default_rng(1)
    for name in ("train/a/1.png", "train/b/2.png", "val/a/1.png", "val/b/2.png"):
        (folder / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        image.save(folder / "own" / name)
    given = {"size": 32, "crop_scale": "[0.2,1.0]", "blur_sigma": "[0.1,1.0]"}
    words = [f"config.DATA.TRAIN.TRANSFORMS.0.{key}={value}" for key, value in given.items()]
    arguments = (
        "--config",
        "pretrain/vissl_barlow/own_images",
        *words,
        "--out",
        folder.parent / "v.png",
    )
    images, views, _, _ = drawn(monkeypatch, folder / "own", *arguments)
    assert "views of 2 of 2 images" in capsys.readouterr().out
    two_views = TwoViews(32, crop_scale=(0.2, 1), blur_sigma=(0.1, 1), normalize_on_device=True)
    trained_on = [np.asarray(Image.open(folder / "own/train" / n)) for n in ("a/1.png", "b/2.png")]
    for image, pair in zip(images, views):
        (index,) = (i for i, each in enumerate(trained_on) if np.array_equal(each, image))
        expected = two_views(image, random.Random(view_seed(0, 0, index)))
        np.testing.assert_array_equal(pair[0], expected[0].permute(1, 2, 0))
    assert command.main([str(folder / "owm"), *map(str, arguments)]) == 1
    assert f"try {folder / 'own'}" in capsys.readouterr().err


def test_own_images_are_drawn_as_a_run_would_choose(folder, monkeypatch):
    arguments = ("--config", "pretrain/vissl_barlow/own_images", "--out", folder.parent / "v.png")
    flip = "config.DATA.TRAIN.TRANSFORMS.0.flip_p=0"
    images, views, _, _ = drawn(monkeypatch, folder, flip, *arguments)
    assert len(images) == 2
    two_views = TwoViews(
        40, flip_p=0, crop_scale=(0.2, 1), blur_sigma=(0.0179, 0.3571), normalize_on_device=True
    )
    trained_on = [
        np.asarray(Image.open(folder / name)) for name in ("a/1.png", "a/2.png", "b/3.png")
    ]
    trained_on = [each for each in trained_on if any(np.array_equal(each, i) for i in images)]
    for image, pair in zip(images, views):
        (index,) = (i for i, each in enumerate(trained_on) if np.array_equal(each, image))
        expected = two_views(image, random.Random(view_seed(0, 0, index)))
        for view, of_run in zip(pair, expected):
            np.testing.assert_array_equal(view, of_run.permute(1, 2, 0))
    larger = (folder, "config.DATA.TRAIN.TRANSFORMS.0.size=64", *arguments)
    _, views, _, _ = drawn(monkeypatch, *larger)
    assert views[0][0].shape == (64, 64, 3)


def test_all_that_is_wrong_is_said_at_once(folder, capsys):
    wrong = [
        str(folder / "gone"),
        f"{SIZE[:-2]}-1",
        "--images",
        "0",
        "--out",
        str(folder / "no/v.png"),
    ]
    assert command.main(wrong) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    for part in ("gone is not a folder", "size is -1", "--images 0", f"no folder {folder / 'no'}"):
        assert part in err


@pytest.mark.parametrize(
    "arguments, remedy",
    (
        (("--config", "pretrain/vissl_barlow/nothing"), "pretrain/vissl_barlow/NAME"),
        ((SIZE.replace("size", "sise"),), "sise"),
        (("config.DATA.TRAIN.TRANSFORMS.0.size=auto",), "TRANSFORMS.0.size=VALUE"),
        (("config.DATA.TRAIN.TRANSFORMS=[{name:ToTensor}]",), "BarlowTwoViews alone"),
        (("second",), "name one folder"),
    ),
)
def test_what_cannot_be_drawn_is_refused_in_one_line(folder, capsys, arguments, remedy):
    assert command.main([str(folder), *arguments, "--out", str(folder.parent / "v.png")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and remedy in err
    assert not (folder.parent / "v.png").exists()


@pytest.mark.parametrize("out", ("v.png", "a/1.png", "v.jpg", "v"))
def test_no_picture_takes_the_place_of_an_image_or_stands_among_them(folder, capsys, out):
    before = (folder / "a/1.png").read_bytes()
    place = folder if out.endswith(".png") else folder.parent
    assert command.main([str(folder), SIZE, "--out", str(place / out)]) == 1
    remedy = f"give {folder.parent / out.rpartition('/')[2]}" if place == folder else "give v.png"
    assert remedy in capsys.readouterr().err
    assert (folder / "a/1.png").read_bytes() == before and not (folder / "v.png").exists()
