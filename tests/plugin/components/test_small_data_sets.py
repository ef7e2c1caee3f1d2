"""CIFAR-10, CIFAR-100, STL-10 and ImageNet-100: few images in the true formats, read as they were
written, and the configs that train and evaluate on them."""

import hashlib
import io
import os
import pickle
import struct
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torchvision
from vissl.data import build_dataset
from vissl_runs import resolve

from vissl_barlow.datasets import imagenet100
from vissl_barlow.vissl_plugin.components import stl10
from vissl_barlow.vissl_plugin.errors import ConfigError

CPU = (
    "config.MACHINE.DEVICE=cpu",
    "config.DISTRIBUTED.BACKEND=gloo",
    "config.MODEL.AMP_PARAMS.USE_AMP=false",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
    "config.DISTRIBUTED.NUM_PROC_PER_NODE=1",
)
GENERATOR = np.random.default_rng(0)


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


class _Python2Pickler(pickle._Pickler):
    """Text as Python 2, which wrote CIFAR's files, has it: bytes that are no unicode."""

    def _save_text(self, text):
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text.encode("latin1"))

    dispatch: ClassVar = {**pickle._Pickler.dispatch, str: _save_text}


def python2_pickle(content: dict) -> bytes:
    data = io.BytesIO()
    _Python2Pickler(data, protocol=2).dump(content)
    return data.getvalue()


def pixels(count: int, side: int) -> np.ndarray:
    """(N, H, W, 3) uint8; no two rows, columns or channels are alike."""
    return GENERATOR.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Six images for training and two for testing, of each CIFAR, in its Python version; torchvision
    knows their MD5 as it knows the true files'. By name: images, and their labels."""
    written = {}
    for name, labels_key, batches in (
        ("CIFAR10", "labels", {"data_batch_1": 2, "data_batch_2": 4, "test_batch": 2}),
        ("CIFAR100", "fine_labels", {"train": 6, "test": 2}),
    ):
        source = getattr(torchvision.datasets, name)
        folder = tmp_path / source.base_folder
        folder.mkdir()
        known = []
        for file, count in batches.items():
            images, labels = pixels(count, 32), list(range(count))
            # One row per image: a plane of 1024 per channel, red first.
            rows = images.transpose(0, 3, 1, 2).reshape(count, -1)
            content = {"data": rows, labels_key: labels}
            (folder / file).write_bytes(python2_pickle(content))
            known.append([file, md5(folder / file)])
            split = "test" if "test" in file else "train"
            found = written.setdefault((name, split), ([], []))
            found[0].extend(images)
            found[1].extend(labels)
        meta = folder / source.meta["filename"]
        meta.write_bytes(python2_pickle({source.meta["key"]: [str(i) for i in range(6)]}))
        monkeypatch.setattr(source, "train_list", known[:-1])
        monkeypatch.setattr(source, "test_list", known[-1:])
        monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(meta)})
    return tmp_path, written


def columns_first(images: np.ndarray) -> bytes:
    """As STL-10 has them: plane by plane, and each column by column."""
    return images.transpose(0, 3, 2, 1).tobytes()


@pytest.fixture
def stl(tmp_path, monkeypatch):
    """Three labelled images, four without and two to test on; by part."""
    source = torchvision.datasets.STL10
    folder = tmp_path / source.base_folder
    folder.mkdir()
    written = {part: pixels(n, 96) for part, n in (("train", 3), ("unlabeled", 4), ("test", 2))}
    for part, images in written.items():
        (folder / f"{part}_X.bin").write_bytes(columns_first(images))
        (folder / f"{part}_y.bin").write_bytes(bytes(range(1, len(images) + 1)))  # from 1
    (folder / "class_names.txt").write_text("\n".join(map(str, range(10))))
    monkeypatch.setattr(stl10, "FILES", {"train_X.bin": 3, "unlabeled_X.bin": 4})
    for known, parts in (("train_list", ("train", "unlabeled")), ("test_list", ("test",))):
        files = [f"{part}_{kind}.bin" for part in parts for kind in "Xy"]
        files = [file for file in files if file != "unlabeled_y.bin"]
        monkeypatch.setattr(source, known, [[file, md5(folder / file)] for file in files])
    return tmp_path, written


def dataset(folder, config: str, split: str, *overrides: str):
    """VISSL's data set of a split, when the config has passed the checks."""
    cfg = resolve(folder / "run", config, *CPU, *overrides)
    return build_dataset(cfg, split)


def paths(folder) -> tuple[str, str]:
    return tuple(f"config.DATA.{split}.DATA_PATHS=[{folder}]" for split in ("TRAIN", "TEST"))


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_is_read_as_it_was_written(cifar, name):
    folder, written = cifar
    train_path, _ = paths(folder)
    train = dataset(folder, f"pretrain/vissl_barlow/{name.lower()}", "TRAIN", train_path)
    images, _ = written[name, "train"]
    (source,) = train.data_objs
    assert len(source) == 6
    assert all(np.array_equal(np.asarray(source[i][0]), image) for i, image in enumerate(images))
    # Two views of 32 pixels, as the step takes them.
    views = train[0]["data"]
    assert [tuple(view.shape) for view in views] == [(3, 32, 32)] * 2

    config = f"benchmark/vissl_barlow/{name.lower()}_linear"
    weights = "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=''"
    for split in ("TRAIN", "TEST"):
        labelled = dataset(folder, config, split, weights, *paths(folder))
        labelled.load_labels()
        assert labelled.label_objs[0].tolist() == written[name, split.lower()][1]


def test_pickles_that_are_not_cifars_are_not_loaded(cifar, tmp_path):
    folder, _ = cifar
    batch = folder / torchvision.datasets.CIFAR10.base_folder / "data_batch_2"

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    batch.write_bytes(pickle.dumps({"data": Code()}, protocol=2))
    with pytest.raises(ConfigError, match="torchvision finds no whole CIFAR10 there") as refused:
        dataset(folder, "pretrain/vissl_barlow/cifar10", "TRAIN", paths(folder)[0])
    assert f"config.DATA.TRAIN.DATA_PATHS=[{folder}]" in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_stl10_has_its_labelled_and_its_other_images(stl):
    folder, written = stl
    train = dataset(folder, "pretrain/vissl_barlow/stl10", "TRAIN", paths(folder)[0])
    (source,) = train.data_objs
    everything = np.concatenate([written["train"], written["unlabeled"]])
    assert len(source) == 7
    read = [np.asarray(source.read(i)[0]) for i in range(7)]
    assert np.array_equal(read, everything)
    # The same as torchvision's.
    theirs = torchvision.datasets.STL10(folder, split="train+unlabeled")
    assert np.array_equal(read, [np.asarray(image) for image, _ in theirs])
    views = train[6]["data"]
    assert [tuple(view.shape) for view in views] == [(3, 96, 96)] * 2

    config = "benchmark/vissl_barlow/stl10_linear"
    weights = "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=''"
    tests = dataset(folder, config, "TEST", weights, *paths(folder))
    tests.load_labels()
    assert tests.label_objs[0].tolist() == [0, 1]


def test_missing_and_cut_files_of_stl10_are_named_at_once(stl):
    folder, _ = stl
    parts = folder / torchvision.datasets.STL10.base_folder
    (parts / "train_X.bin").unlink()
    (parts / "unlabeled_X.bin").write_bytes(b"cut")
    with pytest.raises(ConfigError) as refused:
        dataset(folder, "pretrain/vissl_barlow/stl10", "TRAIN", paths(folder)[0])
    message = str(refused.value)
    assert f"{parts}/train_X.bin: No such file or directory" in message
    assert f"{parts}/unlabeled_X.bin has 3 bytes, and 4 images 110,592" in message
    assert "torchvision.datasets.STL10(FOLDER, download=True)" in message


def test_imagenet_100_is_a_folder_of_links(tmp_path, capsys):
    names = imagenet100.classes()
    assert len(set(names)) == 100 and names[0] == "n01558993"
    imagenet, out = tmp_path / "imagenet", tmp_path / "links"
    for split in ("train", "val"):
        for name in [*names[:-1], "n99999999"]:  # of no hundred, and left alone
            (imagenet / split / name).mkdir(parents=True)
            cv2.imwrite(str(imagenet / split / name / "0.png"), np.zeros((8, 8, 3), np.uint8))
    arguments = ["--imagenet", str(imagenet), "--out", str(out)]
    assert imagenet100.main(arguments) == 1
    assert f"2 of 200 folders are not there (train/{names[-1]}, val/{names[-1]})" in (
        capsys.readouterr().err
    )
    assert not out.exists()
    for split in ("train", "val"):
        (imagenet / split / "n99999999").rename(imagenet / split / names[-1])
    for _ in range(2):  # what is there stays
        assert imagenet100.main(arguments) == 0
    train, val = (
        f"config.DATA.{split}.DATA_PATHS=[{out}/{folder}]"
        for split, folder in (("TRAIN", "train"), ("TEST", "val"))
    )
    pretraining = dataset(tmp_path, "pretrain/vissl_barlow/imagenet100", "TRAIN", train)
    assert len(pretraining.data_objs[0]) == 100
    config = "benchmark/vissl_barlow/imagenet100_linear"
    weights = "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=''"
    labelled = dataset(tmp_path, config, "TEST", weights, train, val)
    labelled.load_labels()
    assert labelled.label_objs[0].tolist() == list(range(100))
    (out / "val" / "n00000000").mkdir()
    assert imagenet100.main(arguments) == 1
    assert "val/n00000000 are no links to" in capsys.readouterr().err
