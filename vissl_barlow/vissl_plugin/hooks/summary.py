"""The one screen that a run begins with: what is trained, on what, and where it goes."""

import torch
import torch.distributed as dist
from vissl.utils.checkpoint import get_checkpoint_folder

from vissl_barlow.version import __version__
from vissl_barlow.vissl_plugin.run.images import line_of

# Points of the schedule at which its largest learning rate is looked for.
_POINTS = 1000


def summary_of(task) -> str:
    """A few lines about the run of `task`, of the plugin's, which is prepared and about to start."""
    cfg = task.config
    rows = {"config": ", ".join(_named_configs(cfg)), "trunk": _trunk(task)}
    if cfg.MODEL.HEAD.PARAMS:
        rows["heads"] = ", ".join(_head(*head) for head in cfg.MODEL.HEAD.PARAMS)
    rows["weights"] = cfg.MODEL.WEIGHTS_INIT.PARAMS_FILE or "random"
    for split, images in sorted(task.images.items(), reverse=True):  # train, test
        _, _, rows[f"{split} images"] = line_of(split, images).partition(": ")
    if task.trains:
        rows |= _training(task)
    rows["device"] = _device(task)
    rows["folder"] = f"{get_checkpoint_folder(cfg)}, VISSL's log in its log.txt"
    width = max(map(len, rows)) + 2
    lines = [f"  {name:{width}}{value}" for name, value in rows.items() if value]
    return "\n".join([f"vissl_barlow {__version__}: {_kind(task)}", *lines])


def _kind(task) -> str:
    if task.extracts:
        return "features are extracted"
    if not task.trains:
        return "a model is tested"
    return f"training with {task.config.LOSS.name}"


def _named_configs(cfg) -> list[str]:
    words = cfg.BARLOW.COMMAND if isinstance(cfg.BARLOW.COMMAND, list) else []
    named = [word.lstrip("+").removeprefix("config=") for word in words]
    return [new for old, new in zip(words, named, strict=True) if old.lstrip("+") != new]


def _trunk(task) -> str:
    name = task.config.MODEL.TRUNK.NAME
    if name == "barlow_resnet":
        settings = task.config.MODEL.TRUNK.RESNETS
        width = "" if settings.WIDTH_MULTIPLIER == 1 else f", width {settings.WIDTH_MULTIPLIER}"
        name = f"ResNet-{settings.DEPTH}{width}"
    trunk = list(task.base_model.trunk.parameters())
    frozen = "" if any(p.requires_grad for p in trunk) else ", frozen"
    return f"{name}, {sum(p.numel() for p in trunk) / 1e6:.3g} million parameters{frozen}"


def _head(name: str, options: dict, *rest) -> str:
    options = options if isinstance(options, dict) else {}
    inputs = [options["in_dim"]] if "in_dim" in options else []
    outputs = options.get("dims") or [options.get("num_classes")]
    sizes = "-".join(str(size) for size in [*inputs, *outputs] if size)
    return f"{name} {sizes}".strip()


def _training(task) -> dict[str, str]:
    processes, batch = dist.get_world_size(), task.get_global_batchsize()
    each = "" if processes == 1 else f" in {processes} processes of {batch // processes}"
    epochs = task.num_epochs
    steps = task.max_iteration
    resumed = f", resumed after step {task.iteration}" if task.checkpoint is not None else ""
    return {
        "batch": f"{batch}{each}",
        "learning rate": _learning_rates(task),
        "length": f"{epochs} epochs of {steps // task.num_train_phases} steps{resumed}",
    }


def _learning_rates(task) -> str:
    peaks = {
        name: max(schedule(point / _POINTS) for point in range(_POINTS))
        for name, schedule in task.optimizer_schedulers.items()
        if name.startswith("lr")
    }
    optimizer = task.config.OPTIMIZER.name
    several = len(set(peaks.values())) > 1
    shown = [f"{peak:.4g}{f' ({name})' if several else ''}" for name, peak in peaks.items()]
    return f"up to {', '.join(shown if several else shown[:1])}, {optimizer}"


def _device(task) -> str:
    if task.device.type == "cuda":
        name = torch.cuda.get_device_name(task.device)
    else:
        name = f"CPU, threads: {torch.get_num_threads()}"
    uses_amp = task.trains and task.config.MODEL.AMP_PARAMS.USE_AMP
    return f"{name}, {task.config.BARLOW.AMP_DTYPE if uses_amp else 'float32'}"
