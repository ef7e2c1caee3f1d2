"""Lists of labels that would train or test another classifier than the user means are refused."""

import numpy as np
import pytest
from digits_on_disk import OVERLAY
from vissl_runs import resolve

from vissl_barlow.vissl_plugin.errors import ConfigError

SEMI = "benchmark/vissl_barlow/imagenet1k_semi_1pct"


@pytest.fixture
def start(digits_on_disk, tmp_path):
    """Resolves the fine-tuning with these labels in the place of the digits'."""

    def resolved(train: np.ndarray, test: np.ndarray | None = None, classes: int = 10):
        np.save(tmp_path / "train.npy", train)
        words = [
            f"config.DATA.TRAIN.DATA_PATHS=[{digits_on_disk.lists}/train_images.npy]",
            f"config.DATA.TRAIN.LABEL_PATHS=[{tmp_path}/train.npy]",
            f"config.MODEL.HEAD.PARAMS=[[barlow_linear,{{in_dim:256,num_classes:{classes}}}]]",
            "config.METERS.accuracy_list_meter.topk_values=[1]",
        ]
        if test is None:
            words.append(digits_on_disk.folders()[1])
        else:
            np.save(tmp_path / "test.npy", test)
            words += [
                f"config.DATA.TEST.DATA_PATHS=[{digits_on_disk.lists}/test_images.npy]",
                f"config.DATA.TEST.LABEL_PATHS=[{tmp_path}/test.npy]",
                "config.DATA.TEST.DATA_SOURCES=[disk_filelist]",
                "config.DATA.TEST.LABEL_SOURCES=[disk_filelist]",
            ]
        return resolve(
            tmp_path / "run", SEMI, OVERLAY, "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=", *words
        )

    return resolved


def refusal(start, *arguments, **options) -> str:
    with pytest.raises(ConfigError) as raised:
        start(*arguments, **options)
    return str(raised.value)


TRAIN, TEST = np.arange(1437), np.arange(360)
NAMES = np.array([f"n{digit:08d}" for digit in range(10)])


def test_numbers_without_gaps_and_names_of_the_same_classes(start):
    start(TRAIN % 10)
    start(NAMES[TRAIN % 10])
    start(NAMES[TRAIN % 10], NAMES[TEST % 10])
    start(TRAIN % 10, TEST % 9)  # a class without a test image
    start(TRAIN % 1, TEST % 1, classes=1)


def test_a_class_without_a_training_image(start):
    gap = TRAIN % 9 + (TRAIN % 9 > 3)  # 10 outputs, and nothing teaches one of them
    line = refusal(start, gap, TEST % 10)
    assert "labels up to 9, and no image of 4; number the classes 0, 1, ..." in line


def test_names_that_are_numbered_otherwise_in_the_test(start):
    fewer = refusal(start, NAMES[TRAIN % 10], NAMES[1:][TEST % 9])
    assert fewer.startswith("config.DATA.TEST.LABEL_PATHS=")
    assert "1 missing (n00000000)" in fewer
    other = refusal(start, np.char.add("x", NAMES)[TRAIN % 10])
    assert other.startswith("config.DATA.TEST.DATA_PATHS=")
    assert "10 missing" in other and "10 unexpected (n00000000, n00000001, n00000002, ...)" in other
