"""vissl/trainer/trainer_main.py: extraction of features."""

import re
from pathlib import Path

import torch
import torch.distributed as dist

from vissl_barlow.vissl_plugin.wrap import wrap


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
