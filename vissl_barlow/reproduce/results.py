"""What finished experiments came to, read from the files that VISSL, its tools and Detectron2 leave.

A reader returns figures in %, by name; none while the experiment has not come to its end.
"""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vissl_barlow.detection.run_folder import why_not_final
from vissl_barlow.paths import config_folder
from vissl_barlow.run_files import AT_ITS_START, PROBE_FILE, UNTRAINED


@functools.cache
def reported(name: str) -> dict[str, dict[str, dict[str, float]]]:
    """What the paper reports of a table or figure, in %: `rows`, and where it has them `others`, the
    other methods, and `built_in`, what VISSL reports for its own; each row to figures."""
    content = (config_folder("benchmark_configs") / "paper.yaml").read_text()
    return yaml.safe_load(content)[name]


def is_finished(folder: Path) -> bool:
    """Whether VISSL's training in `folder` came to its end."""
    return any(folder.glob("model_final_checkpoint_phase*.torch"))


def read_accuracy(path: Path) -> dict[str, float]:
    """Test accuracy after the last epoch, from VISSL's metrics.json.

    VISSL saves its final checkpoint before the last test: the checkpoint alone does not tell that a
    run has come to its end.
    """
    config = path.parent / "train_config.yaml"
    if not (path.exists() and config.exists()):
        return {}
    last = yaml.safe_load(config.read_text())["OPTIMIZER"]["num_epochs"] - 1
    meters: dict[str, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry["train_phase_idx"] == last:
            meters = entry.get("test_accuracy_list_meter", meters)
    # {"top_1": {"res5avg": 73.2}, "top_5": ...}; of several layers each has its own figures.
    return {
        name.replace("_", "-") + (f", {layer}" if len(layers) > 1 else ""): value
        for name, layers in meters.items()
        for layer, value in layers.items()
    }


def read_mean_average_precision(path: Path) -> dict[str, float]:
    """mAP from the SVM tool's test_ap.json."""
    return {"mAP": 100 * json.loads(path.read_text())["mAP"]} if path.exists() else {}


def read_neighbours(path: Path) -> dict[str, float]:
    """Accuracies from the k-NN tool's knn_<layer>.json; of five classes or fewer no top-5, which is 100
    whatever is found."""
    found = json.loads(path.read_text()) if path.exists() else {}
    names = ("top_1", "top_5") if found.get("classes", math.inf) > TOP else ("top_1",)
    return {name.replace("_", "-"): found[name] for name in names if found}


# Of the tool's second figure, "top_5".
TOP = 5
DETECTION_TASKS = {"bbox": "box", "segm": "mask"}


def read_detection(path: Path) -> dict[str, float]:
    """APs after the last iteration, from the detection run's results.json."""
    scores = _detection_scores(path)
    if why_not_final(scores):
        return {}
    return {
        f"{DETECTION_TASKS[task]} {name}": scores[task][name]
        for task in DETECTION_TASKS
        if task in scores
        for name in ("AP", "AP50", "AP75")
    }


def _detection_scores(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    (scores,) = json.loads(path.read_text()).values()  # one data set is tested on
    return scores


def read_probe(path: Path) -> dict[str, float]:
    """Accuracies of a pretraining's probe: of the trunk ("probe"), of it before the first step, if that
    was known, and of the pixels."""
    accuracies = json.loads(path.read_text()) if path.exists() else {}
    if "pretrained trunk" not in accuracies:
        return {}
    names = {"pretrained trunk": "probe"} | {n: n for n in (UNTRAINED, AT_ITS_START, "pixels")}
    return {n: 100 * accuracies[source] for source, n in names.items() if source in accuracies}


READERS = {
    "accuracy": read_accuracy,
    "mean_average_precision": read_mean_average_precision,
    "neighbours": read_neighbours,
    "detection": read_detection,
    "probe": read_probe,
}


@dataclass(frozen=True)
class ResultFile:
    """Where a run leaves its result: `kind`, a key of `READERS`, and `file`, below the run's folder, a
    pattern where the name depends on the config."""

    kind: str
    file: str

    def read(self, folder: Path) -> dict[str, float]:
        """Figures in %, by name; none while the run in `folder` has not come to its end."""
        return READERS[self.kind](self.path(folder))

    def path(self, folder: Path) -> Path:
        """The file in `folder`. Of several that fit the pattern none is the result."""
        found = list(folder.glob(self.file))
        return found[0] if len(found) == 1 else folder / self.file

    def why_refused(self, folder: Path) -> str | None:
        """Why nothing tells whether the numbers in the file are the run's; None where it does."""
        scores = self._detection_scores(folder)
        return why_not_final(scores) if scores and "evaluated" not in scores else None

    def why_left_out(self, folder: Path) -> str | None:
        """Why the numbers in the file are not the run's result; None where they are, or where the file
        itself, or its absence, tells a run that has not come to its end."""
        scores = self._detection_scores(folder)
        return why_not_final(scores) if scores and "evaluated" in scores else None

    def _detection_scores(self, folder: Path) -> dict[str, Any]:
        return _detection_scores(self.path(folder)) if self.kind == "detection" else {}


ACCURACY = ResultFile("accuracy", "metrics.json")
PROBE = ResultFile("probe", PROBE_FILE)
