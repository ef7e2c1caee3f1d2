"""Meters that would fail, or count wrongly, are refused before the first epoch."""

import numpy as np
import pytest
from digits_on_disk import ATTRIBUTES, OVERLAY
from vissl_runs import resolve

from vissl_barlow.vissl_plugin.errors import ConfigError

BCE = "bce_logits_multiple_output_single_target"
MEAN_AP = "config.METERS.mean_ap_list_meter.num_classes"


@pytest.fixture
def attributes(digits_on_disk) -> tuple[str, ...]:
    """A linear classifier of several labels per image."""
    sources = [
        f"config.DATA.{split}.{kind}_SOURCES=[disk_filelist]"
        for split in ("TRAIN", "TEST")
        for kind in ("DATA", "LABEL")
    ]
    lists = [word for word in digits_on_disk.attribute_lists() if "SVM" not in word]
    return (
        *(OVERLAY, *sources, *lists, "config.MODEL.WEIGHTS_INIT.PARAMS_FILE="),
        f"config.LOSS.name={BCE}",
        f"config.MODEL.HEAD.PARAMS=[[barlow_linear,{{in_dim:256,num_classes:{len(ATTRIBUTES)}}}]]",
    )


def start(tmp_path, *overrides):
    return resolve(tmp_path / "run", "benchmark/vissl_barlow/imagenet1k_linear", *overrides)


def refusal(tmp_path, *overrides) -> str:
    with pytest.raises(ConfigError) as raised:
        start(tmp_path, *overrides)
    return str(raised.value)


def name(meter: str) -> str:
    return f"config.METERS.name={meter}"


def test_a_mean_average_precision_of_several_labels(attributes, tmp_path):
    meters = start(tmp_path, *attributes, name("mean_ap_list_meter"), f"{MEAN_AP}=3").METERS
    assert meters.names == ["mean_ap_list_meter"]
    line = refusal(tmp_path, *attributes, name("mean_ap_list_meter"))
    assert line.startswith(f"{MEAN_AP}=")
    assert line.endswith(": the head has 3 outputs; set 3")


def test_meters_that_there_are_not(attributes, tmp_path):
    for meter in ("mean_ap_meter", "mean_ap_list_metre"):
        line = refusal(tmp_path, *attributes, name(meter))
        assert line.startswith(
            f"config.METERS.names=['{meter}']: cannot be used; did you mean mean_ap"
        )


def test_labels_that_a_meter_would_count_wrongly(attributes, digits_on_disk, tmp_path):
    single = (OVERLAY, *digits_on_disk.folders(), "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=")
    line = refusal(tmp_path, *single, name("mean_ap_list_meter"), f"{MEAN_AP}=10")
    assert "mean_ap_list_meter wants a column per class" in line
    labels = np.load(digits_on_disk.lists / "test_labels.npy")
    labels[4, 1] = -1
    np.save(tmp_path / "left_out.npy", labels)
    left_out = f"config.DATA.TEST.LABEL_PATHS=[{tmp_path}/left_out.npy]"
    top = "config.METERS.{}.topk_values=[1,2]"
    for meter in ("accuracy_list_meter", "precision_at_k_list_meter", "recall_at_k_list_meter"):
        start(tmp_path, *attributes, name(meter), top.format(meter))
        line = refusal(tmp_path, *attributes, name(meter), top.format(meter), left_out)
        assert f"{meter} would count labels of -1 against the rest" in line
    start(tmp_path, *attributes, left_out, name("mean_ap_list_meter"), f"{MEAN_AP}=3")
