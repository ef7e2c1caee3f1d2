"""Makes VISSL 0.1.6's evaluation tools run on current libraries and on CPUs, and fail when they fail.

One function per mend, as in `compat`, which runs them. VISSL's tools are run as `__main__`, after
this plugin has registered: mends of a tool's own functions look for it there and under its name.
"""

import hashlib
import json
import multiprocessing
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

from vissl_barlow.vissl_plugin.compat import wrap

# Test images whose similarities to all training images are held at once: 1 GB for ImageNet.
KNN_CHUNK = 200
# What a pickled LinearSVC consists of; a pickle with anything else is refused.
_SVM_GLOBALS = {
    ("sklearn.svm._classes", "LinearSVC"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
}


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
    for module in _tool_modules("train_svm") + _tool_modules("train_svm_low_shot"):
        module.mp = SimpleNamespace(Process=_CheckedProcess)


def low_shot_samples() -> None:
    """tools/train_svm_low_shot.py:63, `generate_low_shot_samples` with a list and an argument less.

    Always broken: the function splits a string of k-values and wants the images' file, which VOC's
    samples do not need.
    """
    for module in _tool_modules("train_svm_low_shot"):

        @wrap(module, "generate_low_shot_samples")
        def generate(original, dataset, targets, k_values, indices, folder, layer, images=None):
            k_values = ",".join(map(str, k_values))
            original(dataset, targets, k_values, indices, folder, layer, images)


def nearest_neighbours_anywhere() -> None:
    """tools/nearest_neighbor_test.py:36, `.cuda()`; :49, `imgs_per_chunk = num_test_images // 100`;
    :89, `correct.narrow(1, 0, 5)`.

    Always broken on CPUs, with fewer than 100 test images and with fewer than 5 classes. What replaces
    it also writes `knn_<layer>.json`.
    """
    for module in _tool_modules("nearest_neighbor_test"):
        module.nearest_neighbor_test = nearest_neighbor_test


def nearest_neighbor_test(cfg, layer_name: str = "heads") -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent of a weighted vote of the nearest training images.

    A neighbour of similarity s votes with exp(s / SIGMA); TOPK neighbours vote, or all images if
    there are fewer (`config.NEAREST_NEIGHBOR`). With fewer than 5 classes top-5 is 100.
    """
    from vissl.utils.checkpoint import get_checkpoint_folder
    from vissl.utils.misc import merge_features

    options = cfg.NEAREST_NEIGHBOR
    folder = get_checkpoint_folder(cfg)
    device = torch.device("cuda" if cfg.MACHINE.DEVICE == "gpu" else "cpu")

    def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        merged = merge_features(folder, split, layer_name)
        features = torch.from_numpy(merged["features"]).float().flatten(1).to(device)
        if options.L2_NORM_FEATS:
            features = torch.nn.functional.normalize(features)
        return features, torch.from_numpy(merged["targets"]).long().flatten().to(device)

    features, labels = load("train")
    test_features, test_labels = load("test")
    classes = int(labels.max()) + 1
    neighbours = min(options.TOPK, len(labels))
    correct = torch.zeros(2, device=device)
    for queries, targets in zip(test_features.split(KNN_CHUNK), test_labels.split(KNN_CHUNK)):
        similarities, indices = (queries @ features.T).topk(neighbours)
        # The largest similarity taken off: exp() cannot overflow, and all votes scale alike.
        weights = ((similarities - similarities[:, :1]) / options.SIGMA).exp()
        votes = torch.zeros(len(queries), classes, device=device)
        votes.scatter_add_(1, labels[indices], weights)
        ranked = votes.topk(min(5, classes)).indices == targets[:, None]
        correct += torch.stack([ranked[:, 0].sum(), ranked.sum()])
    top1, top5 = (100 * correct / len(test_labels)).tolist()
    result = {"top_1": top1, "top_5": top5, "neighbours": neighbours, "images": len(test_labels)}
    with open(f"{folder}/knn_{layer_name}.json", "w") as file:
        json.dump(result, file, indent=2)
    # The tool has closed its log by now.
    print(f"{layer_name} k-NN top-1: {top1:.2f}, top-5: {top5:.2f}", flush=True)
    return top1, top5


def features_extracted_on_cpus() -> None:
    """vissl/trainer/trainer_main.py:345, `assert self.task.device.type == "cuda"`; :438, `.cuda()`.

    Always so: features are extracted on GPUs only. With config.MACHINE.DEVICE=cpu the code below
    writes the same files. Files of an earlier run with more processes or chunks, which the tools would
    merge with the new ones (extract_features_utils.py:60), are removed on any device.
    """
    from vissl.trainer.trainer_main import SelfSupervisionTrainer

    @wrap(SelfSupervisionTrainer, "extract")
    def extract(original, trainer, output_folder):
        _remove_stale_features(output_folder)
        if trainer.task.device.type == "cuda":
            original(trainer, output_folder)
        else:
            _extract_on_cpu(trainer, output_folder)


def _remove_stale_features(folder: str) -> None:
    """Each process removes its own files, the primary also those of processes there are no more."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for path in Path(folder).glob("rank*_chunk*_*.npy"):
        if match := re.match(r"rank(\d+)_chunk", path.name):
            owner = int(match[1])
            if owner == rank or (rank == 0 and owner >= world_size):
                path.unlink(missing_ok=True)


@torch.no_grad()
def _extract_on_cpu(trainer, output_folder: str) -> None:
    from vissl.models.model_helpers import get_trunk_output_feature_names

    task = trainer.task
    task.prepare_extraction(pin_memory=False)
    trainer._add_dummy_layer()  # DistributedDataParallel refuses a model that is frozen altogether
    task.init_distributed_data_parallel_model()
    task.model.eval()
    names = get_trunk_output_feature_names(trainer.cfg.MODEL) or ["heads"]
    threshold = trainer.cfg.EXTRACT_FEATURES.CHUNK_THRESHOLD
    for split in task.available_splits:
        chunk, features, targets = 0, {name: {} for name in names}, {name: {} for name in names}

        def save(chunk, features, targets, split=split):
            trainer._save_extracted_features(
                features, targets, dist.get_rank(), chunk, split, output_folder
            )

        for sample in task.dataloaders[split.lower()]:
            indices = torch.cat(sample["data_idx"]).tolist()
            labels = torch.cat(sample["label"]).numpy().reshape(len(indices), -1)
            outputs = trainer._flatten_features_list(task.model(torch.cat(sample["data"])))
            for name, output in zip(names, outputs):
                features[name].update(zip(indices, output.numpy()))
                targets[name].update(zip(indices, labels))
            if 0 <= threshold <= len(features[names[0]]):
                save(chunk, features, targets)
                chunk, features, targets = (
                    chunk + 1,
                    {name: {} for name in names},
                    {name: {} for name in names},
                )
        save(chunk, features, targets)
    trainer._cleanup_task()


def pickles_without_code() -> None:
    """vissl/utils/io.py:105, `pickle.load(fopen)`, for the SVMs and any `.pkl` a config names.

    Always so: whatever the file holds is run. Only what a LinearSVC consists of is loaded now.
    """
    from vissl.utils import io

    io.pickle = SimpleNamespace(
        load=_load_svm, dump=pickle.dump, HIGHEST_PROTOCOL=pickle.HIGHEST_PROTOCOL
    )


class _SvmUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) in _SVM_GLOBALS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"refused: the file holds {module}.{name}, and loading such objects can run code"
        )


def _load_svm(file, encoding: str = "ASCII"):
    return _SvmUnpickler(file, encoding=encoding).load()


def labels_without_code() -> None:
    """vissl/data/ssl_dataset.py:176, `np.load(fopen, allow_pickle=True)`.

    Always so: a file of labels can run code. Plain arrays, of numbers or of strings, need no pickle.
    """
    from vissl.data.ssl_dataset import GenericSSLDataset

    @wrap(GenericSSLDataset, "load_single_label_file")
    def load_single_label_file(original, dataset, path):
        return load_list(path, mmap=dataset.cfg["DATA"][dataset.split].MMAP_MODE)


def load_list(path: str, mmap: bool = False) -> np.ndarray:
    """The array in one of VISSL's lists (`.npy`) of image paths or labels.

    Raises:
        ValueError: not an array of numbers or strings; a pickle, which could run code, is none.
        OSError: the file is missing or cannot be opened.
    """
    try:
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: not a plain array of numbers or strings, as numpy.save writes it ({error})"
        ) from None


def _tool_modules(name: str) -> list:
    """One of VISSL's tools where this process runs or has imported it, else nothing to mend."""
    main = sys.modules["__main__"]
    is_main = (getattr(main, "__file__", None) or "").endswith(f"tools/{name}.py")
    imported = sys.modules.get(f"tools.{name}")
    return [module for module in (is_main and main, imported) if module]


EVALUATION_MENDS = (
    svm_average_precision,
    svm_low_shot_average,
    svm_results_per_class,
    svms_trained_anew_for_new_features,
    failed_children_fail_the_tool,
    low_shot_samples,
    nearest_neighbours_anywhere,
    features_extracted_on_cpus,
    pickles_without_code,
    labels_without_code,
)
