"""Image files on the disk: those below a folder, and which of them cannot be read."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from vissl_barlow import images as images_module
from vissl_barlow.images import (
    ImageCheck,
    UnreadableFolder,
    UnreadableImage,
    list_images,
    read_image,
    unreadable_images,
)


@pytest.fixture
def folder(tmp_path):
    """Ten images a0.png ... a9.png, of which 2 and 7 hold no image, and 5 is not there."""
    for index in range(10):
        Image.fromarray(np.full((4, 6, 3), index, np.uint8)).save(tmp_path / f"a{index}.png")
    (tmp_path / "a2.png").write_bytes(b"<html>")
    (tmp_path / "a7.png").write_bytes(b"")
    (tmp_path / "a5.png").unlink()
    return tmp_path


NAMES = [f"a{index}.png" for index in range(10)]


def located(folder):
    return lambda name: folder / name


def test_an_image_is_read_and_a_failure_names_the_file(folder):
    np.testing.assert_array_equal(read_image(folder / "a3.png"), np.full((4, 6, 3), 3, np.uint8))
    for name, reason in {
        "a2.png": "no image format",
        "a7.png": "the file is empty",
        "a5.png": "No such file or directory",
    }.items():
        with pytest.raises(UnreadableImage, match=f"^{folder / name}: {reason}"):
            read_image(folder / name)


def make_strange_files(folder) -> dict[str, str]:
    """Names of images that are no files, or have no end; and why they are not read."""
    os.mkfifo(folder / "pipe.jpg")
    os.symlink("/dev/zero", folder / "zero.jpg")
    os.symlink("/proc/kmsg", folder / "log.jpg")
    (folder / "folder.jpg").mkdir()
    with (folder / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    return {
        "pipe.jpg": "not a regular file",
        "zero.jpg": "not a regular file",
        "log.jpg": "the file is empty",
        "folder.jpg": "not a regular file",
        "sparse.jpg": "1099511627776 bytes, more than 536870910",
    }


def test_what_is_no_file_or_has_no_end_is_unreadable(folder):
    reasons = make_strange_files(folder)
    found = unreadable_images([*reasons, "a3.png"], -1, locate=located(folder))
    assert found == ImageCheck(6, list(reasons))
    for name, reason in reasons.items():
        with pytest.raises(UnreadableImage, match=f"^{folder / name}: {reason}"):
            read_image(folder / name)


def test_a_device_is_not_even_opened(tmp_path, monkeypatch):
    os.symlink("/dev/null", tmp_path / "x.jpg")
    monkeypatch.setattr(os, "open", None)  # a watchdog counts from then on
    with pytest.raises(UnreadableImage, match="not a regular file"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("wanted", [-1, 10, 1000])
def test_all_images_are_checked_where_all_are_wanted(folder, wanted):
    found = unreadable_images(NAMES, wanted, locate=located(folder))
    assert found == ImageCheck(10, ["a2.png", "a5.png", "a7.png"])


def test_whole_paths_need_no_place(folder):
    paths = np.array([str(folder / name) for name in NAMES[:3]])
    found = unreadable_images(paths, -1)
    assert found == (3, [str(folder / "a2.png")])
    assert type(found.unreadable[0]) is str


def test_a_selection_is_random_and_repeats_with_its_seed(folder, monkeypatch):
    read = []
    monkeypatch.setattr(images_module, "read_image", lambda path: read.append(path.name))

    def selected(seed, wanted=4):
        read.clear()
        assert unreadable_images(NAMES, wanted, seed=seed, locate=located(folder)) == (wanted, [])
        return tuple(read)

    assert selected(0) == selected(0)
    assert len(set(selected(0))) == 4
    selections = {selected(seed) for seed in range(20)}
    assert len(selections) > 10
    assert {name for names in selections for name in names} == set(NAMES)
    # Read and reported in the order of the list.
    assert all(list(names) == sorted(names) for names in selections)


def test_none_is_read_where_none_is_wanted_or_there(folder):
    assert unreadable_images(NAMES, 0, locate=located(folder)) == (0, [])
    assert unreadable_images([], 5) == unreadable_images([], -1) == (0, [])


def test_images_below_a_folder_are_listed_as_torchvision_orders_them(tmp_path):
    names = (
        "b/2.JPG",
        "b/10.jpg",
        "a/z.png",
        "a/deep/er/1.jpeg",
        "top.webp",
        "a/notes.txt",
        "b/x.jpg~",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    elsewhere = tmp_path.parent / f"{tmp_path.name}_elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked.png").touch()
    os.symlink(elsewhere, tmp_path / "c")
    expected = ["top.webp", "a/z.png", "a/deep/er/1.jpeg", "b/10.jpg", "b/2.JPG", "c/linked.png"]
    assert list_images(tmp_path) == expected
    assert list_images(str(tmp_path)) == expected
    with pytest.raises(FileNotFoundError, match=r"top\.webp is not a folder"):
        list_images(tmp_path / "top.webp")


def make_images(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_is_listed_once_however_many_links_lead_to_it(tmp_path):
    make_images(tmp_path, "a/0.png", "b/1.png")
    os.symlink(".", tmp_path / "0self")
    os.symlink("../b", tmp_path / "a" / "to_b")
    os.symlink("../a", tmp_path / "b" / "to_a")
    os.symlink("b", tmp_path / "again")
    images, repeated = images_module.image_listing(tmp_path)
    # The folder's own name, though links to it come first in the order.
    assert images == list_images(tmp_path) == ["a/0.png", "b/1.png"]
    assert repeated == ["0self", "a/to_b", "again", "b/to_a"]


def test_two_links_to_one_folder_elsewhere_list_it_under_the_first(tmp_path):
    make_images(tmp_path, "elsewhere/deep/0.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "elsewhere" / "deep" / "back")
    root = tmp_path / "root"
    root.mkdir()
    for name in ("x", "y"):
        os.symlink(tmp_path / "elsewhere", root / name)
    assert images_module.image_listing(root) == (["x/deep/0.png"], ["x/deep/back", "y"])


def test_what_cannot_be_listed_is_said(tmp_path, monkeypatch):
    make_images(tmp_path, "a/0.png", "b/1.png")
    os.symlink(tmp_path / "unmounted", tmp_path / "c")
    with pytest.raises(UnreadableFolder, match=r"/c is a link that leads nowhere$"):
        list_images(tmp_path)
    (tmp_path / "c").unlink()
    scandir = os.scandir

    def forbidden(path):
        # Root reads every folder, whatever its permissions.
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(UnreadableFolder, match=f"^{tmp_path}/b: Permission denied$"):
        list_images(tmp_path)


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        (["train/a/0.png", "val/a/0.png"], ["train", "val"]),
        (["Test/0.png", "train/0.png"], ["Test", "train"]),
        (["train/0.png"], []),
        (["0.png", "train/0.png", "val/0.png"], []),
        (["bus/0.png", "train/0.png", "val/0.png"], []),
        (["val/0.png", "test/0.png"], []),
        (
            ["train2014/0.png", "train2017/0.png", "val2017/0.png"],
            ["train2014", "train2017", "val2017"],
        ),
        (["seg_test/0.png", "seg_train/0.png"], ["seg_test", "seg_train"]),
        (["bullet_train/0.png", "driving_test/0.png"], []),
    ],
)
def test_a_root_of_parts_is_told_from_classes(images, parts):
    assert images_module.parts_of_data_set(images) == parts
