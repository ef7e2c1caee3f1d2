"""VISSL's meters on today's numpy and on several processes, against scikit-learn."""

import numpy as np
import pytest
import torch
from gloo import run_gloo
from sklearn.metrics import (
    precision_recall_curve,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)

import vissl_barlow

IMAGES, CLASSES = 23, 6
GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.randn(IMAGES, CLASSES, generator=GENERATOR)
LABELS = (torch.rand(IMAGES, CLASSES, generator=GENERATOR) < 0.4).long()
LABELS[:, 2] = 0  # no image of this class: it has no average precision
LABELS[3, 1] = LABELS[7, 4] = -1  # left out
# Accuracies are rounded to six digits of their share, and scores are float32.
ROUNDING = 1e-4


def build(name: str, **options):
    vissl_barlow.register()
    import vissl.meters  # noqa: F401
    from classy_vision.meters import build_meter
    from vissl.config import AttrDict

    options = {"name": name, "num_meters": 1, "meter_names": ["res5avg"], **options}
    return build_meter(AttrDict(options))


def interpolated_average_precision(labels, scores) -> float:
    """VOC 2010's: the area under scikit-learn's curve, made monotonous."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    highest = np.maximum.accumulate(precision)[:-1]
    return float(-np.diff(recall) @ highest)


def expected_average_precisions() -> list[float]:
    found = []
    for labels, scores in zip(LABELS.T, SCORES.T):
        known = labels >= 0
        any_positive = bool((labels == 1).any())
        found.append(
            interpolated_average_precision(labels[known], scores[known]) if any_positive else -1.0
        )
    return found


def measured(rank: int, processes: int) -> dict:
    vissl_barlow.register()
    from vissl_barlow.vissl_plugin import wrap

    wrap._runs_barlow = True
    meter = build("mean_ap_list_meter", num_classes=CLASSES)
    own = torch.arange(rank, IMAGES, processes)
    for indices in own.split(4):
        meter.update(SCORES[indices], LABELS[indices])
    meter.sync_state()
    return meter.value


@pytest.mark.parametrize("processes", [1, 2])
def test_mean_average_precision(processes, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    expected = expected_average_precisions()
    for value in run_gloo(measured, processes, processes):
        assert value["AP"]["res5avg"] == pytest.approx(expected, abs=ROUNDING)
        mean = 100 * np.mean([average for average in expected if average >= 0])
        assert value["mAP"]["res5avg"] == pytest.approx(mean, abs=100 * ROUNDING)


def answers(k: int) -> np.ndarray:
    """The k classes of the highest scores of each image, as columns of 0 and 1."""
    return np.eye(CLASSES, dtype=int)[SCORES.topk(k).indices.numpy()].sum(axis=1)


@pytest.mark.parametrize("k", [1, 3])
def test_accuracy_precision_and_recall(k):
    present = LABELS.clamp(min=0)
    single = torch.arange(IMAGES) % CLASSES
    top = f"top_{k}"
    values = {}
    for name, labels in (
        ("accuracy", single),
        ("precision_at_k", present),
        ("recall_at_k", present),
    ):
        meter = build(f"{name}_list_meter", topk_values=[k])
        for scores, targets in zip(SCORES.split(5), labels.split(5)):
            meter.update(scores, targets)
        values[name] = meter.value[top]["res5avg"]
    chosen, truth = answers(k), present.numpy()
    expected = {
        "accuracy": top_k_accuracy_score(single, SCORES, k=k, labels=range(CLASSES)),
        "precision_at_k": precision_score(truth, chosen, average="samples", zero_division=0),
        "recall_at_k": recall_score(truth, chosen, average="micro"),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(100 * value, abs=100 * ROUNDING), name
