"""What a folder of one's own images is taken for: labels, what is held out, sizes, refusals."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vissl_barlow.own_images import FolderRefused, read_folder

BOTH = ["a", "b"]


def fill(root: Path, *names: str, size=(8, 6)) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
    return root


def classes(root: Path, folder: str = "", images: int = 3, names=BOTH) -> Path:
    return fill(root, *(os.path.join(folder, c, f"{n}.png") for c in names for n in range(images)))


def test_a_flat_folder_has_no_labels(tmp_path):
    found = read_folder(fill(tmp_path, "1.png", "2.png"))
    assert found.train == ["1.png", "2.png"] and found.test == [] and found.classes == []
    assert found.train_labels is None and found.test_labels is None
    assert found.description == "2 images without labels"


def test_class_folders_hold_one_in_ten_out(tmp_path):
    found = read_folder(classes(tmp_path, images=25))
    assert found.classes == BOTH and found.test_from == "1 in 10 of each class"
    assert len(found.train) == 46 and len(found.test) == 4
    assert not set(found.train) & set(found.test)
    for names, labels in ((found.train, found.train_labels), (found.test, found.test_labels)):
        assert [BOTH[label] for label in labels] == [Path(name).parts[0] for name in names]
    assert np.bincount(found.test_labels).tolist() == [2, 2]
    assert found.description.startswith("50 images in 2 classes; 4 of them (1 in 10 of each class)")


def test_what_is_held_out_hangs_on_names_alone(tmp_path):
    first = read_folder(classes(tmp_path / "first", images=40))
    moved = read_folder(classes(tmp_path / "second", "wrapped", images=40))
    assert [f"wrapped/{name}" for name in first.test] == moved.test
    # Another class, and images of the same that hash behind those held out, change nothing.
    more = read_folder(classes(tmp_path / "first", images=40, names=["c"]))
    assert set(first.test) <= set(more.test)


def test_a_class_of_one_image_is_trained_on(tmp_path):
    found = read_folder(fill(classes(tmp_path), "c/only.png"))
    assert "c/only.png" in found.train and found.classes == ["a", "b", "c"]
    assert np.bincount(found.test_labels).tolist() == [1, 1]
    alone = read_folder(fill(tmp_path / "alone", "a/1.png", "b/1.png"))
    assert alone.classes == [] and alone.train == ["a/1.png", "b/1.png"]
    assert "no class has two images" in alone.description


@pytest.mark.parametrize("part", ["val", "test", "Validation"])
def test_a_part_beside_train_is_tested_on(tmp_path, part):
    found = read_folder(classes(classes(tmp_path, "train"), part, images=2))
    assert found.test_from == f"{part}/" and found.classes == BOTH
    assert len(found.train) == 6 and all(name.startswith("train") for name in found.train)
    assert len(found.test) == 4 and all(name.startswith(part) for name in found.test)


@pytest.mark.parametrize(
    ("train", "part"),
    [
        ("training", "validation"),
        ("Training_Set", "test_set"),
        ("train2017", "val2017"),
        ("train-images", "dev"),
        ("seg_train/seg_train", "seg_test/seg_test"),
    ],
)
def test_parts_by_other_names_are_no_classes(tmp_path, train, part):
    found = read_folder(classes(classes(tmp_path, train), part, images=2))
    assert found.classes == BOTH and found.test_from == f"{part.partition('/')[0]}/"
    assert len(found.train) == 6 and len(found.test) == 4


def test_classes_named_like_parts_are_classes(tmp_path):
    for number, names in enumerate([["bullet_train", "driving_test"], ["train", "trainer", "bus"]]):
        assert read_folder(classes(tmp_path / str(number), names=names)).classes == sorted(names)


def test_val_goes_before_test_and_fewer_classes_may_be_tested(tmp_path):
    classes(classes(tmp_path, "test", images=1), "train")
    found = read_folder(classes(tmp_path, "val", names=["b"]))
    assert found.test_from == "val/" and set(found.test_labels) == {1}
    assert "test left out" in found.description


def test_a_part_of_other_classes_is_left_out(tmp_path):
    fill(classes(tmp_path, "train"), "val/1.png")
    found = read_folder(tmp_path)
    assert found.test_from == "1 in 10 of each class" and "val left out" in found.note
    assert not any(name.startswith("val") for name in (*found.train, *found.test))


def test_parts_without_labels(tmp_path):
    found = read_folder(fill(tmp_path, "train/1.png", "train/2.png", "val/3.png"))
    assert found.train == ["train/1.png", "train/2.png"] and found.test == []
    assert found.description == "2 images without labels: val left out"


def test_nested_folders(tmp_path):
    wrapped = read_folder(classes(tmp_path / "wrapped", "images/all"))
    assert wrapped.classes == BOTH
    deep = read_folder(fill(tmp_path / "deep", *(f"{c}/{n}/1.png" for c in BOTH for n in "xyz")))
    assert deep.classes == BOTH and len(deep.test) == 2
    parts = tmp_path / "parts"
    found = read_folder(classes(classes(parts, "train/images"), "val/images"))
    assert found.classes == BOTH and found.test_from == "val/"
    only = read_folder(classes(tmp_path / "only", "train"))
    assert only.classes == BOTH and only.test_from == "1 in 10 of each class"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["cats/1.png", "cats/2.png"], ""),
        (["a/1.png", "b/2.png", "3.png"], "images lie beside folders"),
        (["test/1.png", "val/2.png"], "parts of a data set"),
    ],
)
def test_folders_that_are_no_classes(tmp_path, names, reason):
    found = read_folder(fill(tmp_path, *names))
    assert found.classes == [] and len(found.train) == len(names)
    assert reason in found.note


def test_sizes_are_heights_and_widths(tmp_path):
    fill(fill(tmp_path, "a.png", size=(8, 6)), "b.jpg", size=(30, 20))
    (tmp_path / "broken.png").write_bytes(b"")
    found = read_folder(tmp_path)
    assert sorted(found.sizes.tolist()) == [[6, 8], [20, 30]]
    assert len(found.train) == 3


def test_refusals_say_what_may_have_been_meant(tmp_path):
    photos = fill(tmp_path / "photos", "1.png")
    for path, why, instead in (
        (photos / "1.png", "a file", str(photos)),
        (tmp_path / "fotos", "no such folder", str(photos)),
        (tmp_path / "zzz", "no such folder", None),
    ):
        with pytest.raises(FolderRefused, match=why) as refused:
            read_folder(path)
        assert refused.value.instead == instead


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(FolderRefused, match="no file at all"):
        read_folder(tmp_path)
    (tmp_path / "a.HEIC").touch()
    with pytest.raises(
        FolderRefused, match=r"JPEG, PNG.* found \.heic; convert the \.heic files, to JP"
    ):
        read_folder(tmp_path)


def test_what_is_hidden_is_left_out(tmp_path):
    hidden = [".thumbs/a/1.png", "a/._1.png", "__MACOSX/a/1.png", "b/@eaDir/1.png"]
    found = read_folder(fill(classes(tmp_path), *hidden))
    assert found.classes == BOTH and len(found.train) + len(found.test) == 6
    assert found.note == "4 hidden images (.thumbs, __MACOSX, a/._1.png, ...) left out"
    # Where its own path is hidden, it is what was asked for.
    assert read_folder(tmp_path / ".thumbs").note == ""
    with pytest.raises(
        FolderRefused, match=r"all of its 2 images are hidden \(\.b, c/\._1\.png\)"
    ) as it:
        read_folder(fill(tmp_path / "all", ".b/1.png", "c/._1.png"))
    assert it.value.instead == str(tmp_path / "all" / ".b")


def test_every_format_is_listed_and_others_are_named(tmp_path):
    names = ["a.gif", "a.JFIF", "a.jpe", "a.pnm", "a.pbm", "a.apng", "a.jpg"]
    unread = ["1.HEIC", "2.heic", "3.dng", "4.txt", "5.mp4", "._6.heic"]
    for name in (*names, *unread):
        (tmp_path / name).touch()
    found = read_folder(tmp_path)
    assert sorted(found.train) == sorted(names)
    assert found.note == "no format that is read, and left out: 2 .heic, 1 .dng"


def test_images_that_are_held_out_and_trained_on_are_named(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("train/a/1", "train/a/2", "train/b/3", "val/a/4", "val/b/5"):
        fill(tmp_path, f"{name}.png")
        pixels = rng.integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.bmp")  # of one size in bytes
        (tmp_path / f"{name}.png").unlink()
    assert read_folder(tmp_path).warnings == []
    (tmp_path / "val/b/5.bmp").write_bytes((tmp_path / "train/a/2.bmp").read_bytes())
    found = read_folder(tmp_path)
    assert found.trained_on == [("val/b/5.bmp", "train/a/2.bmp")]
    assert found.warnings[0].startswith(
        "1 of 2 images held out are trained on as well, byte for byte"
    )
    assert read_folder(tmp_path / "val").warnings == []  # without any held out


def test_stacks_and_films_are_named(tmp_path):
    pages = [Image.new("L", (9, 9), level) for level in (0, 100, 200)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "film.gif", save_all=True, append_images=pages[1:2])
    pages[0].save(tmp_path / "page.tif")
    # As of a camera: a JPEG and its preview.
    pages[0].save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=pages[1:2])
    found = read_folder(tmp_path)
    (line,) = found.warnings
    assert line.startswith("2 of 4 images looked at have several frames or pages (")
    assert "stack.tif: 3" in line and "film.gif: 2" in line and len(found.sizes) == 4


def test_classes_that_look_alike_are_named(tmp_path):
    found = read_folder(classes(tmp_path, names=["cat", "Cat", "Caf\u00e9", "Cafe\u0301", "dog"]))
    assert len(found.classes) == 5
    assert "Cat, cat are 2 classes, though spelt alike" in found.note
    assert "Cafe\u0301, Caf\u00e9 are 2 classes" in found.note


@pytest.mark.parametrize("extra", ["extras/1.png", "1.png"])
def test_what_lies_beside_the_parts_is_refused(tmp_path, extra):
    fill(classes(classes(tmp_path, "train"), "val"), extra)
    with pytest.raises(FolderRefused, match="beside train, val") as refused:
        read_folder(tmp_path)
    assert refused.value.instead == str(tmp_path / "train")
