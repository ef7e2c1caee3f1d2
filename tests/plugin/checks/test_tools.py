"""Labels and folders that VISSL's tools for features would fail at, or get wrong, are refused first."""

import numpy as np
import pytest
from digits_on_disk import OVERLAY
from vissl_runs import resolve

import vissl_barlow

vissl_barlow.register()

from vissl.config import AttrDict  # noqa: E402

from vissl_barlow.vissl_plugin.checks import tools  # noqa: E402
from vissl_barlow.vissl_plugin.errors import ConfigError  # noqa: E402

THREE = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]] * 2)
KNN = "benchmark/vissl_barlow/imagenet1k_knn"


def config(**svm) -> AttrDict:
    section = {"LABEL_SOURCES": ["disk_filelist"], "LABEL_PATHS": ["labels.npy"]}
    options = {"cls_list": [], "cross_val_folds": 3, "class_names": tools.vocs_classes(), **svm}
    return AttrDict({"DATA": {"TRAIN": section, "TEST": section}, "SVM": options})


def refusal(check, *arguments, **svm) -> str:
    with pytest.raises(ConfigError) as raised:
        check(config(**svm), *arguments)
    return str(raised.value)


@pytest.mark.parametrize("names", [[], ["a", "b", "c"], tools.vocs_classes()])
def test_svms_of_any_number_of_classes(names):
    tools.check_svms(config(class_names=names), THREE, THREE[:2])
    tools.check_svms(config(class_names=names[:1]), THREE[:, :1], THREE[:, :1])


@pytest.mark.parametrize(
    ("train", "test", "svm", "line"),
    [
        (THREE, THREE, {"class_names": ["a", "b"]}, "SVM.class_names=['a', 'b']: 2 names for 3 cl"),
        (THREE, THREE[:, :2], {}, "2 classes, and the training images have 3"),
        (THREE, THREE, {"cls_list": [1]}, "SVM.cls_list=[1]: all classes are tested; set []"),
        (np.arange(8), THREE, {}, "int64 of shape (8,) from 0 to 7"),
        (2 * THREE, THREE, {}, "int64 of shape (8, 3) from 0 to 2"),
        (THREE, THREE[:1], {}, "no test image of 1, 2"),
        (THREE, THREE[:1], {"class_names": ["a", "b", "c"]}, "no test image of b, c"),
        (THREE[:4], THREE, {}, "cross_val_folds=3: the cost is chosen"),
        (THREE[:4], THREE, {}, "for 0, 1, 2; with 2 folds it would do"),
        (THREE, THREE, {"cross_val_folds": 1}, "cross_val_folds=1: the cost is chosen"),
    ],
)
def test_labels_and_settings_without_svms(train, test, svm, line):
    assert line in refusal(tools.check_svms, train, test, **svm)


def test_all_that_is_wrong_with_the_labels_is_said_at_once():
    lines = refusal(tools.check_svms, THREE[:4], THREE[:1], class_names=["a"]).splitlines()
    assert [line.partition("=")[0] for line in lines] == [
        "config.SVM.class_names",
        "config.SVM.cross_val_folds",
        "config.DATA.TEST.LABEL_PATHS",
    ]


def test_low_shot_samples_of_more_images_than_there_are():
    low_shot = {"k_values": [1, 2], "sample_inds": [1]}
    tools.check_svms(config(low_shot=low_shot), THREE, THREE, low_shot=True)
    few = config(low_shot={**low_shot, "k_values": [1, 3]})
    with pytest.raises(ConfigError) as raised:
        tools.check_svms(few, THREE, THREE, low_shot=True)
    line = str(raised.value)
    assert "k=3 wants 3 training images with the class and 6 without it" in line
    assert line.endswith("too few for 0, 1, 2; set values up to 2")


def test_neighbours_want_one_known_class_per_image():
    labels = np.array([0, 4, 7, 4])  # numbers without images between them
    tools.check_neighbours(config(), labels, labels[:2])
    tools.check_neighbours(config(), labels[:1], labels[:1])
    assert "one class per image" in refusal(tools.check_neighbours, THREE, labels)
    assert "from -1 to 3" in refusal(tools.check_neighbours, labels, np.array([-1, 3]))
    line = refusal(tools.check_neighbours, labels, np.array([4, 5]))
    assert "1 classes of the test images (5) have no training image" in line


def test_neighbours_without_a_vote():
    votes = AttrDict({"NEAREST_NEIGHBOR": {"TOPK": 1, "SIGMA": 0.01}})
    tools.check_votes(votes)
    votes.NEAREST_NEIGHBOR.update(TOPK=0, SIGMA=-0.1)
    with pytest.raises(ConfigError) as raised:
        tools.check_votes(votes)
    assert [line[:40] for line in str(raised.value).splitlines()] == [
        "config.NEAREST_NEIGHBOR.TOPK=0: as many ",
        "config.NEAREST_NEIGHBOR.SIGMA=-0.1: an i",
    ]
    for sigma in (0, float("nan"), float("inf")):
        votes.NEAREST_NEIGHBOR.update(TOPK=1, SIGMA=sigma)
        with pytest.raises(ConfigError):
            tools.check_votes(votes)


def test_what_a_tool_would_not_read_is_refused_where_the_tool_runs(
    digits_on_disk, tmp_path, monkeypatch
):
    start = (OVERLAY, *digits_on_disk.folders(), "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=")
    odd = (
        "config.TEST_ONLY=true",
        f"config.EXTRACT_FEATURES.OUTPUT_DIR={tmp_path}/features",
        "config.NEAREST_NEIGHBOR.TOPK=0",
    )
    few = "config.DATA.TRAIN.DATA_LIMIT=10"
    resolve(tmp_path / "run", KNN, *start, odd[1], few)
    monkeypatch.setattr(tools, "running_tool", lambda *names: "nearest_neighbor_test")
    resolve(tmp_path / "run", KNN, *start)
    with pytest.raises(ConfigError) as raised:
        resolve(tmp_path / "run", KNN, *start, *odd)
    lines = str(raised.value).splitlines()
    assert [line.partition("=")[0] for line in lines] == [
        "config.TEST_ONLY",
        "config.EXTRACT_FEATURES.OUTPUT_DIR",
        "config.NEAREST_NEIGHBOR.TOPK",
    ]
    with pytest.raises(ConfigError) as raised:  # classes of the images that are read
        resolve(tmp_path / "run", KNN, *start, few)
    assert "have no training image" in str(raised.value)
