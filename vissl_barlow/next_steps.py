"""What a checkpoint is, its run's numbers, and the three commands that come next, as text.

A run's folder says what it was trained on. Of any other file, and where those images have no labels to
evaluate by, the images are the reader's to name: they are in capitals then.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vissl_barlow.checkpoint.architecture import TrunkDepth
from vissl_barlow.overrides import compose_config, override
from vissl_barlow.own_images.folder import WITHOUT_LABELS
from vissl_barlow.paths import config_folder
from vissl_barlow.provenance import read_provenance
from vissl_barlow.regular_files import MAX_LIST_BYTES, read_regular
from vissl_barlow.resnet import representation_dim
from vissl_barlow.run_files import CONFIG_FILE, PROBE_FILE, read_history

RUNNER = "tools.run_distributed_engines"
LINEAR = "config=benchmark/vissl_barlow/imagenet1k_linear"
BUNDLED_DIGITS = "+config/benchmark/vissl_barlow/overlays=bundled_digits"
# What the evaluations' configs have: trunk, and classes.
_IMAGENETS = TrunkDepth(50, small_stem=False), 1000
_DIGITS = TrunkDepth(18, small_stem=False, width_multiplier=0.5), 10
_IMAGENET_PROCESSES = 8
# Data sets with a linear evaluation of their own, as VISSL knows them, to its config.
_OWN_LINEAR = {
    "CIFAR10": "cifar10_linear",
    "CIFAR100": "cifar100_linear",
    "STL10": "stl10_linear",
    "imagenet100_folder": "imagenet100_linear",
}
_WORDS = (
    *(("loss", "loss"), ("invariance", "invariance"), ("redundancy", "redundancy")),
    *(("diagonal_mean", "mean diagonal of C"), ("off_diagonal_rms", "off-diagonal RMS of C")),
    ("effective_rank_representation", "effective rank of representations"),
    *(("effective_rank_embedding", "of embeddings"), ("images_per_second", "images/s")),
)


def next_steps(checkpoint: Path, trunk: TrunkDepth | None, step: int | None) -> str:
    """Lines on a checkpoint: where it is, its run's numbers, commands to evaluate, export and report.

    Args:
        checkpoint: the file; its folder is a run's, or not.
        trunk: the ResNet in it; None for another trunk, which the first two commands do not take.
        step: after how many steps it was saved; None if nothing tells.
    """
    folder = checkpoint.parent
    run = _config(folder) if step is not None else {}
    about = [str(trunk or ""), "" if step is None else f"after {step} steps"]
    lines = [f"checkpoint: {_shown(checkpoint)} ({', '.join(filter(None, about))})"]
    lines += [f"    {line}" for line in (_numbers(folder, step) if run and step else ())]
    evaluations = folder / "evaluation" if run else Path("report")
    commands = {}
    if trunk:
        commands["evaluate it"] = _evaluation(checkpoint, trunk, run, evaluations)
        commands["export it (or --to timm, safetensors, onnx, vissl, detectron2)"] = _command(
            *("vissl_barlow.checkpoint", "--to", "torchvision"),
            *(_shown(checkpoint), _shown(folder / "trunk.pth")),
        )
    commands["report on it"] = _command(
        *("vissl_barlow.reproduce", "report", _shown(folder if run else evaluations)),
        *("--out", _shown(folder / "report" if run else evaluations)),
    )
    for what, command in commands.items():
        lines += [f"{what}:", f"    {command}"]
    return "\n".join(lines)


def _evaluation(
    checkpoint: Path, trunk: TrunkDepth, run: Mapping[str, Any], evaluations: Path
) -> str:
    data = run.get("DATA", {}).get("TRAIN", {})
    if "barlow_digits" in data.get("DATA_SOURCES", ()):
        return _command(
            *(RUNNER, LINEAR, BUNDLED_DIGITS),
            override("MODEL.WEIGHTS_INIT.PARAMS_FILE", _shown(checkpoint)),
            override("CHECKPOINT.DIR", _shown(evaluations)),
            *_of_another_trunk(trunk, *_DIGITS),
        )
    images = _images(checkpoint.parent) if run else {}
    if linear := _OWN_LINEAR.get("".join(data.get("DATASET_NAMES", ()))):
        return _small_evaluation(
            checkpoint, trunk, run, evaluations, linear, _root(images, "FOLDER")
        )
    if not images or images.get("images") == _imagenets_images():
        root = _root(images, "IMAGENET")
        return _command(
            *("vissl_barlow.reproduce", "table1", "--checkpoint", _shown(checkpoint)),
            *("--imagenet", root, "--out", _shown(evaluations)),
            *_of_another_trunk(trunk, *_IMAGENETS),
            *_of_another_machine(run, _IMAGENET_PROCESSES),
        )
    if str(images.get("found", "")).partition(":")[0].endswith(WITHOUT_LABELS):
        return _own_evaluation(checkpoint, "FOLDER_OF_CLASSES", evaluations)
    return _own_evaluation(checkpoint, _root(images, "FOLDER"), evaluations)


def _small_evaluation(
    checkpoint: Path,
    trunk: TrunkDepth,
    run: Mapping[str, Any],
    evaluations: Path,
    linear: str,
    root: str,
) -> str:
    """Of a data set that torchvision reads, both splits in one folder, or of folders for each."""
    config = f"benchmark/vissl_barlow/{linear}"
    composed = compose_config(config)
    resnet, (_, head) = composed.MODEL.TRUNK.RESNETS, composed.MODEL.HEAD.PARAMS[0]
    of_folders = "disk_folder" in composed.DATA.TRAIN.DATA_SOURCES
    return _command(
        *(RUNNER, f"config={config}"),
        override("MODEL.WEIGHTS_INIT.PARAMS_FILE", _shown(checkpoint)),
        *(
            override(f"DATA.{split}.DATA_PATHS", [f"{root}/{part}" if of_folders else root])
            for split, part in (("TRAIN", "train"), ("TEST", "val"))
        ),
        override("CHECKPOINT.DIR", _shown(evaluations)),
        *_of_another_trunk(trunk, TrunkDepth(resnet.DEPTH, resnet.SMALL_STEM), head.num_classes),
        *_of_another_machine(run, composed.DISTRIBUTED.NUM_PROC_PER_NODE),
    )


def _own_evaluation(checkpoint: Path, root: str, evaluations: Path) -> str:
    """Of images that are no data set of the paper's; `own` finds out what follows from them."""
    return _command(
        *("vissl_barlow.reproduce", "own", "--checkpoint", _shown(checkpoint)),
        *("--images", root, "--out", _shown(evaluations)),
    )


def _of_another_trunk(trunk: TrunkDepth, expected: TrunkDepth, classes: int) -> Iterator[str]:
    """What an evaluation of `expected` must be told to evaluate `trunk`."""
    keys = {"DEPTH": "depth", "SMALL_STEM": "small_stem", "WIDTH_MULTIPLIER": "width_multiplier"}
    for key, name in keys.items():
        if getattr(trunk, name) != getattr(expected, name):
            yield override(f"MODEL.TRUNK.RESNETS.{key}", getattr(trunk, name))
    dims = representation_dim(trunk.depth, trunk.width_multiplier)
    if dims != representation_dim(expected.depth, expected.width_multiplier):
        head = ["barlow_linear", {"in_dim": dims, "num_classes": classes}]
        yield override("MODEL.HEAD.PARAMS", [head])


def _of_another_machine(run: Mapping[str, Any], expected: int) -> Iterator[str]:
    """What an evaluation of `expected` processes must be told to run where the pretraining ran."""
    if run.get("MACHINE", {}).get("DEVICE") == "cpu":
        yield from (override("MACHINE.DEVICE", "cpu"), override("DISTRIBUTED.BACKEND", "gloo"))
    processes = run.get("DISTRIBUTED", {}).get("NUM_PROC_PER_NODE", expected)
    if processes != expected:
        yield override("DISTRIBUTED.NUM_PROC_PER_NODE", processes)


def _numbers(folder: Path, step: int) -> Iterator[str]:
    try:
        history = read_history(folder)
    except OSError:
        history = []
    so_far = [entry for entry in history if entry["iteration"] <= step]
    last: dict[str, Any] = so_far[-1] if so_far else {}
    found = [f"{words} {last[key]:.4g}" for key, words in _WORDS if _is_number(last.get(key))]
    if found:
        at = "" if last["iteration"] == step else f" at step {last['iteration']}"
        yield ", ".join(found) + at
    probe = _probe(folder)
    if last and last is history[-1] and "pretrained trunk" in probe:
        accuracies = (
            f"{name} {100 * value:.1f} %"
            for name, value in probe.items()
            if _is_number(value) and not name.startswith("epoch")
        )
        yield f"{probe.get('probe', '')} probe: {', '.join(accuracies)}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _config(folder: Path) -> dict[str, Any]:
    """The resolved config of the run in `folder`; empty where there is none."""
    try:
        content = yaml.safe_load(read_regular(folder / CONFIG_FILE, MAX_LIST_BYTES))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _probe(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(folder / PROBE_FILE, MAX_LIST_BYTES))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _images(folder: Path) -> dict[str, Any]:
    """What the run in `folder` trained on, as its last start noted it; empty where nothing tells."""
    try:
        return read_provenance(folder)[-1]["data"]["train"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _imagenets_images() -> int:
    content = yaml.safe_load((config_folder("benchmark_configs") / "datasets.yaml").read_text())
    return content["imagenet1k_folder"]["train"]["images"]


def _root(images: Mapping[str, Any], unknown: str) -> str:
    """The folder of the data set that `images` are of; `unknown` where none is noted."""
    paths = [path for path in images.get("paths") or () if Path(path).is_dir()]
    if not paths:
        return unknown
    path = Path(paths[0])
    is_part = path.name == "train" and (path.parent / "val").is_dir()
    return _shown(path.parent if is_part else path)


def _shown(path: Path) -> str:
    """From where we are, if it is below; else in full."""
    path = path.absolute()
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _command(*words: str) -> str:
    python = "python" if shutil.which("python") == sys.executable else _shown(Path(sys.executable))
    return shlex.join([python, "-m", *words])
