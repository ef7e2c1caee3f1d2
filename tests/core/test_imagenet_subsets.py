"""The commands that make file lists: SimCLR's subsets of ImageNet, and Places-205."""

import numpy as np
import pytest

from vissl_barlow.datasets import imagenet_subsets, places205
from vissl_barlow.datasets.file_lists import DatasetError
from vissl_barlow.datasets.imagenet_subsets import read_subset
from vissl_barlow.datasets.places205 import read_list

# Not in alphabetical order, as SimCLR's lists are not.
NAMES = ["n02_7.JPEG", "n01_3.JPEG", "n10_1.JPEG", "n01_4.JPEG"]


@pytest.fixture
def imagenet(tmp_path):
    """Three classes; n10 sorts after n02 by name, not by number."""
    for name in (*NAMES, "n01_5.JPEG", "n02_8.JPEG"):
        folder = tmp_path / "imagenet" / "train" / name.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    return tmp_path / "imagenet"


def command(tmp_path, *arguments) -> int:
    names, imagenet = str(tmp_path / "names.txt"), str(tmp_path / "imagenet")
    out = str(tmp_path / "lists")
    return imagenet_subsets.main(
        ["--names", names, "--imagenet", imagenet, "--out", out, *arguments]
    )


def test_labels_are_torchvisions_and_paths_are_the_lists(imagenet, tmp_path, capsys):
    assert command(tmp_path, "--allow-any-count") == 0
    images = np.load(tmp_path / "lists" / "train_images.npy", allow_pickle=False)
    labels = np.load(tmp_path / "lists" / "train_labels.npy", allow_pickle=False)
    expected = [str(imagenet / "train" / name.split("_")[0] / name) for name in NAMES]
    assert images.tolist() == expected
    assert (labels.tolist(), labels.dtype) == ([1, 0, 2, 0], np.int64)
    assert not list((tmp_path / "lists").glob("*.partial"))
    assert "4 images of 3 classes" in capsys.readouterr().out


def test_only_simclrs_counts_pass(imagenet, tmp_path, capsys):
    assert imagenet_subsets.COUNTS == (12_811, 128_116)
    assert command(tmp_path) == 1
    assert "4 names, expected 12,811 (1%) or 128,116 (10%)" in capsys.readouterr().err
    assert not (tmp_path / "lists").exists()

    # The right number of names, of a data set with too few classes.
    numbers = range(12_811)
    (tmp_path / "names.txt").write_text("\n".join(f"n01_{number}.JPEG" for number in numbers))
    assert command(tmp_path) == 1
    assert "3 sub-folders, expected one for each of the 1000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([*NAMES, "n01_3.JPEG"], r"1 names twice \(n01_3\.JPEG\)"),
        ([*NAMES, "n01_99.JPEG"], r"1 of the 5 images are not there \(n01_99\.JPEG\)"),
        ([*NAMES, "n77_1.JPEG"], r"1 names of classes that .* does not have \(n77_1\.JPEG\)"),
        ([*NAMES, "../../secret"], r"1 names of classes that .* does not have"),
        (["n01_3.JPEG", "n02_7.JPEG"], r"no image of 1 classes \(n10\)"),
    ],
)
def test_names_that_do_not_fit_the_images(imagenet, tmp_path, names, message):
    (tmp_path / "names.txt").write_text("\n".join(names))
    with pytest.raises(DatasetError, match=message):
        read_subset(tmp_path / "names.txt", imagenet / "train", any_count=True)


def test_missing_files_are_one_line(imagenet, tmp_path, capsys):
    (tmp_path / "names.txt").unlink()
    assert command(tmp_path) == 1
    assert capsys.readouterr().err.startswith("error: [Errno 2] No such file or directory")


def places(tmp_path, lines: list[str]):
    (tmp_path / "train_places205.csv").write_text("\n".join(lines))
    for name in ("a/abbey/1.jpg", "b/bar inside/2.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    return tmp_path / "train_places205.csv", tmp_path / "images"


def test_places_lists_become_paths_and_labels(tmp_path):
    list_file, images = places(tmp_path, ["a/abbey/1.jpg 0", "b/bar inside/2.jpg 17"])
    paths, labels = read_list(list_file, images, count=None)
    assert paths == [str(images / "a/abbey/1.jpg"), str(images / "b/bar inside/2.jpg")]
    assert labels == [0, 17]
    (tmp_path / "val_places205.csv").write_text("a/abbey/1.jpg 0\n")
    arguments = ["--images", str(images), "--lists", str(tmp_path), "--out", str(tmp_path / "out")]
    assert places205.main(arguments) == 1
    assert places205.main([*arguments, "--allow-any-count"]) == 0
    assert np.load(tmp_path / "out" / "val_labels.npy").tolist() == [0]


@pytest.mark.parametrize(
    ("lines", "count", "message"),
    [
        (["a/abbey/1.jpg 0"], 2_448_873, "1 images, expected 2,448,873"),
        (["a/abbey/1.jpg 0"], 1, "1 classes, expected 0 to 204"),
        (
            ["a/abbey/1.jpg 0", "a/abbey/1.jpg"],
            None,
            ":2: 'a/abbey/1.jpg', expected <path> <label>",
        ),
        (["../secret.jpg 0"], None, ":1: ../secret.jpg is not below"),
        (["a/abbey/3.jpg 0"], None, "1 of 1 images looked for are not there"),
    ],
)
def test_places_lists_that_are_not_the_published_ones(tmp_path, lines, count, message):
    list_file, images = places(tmp_path, lines)
    with pytest.raises(DatasetError) as raised:
        read_list(list_file, images, count=count)
    assert message in str(raised.value)
