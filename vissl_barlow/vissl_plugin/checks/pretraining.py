"""Refuses machines, folders, data and schedules with which a training cannot work."""

import os
import random
from pathlib import Path

import torch
from vissl.data.dataset_catalog import VisslDatasetCatalog
from vissl.utils.checkpoint import get_resume_checkpoint, is_training_finished

from vissl_barlow.images import UnreadableImage, read_image
from vissl_barlow.vissl_plugin.checks.common import LISTED_NAMES, model_on_meta, world_size
from vissl_barlow.vissl_plugin.components.data import list_images
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.run.checkpoint_folder import inspect


def check_devices(cfg) -> None:
    if cfg.MACHINE.DEVICE != "gpu":
        ours = cfg.TRAINER.TASK_NAME == "barlow_task" and cfg.BARLOW.AMP_DTYPE == "bfloat16"
        if cfg.MODEL.AMP_PARAMS.USE_AMP and not ours:
            raise ConfigError(
                "MODEL.AMP_PARAMS.USE_AMP",
                True,
                "float16 needs a GPU: set it to false, config.BARLOW.AMP_DTYPE=bfloat16 or "
                "config.MACHINE.DEVICE=gpu",
            )
        return
    if cfg.SLURM.USE_SLURM:
        return  # the GPUs are those of the node the job will run on
    available = torch.cuda.device_count()
    if available == 0:
        raise ConfigError(
            "MACHINE.DEVICE",
            "gpu",
            "no GPU is visible to torch; set config.MACHINE.DEVICE=cpu and "
            "config.DISTRIBUTED.BACKEND=gloo, or mend the driver or CUDA_VISIBLE_DEVICES",
        )
    if cfg.DISTRIBUTED.NUM_PROC_PER_NODE > available:
        raise ConfigError(
            "DISTRIBUTED.NUM_PROC_PER_NODE",
            cfg.DISTRIBUTED.NUM_PROC_PER_NODE,
            f"one process needs one GPU and this machine has {available}; set at most {available}",
        )


def check_nodes(cfg) -> None:
    distributed = cfg.DISTRIBUTED
    nodes = distributed.NUM_NODES
    if nodes > 1 and distributed.RUN_ID == "auto" and not cfg.SLURM.USE_SLURM:
        raise ConfigError(
            "DISTRIBUTED.RUN_ID",
            "auto",
            f"{nodes} nodes find each other by an address; set it to ADDRESS_OF_NODE_0:PORT, and "
            "node_id, on each of them, or config.DISTRIBUTED.NUM_NODES=1 for one machine, or "
            "config.SLURM.USE_SLURM=true",
        )


def check_checkpoint_folder(cfg) -> None:
    folder = Path(cfg.CHECKPOINT.DIR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Asking the permission bits is not enough: root, quotas and read-only mounts.
        probe = folder / f".write_test_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            "CHECKPOINT.DIR",
            folder,
            f"checkpoints cannot be written there ({error.strerror}); name a writable folder",
        ) from None


def check_batch(cfg) -> None:
    batch = cfg.DATA.TRAIN.BATCHSIZE_PER_REPLICA * world_size(cfg)
    if batch < 2:
        raise ConfigError(
            "DATA.TRAIN.BATCHSIZE_PER_REPLICA",
            cfg.DATA.TRAIN.BATCHSIZE_PER_REPLICA,
            f"the global batch is {batch}, and a correlation over the batch needs at least 2 images",
        )


def check_schedule(cfg) -> None:
    schedulers = cfg.OPTIMIZER.param_schedulers
    lr = schedulers.lr
    if lr.name != "barlow_warmup_cosine":
        return
    key = "OPTIMIZER.param_schedulers.lr"
    if not 0 <= lr.warmup_epochs < cfg.OPTIMIZER.num_epochs:
        raise ConfigError(
            f"{key}.warmup_epochs",
            lr.warmup_epochs,
            "the warm-up must be shorter than the training, "
            f"config.OPTIMIZER.num_epochs={cfg.OPTIMIZER.num_epochs}",
        )
    if not lr.start_value > 0:
        raise ConfigError(f"{key}.start_value", lr.start_value, "the peak rate must be above 0")
    if not 0 <= lr.end_value <= lr.start_value:
        raise ConfigError(
            f"{key}.end_value", lr.end_value, "the last rate must lie between 0 and start_value"
        )


def check_data(cfg, split: str) -> None:
    section = cfg.DATA[split]
    for index, source in enumerate(section.DATA_SOURCES):
        if source not in ("barlow_folder", "disk_folder"):
            continue
        key = f"DATA.{split}.DATA_PATHS"
        if len(section.DATA_PATHS) > index:
            folder = section.DATA_PATHS[index]
        elif VisslDatasetCatalog.has_data(section.DATASET_NAMES[index]):
            entry = VisslDatasetCatalog.get(section.DATASET_NAMES[index])
            folder = entry["train" if split == "TRAIN" else "val"][0]
        else:
            raise ConfigError(
                key,
                "[]",
                f"nothing says where the images are; set config.{key}=[FOLDER], or add "
                f'"{section.DATASET_NAMES[index]}" to VISSL\'s dataset_catalog.json',
            )
        _check_folder(cfg, split, key, folder)


def _check_folder(cfg, split: str, key: str, folder: str) -> None:
    try:
        images = list_images(folder)
    except FileNotFoundError:
        raise ConfigError(key, f"[{folder}]", "there is no such folder; name the images'") from None
    if not images:
        raise ConfigError(
            key, f"[{folder}]", "the folder holds no image; expected .jpg, .png, ... in or below it"
        )
    batch = cfg.DATA[split].BATCHSIZE_PER_REPLICA * world_size(cfg)
    if cfg.DATA[split].DROP_LAST and len(images) < batch:
        raise ConfigError(
            key,
            f"[{folder}]",
            f"the folder holds {len(images)} images, fewer than one global batch of {batch}; "
            f"lower config.DATA.{split}.BATCHSIZE_PER_REPLICA",
        )
    wanted = cfg.BARLOW.CHECK_IMAGES
    checked = images if wanted < 0 else random.Random(0).sample(images, min(wanted, len(images)))
    unreadable = []
    for name in checked:
        try:
            read_image(os.path.join(folder, name))
        except UnreadableImage:
            unreadable.append(name)
    if unreadable:
        names = ", ".join(sorted(unreadable)[:LISTED_NAMES])
        raise ConfigError(
            key,
            f"[{folder}]",
            f"{len(unreadable)} of the {len(checked)} images checked cannot be read ({names}"
            f"{', ...' if len(unreadable) > LISTED_NAMES else ''}); remove or replace them, or "
            "start all the same with config.BARLOW.CHECK_IMAGES=0: each is then replaced by its "
            "neighbour, and counted",
        )


def check_checkpoints(cfg) -> None:
    """A checkpoint of another model must not be found out after hours in the queue."""
    folder = cfg.CHECKPOINT.DIR
    if is_training_finished(cfg, checkpoint_folder=folder):
        return
    path = get_resume_checkpoint(cfg, checkpoint_folder=folder)
    saved = None if path is None else inspect(path)
    if saved is None:
        return
    built = model_on_meta(cfg).get_classy_state()["model"]
    for part, theirs in (("trunk", saved.trunk), ("heads", saved.heads)):
        ours = {name: tuple(tensor.shape) for name, tensor in built[part].items()}
        if ours != theirs:
            differing = sorted(set(ours.items()) ^ set(theirs.items()))
            name, shape = differing[0]
            raise ConfigError(
                "CHECKPOINT.DIR",
                folder,
                f"{os.path.basename(path)} there is of another model (the {part} differ at {name} "
                f"{shape}); name another folder, or set config.CHECKPOINT.AUTO_RESUME=false",
            )
