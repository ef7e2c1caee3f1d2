"""vissl/trainer/trainer_main.py: extraction of features, for which VISSL runs no hooks."""

import re
from pathlib import Path

import torch
import torch.distributed as dist
from classy_vision.generic.distributed_util import is_primary
from vissl.models.model_helpers import get_trunk_output_feature_names
from vissl.trainer.trainer_main import SelfSupervisionTrainer
from vissl.utils.checkpoint import get_checkpoint_folder

from vissl_barlow.provenance import note_hours
from vissl_barlow.vissl_plugin.wrap import of_barlow_owner, wrap


def extract_features_anywhere() -> None:
    """vissl/trainer/trainer_main.py:345: `assert self.task.device.type == "cuda"`; :438: `.cuda()`.

    Faults of VISSL 0.1.6: features are extracted on GPUs only, files of an earlier run with more
    processes or chunks stay and are merged with the new ones (extract_features_utils.py:65), and no
    hook is run. With config.MACHINE.DEVICE=cpu the code below writes the same files; stale ones are
    removed, and the run leaves its provenance (`prepare_extraction`), on any device.
    """

    @wrap(SelfSupervisionTrainer, "extract", applies=of_barlow_owner)
    def extract(original, trainer, output_folder, extract_features=True, **predictions):
        if not extract_features:  # main's engine for predictions, which wants a GPU
            original(trainer, output_folder, extract_features, **predictions)
            return
        folder = Path(get_checkpoint_folder(trainer.cfg))
        if is_primary():
            _remove_stale_results(folder)
        _remove_stale_features(output_folder)
        if trainer.task.device.type == "cuda":
            original(trainer, output_folder, **predictions)
        else:
            _extract_on_cpu(trainer, output_folder)
        if is_primary():
            note_hours(folder)


def _remove_stale_results(folder: Path) -> None:
    """What the tools made of the features that were there: `knn_tool.py`, `svm_tools.py`."""
    for pattern in ("knn_*.json", "*/test_ap.json"):
        for path in folder.glob(pattern):
            path.unlink()


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
    task = trainer.task
    task.prepare_extraction(pin_memory=False)
    # DistributedDataParallel refuses a model that is frozen altogether. 0.1.6, or main:
    of_016 = getattr(trainer, "_add_dummy_layer", None)
    (of_016 or task.add_dummy_layer)()
    task.init_distributed_data_parallel_model()
    task.model.eval()
    names = get_trunk_output_feature_names(trainer.cfg.MODEL) or ["heads"]
    names = getattr(trainer, "_to_unique_feature_names", list)(names)  # main's
    threshold = trainer.cfg.EXTRACT_FEATURES.CHUNK_THRESHOLD

    def empty() -> dict[str, dict]:
        return {name: {} for name in names}

    for split in task.available_splits:
        chunk, features, targets = 0, empty(), empty()

        def save(chunk, features, targets, split=split):
            trainer._save_extracted_features(
                features, targets, dist.get_rank(), chunk, split, output_folder
            )

        for sample in task.dataloaders[split.lower()]:
            indices = torch.cat(sample["data_idx"]).tolist()
            labels = torch.cat(sample["label"]).numpy().reshape(len(indices), -1)
            outputs = trainer._flatten_features_list(task.model(torch.cat(sample["data"])))
            for name, output in zip(names, outputs, strict=True):
                features[name].update(zip(indices, output.numpy()))
                targets[name].update(zip(indices, labels))
            if 0 <= threshold <= len(features[names[0]]):
                save(chunk, features, targets)
                chunk, features, targets = chunk + 1, empty(), empty()
        save(chunk, features, targets)
    trainer._cleanup_task()
