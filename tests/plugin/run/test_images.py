"""Which images a run is of, as its log and its record say."""

import numpy as np
import pytest
from digits_on_disk import OVERLAY
from forked_runs import STEPS_PER_EPOCH
from vissl_runs import resolve

from vissl_barlow.provenance import read_provenance

KNN = "benchmark/vissl_barlow/imagenet1k_knn"
SVM = "benchmark/vissl_barlow/voc07_svm"


def images_of(config, split):
    from vissl.data import build_dataset

    from vissl_barlow.vissl_plugin.run.images import images_of

    return images_of(build_dataset(config, split))


def test_a_pretraining_says_and_records_its_images(uninterrupted):
    folder = uninterrupted[1]
    (start,) = read_provenance(folder)
    used = 8 * STEPS_PER_EPOCH
    train = {"images": used, "classes": None, "paths": [], "source": "barlow_digits"}
    assert start["data"] == {"train": train}
    assert f"train images   {used} images (barlow_digits)" in (folder / "log.txt").read_text()


def test_labelled_folders(tmp_path, digits_on_disk, monkeypatch):
    monkeypatch.chdir(digits_on_disk.imagenet)
    config = resolve(
        tmp_path,
        KNN,
        OVERLAY,
        "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=",
        "config.DATA.TRAIN.DATA_PATHS=train",
        "config.DATA.TEST.DATA_PATHS=val",
        "config.DATA.TRAIN.DATA_LIMIT=100",
    )
    where = {"paths": [str(digits_on_disk.imagenet / "train")], "source": "disk_folder"}
    assert images_of(config, "TRAIN") == {"images": 100, "classes": 10, **where}
    where["paths"] = [str(digits_on_disk.imagenet / "val")]
    assert images_of(config, "TEST") == {"images": 360, "classes": 10, **where}


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([[1, 0], [0, 1], [1, 1]], 2), ([7, 5, 5], 2), ([[1], [0], [2]], 3)],
)
def test_lists_of_labels(tmp_path, digits_on_disk, labels, classes):
    images = np.load(digits_on_disk.lists / "test_images.npy")[: len(labels)]
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", np.array(labels))
    config = resolve(
        tmp_path / "run",
        SVM,
        OVERLAY,
        "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=",
        *(
            f"config.DATA.{split}.{kind}_PATHS={tmp_path}/{name}.npy"
            for split in ("TRAIN", "TEST")
            for kind, name in (("DATA", "images"), ("LABEL", "labels"))
        ),
    )
    assert images_of(config, "TRAIN") == {
        "images": len(labels),
        "classes": classes,
        "paths": [f"{tmp_path}/images.npy"],
        "source": "disk_filelist",
    }


def test_the_line_of_the_log():
    from vissl_barlow.vissl_plugin.run.images import line_of

    images = {"images": 48, "classes": 3, "paths": ["/a", "/b"], "source": "disk_folder"}
    line = "test: 48 images in 3 classes from /a from /b (disk_folder)"
    assert line_of("test", images) == line


def test_the_images_of_a_probe_are_recorded_too(tmp_path):
    from vissl.trainer.trainer_main import build_task

    task = build_task(resolve(tmp_path, "pretrain/vissl_barlow/digits_quickstart"))
    task.datasets, _ = task.build_datasets()
    digits = {"paths": [], "source": "barlow_digits"}
    assert task.images == {
        "train": {"images": 1437, "classes": None, **digits},
        "test": {"images": 360, "classes": 10, **digits},
    }
