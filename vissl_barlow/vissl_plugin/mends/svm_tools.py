"""tools/train_svm.py, tools/train_svm_low_shot.py and vissl/utils/svm_utils."""

import hashlib
import json
import multiprocessing
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from vissl_barlow.vissl_plugin.mends.tools import tool_modules
from vissl_barlow.vissl_plugin.wrap import wrap


def svm_average_precision() -> None:
    """vissl/utils/svm_utils/evaluate.py:41, `np.float`, and its AP, an array of one element.

    Broken since numpy 1.24, which removed `np.float`, and numpy 2.4, which no longer converts
    one-element arrays to numbers (svm_trainer.py:263, svm_low_shot_trainer.py:195). What replaces it
    needs no loop over the images.
    """
    from vissl.utils.svm_utils import evaluate, svm_low_shot_trainer, svm_trainer

    for module in (evaluate, svm_trainer, svm_low_shot_trainer):
        module.get_precision_recall = precision_recall


def precision_recall(targets, scores, weights=None):
    """Precision, recall and scores of a ranking, best first, and its average precision (a float).

    The average precision is the area under the precision-recall curve after precision has been made
    non-increasing in recall (PASCAL VOC from 2010 on). Images of `weights` other than 1 are left out.
    """
    if weights is not None:
        targets, scores = targets[weights == 1], scores[weights == 1]
    order = np.argsort(scores)[::-1]
    hits = targets[order] > 0
    true_positives = np.cumsum(hits)
    precision = true_positives / np.arange(1, len(hits) + 1)
    recall = true_positives / hits.sum()
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return precision, recall, scores[order], float(np.sum(np.diff(recall, prepend=0) * envelope))


def svm_low_shot_average() -> None:
    """vissl/utils/svm_utils/svm_low_shot_trainer.py:196, `sample_ap_matrix[0][cost_idx] = mean`.

    Broken since numpy 2.4: the mean over the classes is an array of one element.
    """
    from vissl.utils.io import load_file, save_file
    from vissl.utils.svm_utils.svm_low_shot_trainer import SVMLowShotTrainer

    @wrap(SVMLowShotTrainer, "test")
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
                average_precisions.append(precision_recall(labels, scores)[-1])
            means.append(np.mean(average_precisions))
        save_file(np.array([means]), f"{trainer.output_dir}/test_ap_{suffix}.npy")


def svm_results_per_class() -> None:
    """vissl/utils/svm_utils/svm_trainer.py:264, only the mean AP is reported.

    Always so: the APs of the classes stay in an array. They are logged, and written to `test_ap.json`
    beside it, by name where `config.SVM.class_names` gives names.
    """
    from vissl.utils.svm_utils.svm_trainer import SVMTrainer

    @wrap(SVMTrainer, "test")
    def test(original, trainer, features, targets):
        original(trainer, features, targets)
        average_precisions = np.load(f"{trainer.output_dir}/test_ap.npy")[:, 0].tolist()
        names = trainer.config.get("class_names") or range(len(average_precisions))
        by_class = {str(name): ap for name, ap in zip(names, average_precisions, strict=True)}
        result = {"mAP": float(np.mean(average_precisions)), "AP": by_class}
        with open(f"{trainer.output_dir}/test_ap.json", "w") as file:
            json.dump(result, file, indent=2)
        for name, average_precision in by_class.items():
            print(f"{trainer.layer} AP of {name}: {100 * average_precision:.2f}")
        print(f"{trainer.layer} mAP: {100 * result['mAP']:.2f}", flush=True)


def svms_trained_anew_for_new_features() -> None:
    """vissl/utils/svm_utils/svm_trainer.py:124 and :157, svm_low_shot_trainer.py:110: results found on
    disk are used, whatever they were made from.

    Always so: in the folder of another checkpoint's SVMs the tool extracts new features and reports
    the old SVMs. Those trained on other features or labels are now removed first.
    """
    from vissl.utils.svm_utils.svm_low_shot_trainer import SVMLowShotTrainer
    from vissl.utils.svm_utils.svm_trainer import SVMTrainer

    @wrap(SVMTrainer, "train")
    def train(original, trainer, features, targets):
        _forget_other_svms(trainer.output_dir, "", features, targets)
        original(trainer, features, targets)

    @wrap(SVMLowShotTrainer, "train")
    def train_low_shot(original, trainer, features, targets, sample_num, low_shot_kvalue):
        suffix = f"_sample{sample_num}_k{low_shot_kvalue}"
        _forget_other_svms(trainer.output_dir, suffix, features, targets)
        original(trainer, features, targets, sample_num, low_shot_kvalue)


def _forget_other_svms(folder: str, suffix: str, *arrays: np.ndarray) -> None:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    mark = Path(folder) / f"trained_on{suffix}.sha256"
    if mark.exists() and mark.read_text() == digest.hexdigest():
        return
    for pattern in (f"*{suffix}.pickle", f"*{suffix}.npy"):
        for result in Path(folder).glob(pattern):
            result.unlink()
    mark.write_text(digest.hexdigest())


class _CheckedProcess(multiprocessing.Process):
    """A process whose failure is its parent's."""

    def join(self, timeout=None) -> None:
        super().join(timeout)
        if self.exitcode:
            sys.exit(f"the evaluation failed in a child process (exit status {self.exitcode})")


def failed_children_fail_the_tool() -> None:
    """tools/train_svm.py:89 and tools/train_svm_low_shot.py:144, `running_task.join()`.

    Always broken: whatever happens in the children, the tool prints a mAP of -1, or that of an earlier
    run, and exits with 0.
    """
    for module in tool_modules("train_svm") + tool_modules("train_svm_low_shot"):
        module.mp = SimpleNamespace(Process=_CheckedProcess)


def low_shot_samples() -> None:
    """tools/train_svm_low_shot.py:63, `generate_low_shot_samples` with a list and an argument less.

    Always broken: the function splits a string of k-values and wants the images' file, which VOC's
    samples do not need.
    """
    for module in tool_modules("train_svm_low_shot"):

        @wrap(module, "generate_low_shot_samples")
        def generate(original, dataset, targets, k_values, indices, folder, layer, images=None):
            k_values = ",".join(map(str, k_values))
            original(dataset, targets, k_values, indices, folder, layer, images)
