"""Refuses what cannot train, before anything long starts.

Runs in the main process, where VISSL resolves its config, for every config with a `BARLOW` section.
Each refusal is one line: the key, its value, the remedy.
"""

import difflib
import os
import random
import sys
from pathlib import Path

import torch
from vissl.utils import hydra_config

from vissl_barlow.checkpoint import read_checkpoint
from vissl_barlow.images import UnreadableImage, list_images, read_image
from vissl_barlow.paths import config_folder
from vissl_barlow.resnet import representation_dim
from vissl_barlow.vissl_plugin.running import RankFailed

LISTED_NAMES = 3


class ConfigError(ValueError):
    """A config that cannot train; the message is one line for the user."""

    def __init__(self, key: str, value, remedy: str) -> None:
        super().__init__(f"config.{key}={value}: {remedy}")


def install() -> None:
    """Checks every config VISSL resolves from now on, and prints refusals as one line."""
    resolve = hydra_config.infer_and_assert_hydra_config

    def check_and_resolve(cfg, *engine_name):  # VISSL 0.1.6 does not pass the engine, main does
        if "BARLOW" in cfg:
            check(cfg, *engine_name)
        else:
            _check_fit(cfg)
        return resolve(cfg, *engine_name)

    hydra_config.infer_and_assert_hydra_config = check_and_resolve
    show_traceback = sys.excepthook

    def show_in_one_line(kind, error, traceback):
        line = _unknown_config(error) if kind.__name__ == "MissingConfigException" else None
        if isinstance(error, ConfigError | RankFailed):
            line = str(error)
        if line is None:
            show_traceback(kind, error, traceback)
        else:
            sys.stdout.flush()
            print(f"vissl_barlow: {line}", file=sys.stderr)

    sys.excepthook = show_in_one_line


def check(cfg, engine_name: str = "train") -> None:
    """Raises ConfigError for the first thing in `cfg` that cannot work."""
    from vissl_barlow.vissl_plugin.validate_evaluation import check_evaluation

    _check_devices(cfg)
    _check_nodes(cfg)
    _check_checkpoint_folder(cfg)
    splits = []
    if engine_name == "train" and not cfg.TEST_ONLY:
        _check_batch(cfg)
        _check_schedule(cfg)
        _check_data(cfg, "TRAIN")
        splits.append("TRAIN")
    if cfg.TEST_MODEL or cfg.TEST_ONLY or engine_name != "train":
        _check_data(cfg, "TEST")
        splits.append("TEST")
    _check_model(cfg)
    check_evaluation(cfg, splits)
    _check_checkpoints(cfg)


def _unknown_config(error) -> str | None:
    """The line for a config name hydra could not find, with the names that resemble it."""
    missing = str(getattr(error, "missing_cfg_file", None) or "")
    if not missing:
        return None
    wanted = missing.removeprefix("config/").removesuffix(".yaml")
    known = sorted(
        path.relative_to(folder / "config").with_suffix("").as_posix()
        for folder in (config_folder("configs"), config_folder("benchmark_configs"))
        for path in (folder / "config").rglob("*.yaml")
    )
    near = difflib.get_close_matches(wanted, known, n=4, cutoff=0.5) or known
    return f"config={wanted}: there is no such config; did you mean {', '.join(near)}?"


def _world_size(cfg) -> int:
    return cfg.DISTRIBUTED.NUM_NODES * cfg.DISTRIBUTED.NUM_PROC_PER_NODE


def _check_devices(cfg) -> None:
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


def _check_nodes(cfg) -> None:
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


def _check_checkpoint_folder(cfg) -> None:
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


def _check_batch(cfg) -> None:
    batch = cfg.DATA.TRAIN.BATCHSIZE_PER_REPLICA * _world_size(cfg)
    if batch < 2:
        raise ConfigError(
            "DATA.TRAIN.BATCHSIZE_PER_REPLICA",
            cfg.DATA.TRAIN.BATCHSIZE_PER_REPLICA,
            f"the global batch is {batch}, and a correlation over the batch needs at least 2 images",
        )


def _check_schedule(cfg) -> None:
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


def _check_data(cfg, split: str) -> None:
    from vissl.data.dataset_catalog import VisslDatasetCatalog

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
    batch = cfg.DATA[split].BATCHSIZE_PER_REPLICA * _world_size(cfg)
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


def _check_fit(cfg) -> None:
    from vissl_barlow.vissl_plugin import validate_twins

    validate_twins.check_fit(cfg)


def _check_model(cfg) -> None:
    _check_fit(cfg)
    projectors = ("barlow_projector", "barlow_normalised_projector")
    heads = [head for head in cfg.MODEL.HEAD.PARAMS if head and head[0] in projectors]
    if not heads:
        return
    options = heads[0][1]
    key = "MODEL.HEAD.PARAMS"
    if cfg.MODEL.TRUNK.NAME == "barlow_resnet":
        trunk = cfg.MODEL.TRUNK.RESNETS
        try:
            representation = representation_dim(trunk.DEPTH, trunk.WIDTH_MULTIPLIER)
        except ValueError as error:
            raise ConfigError("MODEL.TRUNK.RESNETS.DEPTH", trunk.DEPTH, str(error)) from None
        if options["in_dim"] != representation:
            raise ConfigError(
                key,
                cfg.MODEL.HEAD.PARAMS,
                f"the trunk's representations have {representation} dimensions; set "
                f"{heads[0][0]}'s in_dim to {representation}",
            )
    loss = cfg.LOSS.get(cfg.LOSS.name) or {}
    embedding_dim = loss.get("embedding_dim")
    if embedding_dim is not None and embedding_dim != options["dims"][-1]:
        raise ConfigError(
            f"LOSS.{cfg.LOSS.name}.embedding_dim",
            embedding_dim,
            f"the projector's last layer has {options['dims'][-1]} outputs; make the two equal",
        )
    _check_components(cfg)


def _check_components(cfg) -> None:
    """Builds what is cheap to build, so that its own checks speak before training."""
    from classy_vision.losses import build_loss
    from classy_vision.optim import build_optimizer
    from vissl.data.ssl_transforms import get_transform

    name = cfg.LOSS.name

    def compute_loss():
        loss = build_loss({"name": name, **cfg.LOSS[name]})
        # The functions check their options when called.
        loss(getattr(loss, "example", [torch.eye(4), torch.eye(4).flip(0)]), None)

    for key, build in (
        (f"LOSS.{name}", compute_loss),
        ("OPTIMIZER", lambda: build_optimizer(cfg.OPTIMIZER).prepare([torch.zeros(1)])),
        ("DATA.TRAIN.TRANSFORMS", lambda: get_transform(cfg.DATA.TRAIN.TRANSFORMS)),
    ):
        try:
            build()
        except (ValueError, TypeError) as error:
            section = cfg
            for part in key.split("."):
                section = section[part]
            value = section.to_dict() if hasattr(section, "to_dict") else section
            raise ConfigError(key, value, str(error)) from None


def model_on_meta(cfg):
    """The model `cfg` would train, without memory or values: for names and shapes."""
    from vissl.models import build_model

    cfg.MODEL["_MODEL_INIT_SEED"] = cfg.MODEL.get("_MODEL_INIT_SEED", cfg.SEED_VALUE)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return build_model(cfg.MODEL, cfg.OPTIMIZER)


def _check_checkpoints(cfg) -> None:
    """A checkpoint of another model must not be found out after hours in the queue."""
    from vissl.utils.checkpoint import get_resume_checkpoint, is_training_finished

    folder = cfg.CHECKPOINT.DIR
    if is_training_finished(cfg, checkpoint_folder=folder):
        return
    path = get_resume_checkpoint(cfg, checkpoint_folder=folder)
    if path is None or not os.path.isfile(path):
        return
    saved = read_checkpoint(path)["classy_state_dict"]["base_model"]["model"]
    model = model_on_meta(cfg)
    built = model.get_classy_state()["model"]
    for part in ("trunk", "heads"):
        ours = {name: tuple(tensor.shape) for name, tensor in built[part].items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in saved[part].items()}
        if ours != theirs:
            differing = sorted(set(ours.items()) ^ set(theirs.items()))
            name, shape = differing[0]
            raise ConfigError(
                "CHECKPOINT.DIR",
                folder,
                f"{os.path.basename(path)} there is of another model (the {part} differ at {name} "
                f"{shape}); name another folder, or set config.CHECKPOINT.AUTO_RESUME=false",
            )
