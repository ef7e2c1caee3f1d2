"""tools/train_svm.py, tools/train_svm_low_shot.py and vissl/utils/svm_utils."""

import functools
import hashlib
import json
import multiprocessing.util
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import yaml
from vissl.utils.io import load_file, save_file
from vissl.utils.svm_utils import evaluate, svm_low_shot_trainer, svm_trainer
from vissl.utils.svm_utils.svm_low_shot_trainer import SVMLowShotTrainer
from vissl.utils.svm_utils.svm_trainer import SVMTrainer

from vissl_barlow.atomic_files import write_text_atomically
from vissl_barlow.paths import config_folder
from vissl_barlow.vissl_plugin.mends.tools import tool_modules
from vissl_barlow.vissl_plugin.wrap import always, in_barlow_run, overlay, wrap

# Keys of `config.SVM` that SVMs once trained do not depend on.
_NOT_OF_THE_SVMS = {"class_names", "force_retrain", "low_shot"}


def compute_svm_average_precision() -> None:
    """vissl/utils/svm_utils/evaluate.py:43: `np.float`, and its AP, an array of one element.

    Broken since numpy 1.24, which removed `np.float`, and numpy 2.4, which no longer converts
    one-element arrays to numbers (svm_trainer.py:256, svm_low_shot_trainer.py:176).
    """
    for module in (evaluate, svm_trainer, svm_low_shot_trainer):

        @wrap(module, "get_precision_recall", applies=always)
        def get_precision_recall(original, targets, scores, weights=None):
            # With weights the function does not come to `np.float`.
            weights = np.ones(len(targets)) if weights is None else weights
            precision, recall, ranked, average_precision = original(targets, scores, weights)
            return precision, recall, ranked, float(average_precision[0])


def average_svm_low_shot_classes() -> None:
    """vissl/utils/svm_utils/svm_low_shot_trainer.py:178: `sample_ap_matrix[0][cost_idx] = mean`.

    Broken since numpy 2.4: the mean over the classes is an array of one element.
    """

    @wrap(SVMLowShotTrainer, "test", applies=always)
    def test(original, trainer, features, targets, sample_num, low_shot_kvalue):
        if trainer.normalize:
            features = trainer._normalize_features(features)
        suffix = f"sample{sample_num}_k{low_shot_kvalue}"
        means = []
        for cost in trainer.costs_list:
            average_precisions = []
            for cls in trainer.cls_list:
                svm = load_file(trainer._get_svm_low_shot_model_filename(cls, cost, suffix))
                scores, labels = trainer._get_cls_feats_labels(
                    cls, svm.decision_function(features), targets
                )
                average_precisions.append(evaluate.get_precision_recall(labels, scores)[-1])
            means.append(np.mean(average_precisions))
        save_file(np.array([means]), f"{trainer.output_dir}/test_ap_{suffix}.npy")


def report_svm_results_per_class() -> None:
    """vissl/utils/svm_utils/svm_trainer.py:257: only the mean AP is reported.

    A fault of VISSL 0.1.6: the APs of the classes stay in an array. They are logged, and written to
    `test_ap.json` beside it, by name where `config.SVM.class_names` has as many, else by number.
    """

    @wrap(SVMTrainer, "test", applies=in_barlow_run)
    def test(original, trainer, features, targets):
        original(trainer, features, targets)
        average_precisions = np.load(f"{trainer.output_dir}/test_ap.npy")[:, 0].tolist()
        names = class_names(trainer.config, len(average_precisions))
        by_class = dict(zip(names, average_precisions, strict=True))
        mean = float(np.mean(average_precisions))
        result = json.dumps({"mAP": mean, "AP": by_class}, indent=2)
        write_text_atomically(f"{trainer.output_dir}/test_ap.json", result)
        for name, average_precision in by_class.items():
            print(f"{trainer.layer} AP of {name}: {100 * average_precision:.2f}")
        print(f"{trainer.layer} mAP: {100 * mean:.2f}", flush=True)


@functools.cache
def vocs_classes() -> list[str]:
    """The names in voc07_svm, which a user with other classes did not give."""
    path = config_folder("benchmark_configs") / "config/benchmark/vissl_barlow/voc07_svm.yaml"
    return yaml.safe_load(path.read_text())["config"]["SVM"]["class_names"]


def class_names(svm, classes: int) -> list[str]:
    """Names of so many `classes`: those of `svm`, `config.SVM`, where they fit, else numbers."""
    names = svm.get("class_names") or []
    return list(map(str, names if len(names) == classes else range(classes)))


def train_svms_anew_for_new_features() -> None:
    """vissl/utils/svm_utils/svm_trainer.py:108 and 144, svm_low_shot_trainer.py:109: results found on
    disk are used, whatever they were made from.

    A fault of VISSL 0.1.6: in the folder of another checkpoint's SVMs the tool extracts new features
    and reports the old SVMs. Those of other features, labels or settings are now removed first.
    """

    @wrap(SVMTrainer, "train", applies=in_barlow_run)
    def train(original, trainer, features, targets):
        _forget_other_svms(trainer, "", features, targets)
        original(trainer, features, targets)

    @wrap(SVMLowShotTrainer, "train", applies=in_barlow_run)
    def train_low_shot(original, trainer, features, targets, sample_num, low_shot_kvalue):
        suffix = f"_sample{sample_num}_k{low_shot_kvalue}"
        _forget_other_svms(trainer, suffix, features, targets)
        original(trainer, features, targets, sample_num, low_shot_kvalue)


def _forget_other_svms(trainer: SVMTrainer, suffix: str, *arrays: np.ndarray) -> None:
    settings = {key: value for key, value in trainer.config.items() if key not in _NOT_OF_THE_SVMS}
    # "npz": pickled SVMs, of older versions, are not loaded.
    digest = hashlib.sha256(b"npz" + json.dumps(settings, sort_keys=True).encode())
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    folder = Path(trainer.output_dir)
    mark = folder / f"trained_on{suffix}.sha256"
    if mark.exists() and mark.read_text() == digest.hexdigest():
        return
    for pattern in (f"*{suffix}.pickle", f"*{suffix}.npy"):
        for result in folder.glob(pattern):
            result.unlink()
    mark.write_text(digest.hexdigest())


class _CheckedProcess(multiprocessing.Process):
    """A process whose failure is its parent's, and that ends with its parent, however that ends."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, daemon=True, **kwargs)

    def run(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().run()

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self.exitcode and not multiprocessing.util.is_exiting():  # Python ends its daemons
            sys.exit(f"the evaluation failed in a child process (exit status {self.exitcode})")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def fail_with_failed_children() -> None:
    """tools/train_svm.py:83 and tools/train_svm_low_shot.py:130: `running_task.join()`.

    Faults of VISSL 0.1.6: whatever happens in the children, the tool prints a mAP of -1, or that of
    an earlier run, and exits with 0. When it is stopped, they train on.
    """

    def process(*args, **kwargs):
        kind = _CheckedProcess if in_barlow_run() else multiprocessing.Process
        return kind(*args, **kwargs)

    for module in tool_modules("train_svm") + tool_modules("train_svm_low_shot"):
        overlay(module, "mp", Process=process)


def draw_low_shot_samples() -> None:
    """tools/train_svm_low_shot.py:51: `generate_low_shot_samples` with a list and an argument less.

    A fault of VISSL 0.1.6: the function splits a string of k-values and wants the images' file, which
    VOC's samples do not need.
    """
    for module in tool_modules("train_svm_low_shot"):

        @wrap(module, "generate_low_shot_samples", applies=in_barlow_run)
        def generate(original, dataset, targets, k_values, indices, folder, layer, images=None):
            k_values = ",".join(map(str, k_values))
            original(dataset, targets, k_values, indices, folder, layer, images)
