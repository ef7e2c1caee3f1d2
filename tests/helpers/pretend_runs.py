"""Folders as finished runs leave them, for what reads results and must not wait days for them."""

import itertools
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from vissl_barlow.provenance import file_sha256
from vissl_barlow.reproduce.overrides import PRETRAIN_GROUP, compose_config
from vissl_barlow.reproduce.studies import load_study
from vissl_barlow.reproduce.studies import pretraining as pretraining_overrides
from vissl_barlow.run_files import UNTRAINED

V100 = "Tesla V100-SXM2-32GB"
FIRST_START = datetime(2026, 11, 1, tzinfo=UTC)
STARTS = itertools.count()
LINEAR = "benchmark/vissl_barlow/imagenet1k_linear"


def start(
    command, *, seed=0, processes=8, hours=6.5, weights=None, hardware=V100, data=None
) -> dict:
    """One entry of `barlow_run.json`; `data` is what a start notes of its images, by split."""
    if weights is not None:
        weights = {"path": str(Path(weights).resolve()), "sha256": file_sha256(weights)}
    return {
        "started": (FIRST_START + timedelta(seconds=next(STARTS))).isoformat(),
        "hours": hours,
        "command": list(command),
        "weights": weights,
        **({} if data is None else {"data": data}),
        "seed": seed,
        "versions": {"torch": "2.12.1", "vissl": "0.1.6"},
        "revision": "0123abc",
        "processes": processes,
        "hardware": hardware,
    }


def vissl_command(config, *overrides, module="tools.run_distributed_engines") -> list[str]:
    return ["python", "-m", module, f"config={config}", *overrides]


def write(folder: Path, *starts: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "barlow_run.json").write_text(json.dumps(list(starts)))
    return folder


def train_config(folder: Path, *, batch: int, **optimizer: int) -> None:
    """VISSL's resolved config, as far as results depend on it."""
    resolved = {"DATA": {"TRAIN": {"BATCHSIZE_PER_REPLICA": batch}}, "OPTIMIZER": optimizer}
    (folder / "train_config.yaml").write_text(yaml.safe_dump(resolved))


def pretraining(
    folder: Path, config: str, *overrides: str, batch=64, processes=32, finished=True, **options
) -> Path:
    """A pretraining on ImageNet; `config` below pretrain/vissl_barlow. Its checkpoint's content is
    its own."""
    command = vissl_command(f"{PRETRAIN_GROUP}/{config}", *overrides)
    write(folder, start(command, processes=processes, **{"hours": 124.0, **options}))
    train_config(folder, batch=batch)
    for name in (
        "checkpoint.torch",
        *(["model_final_checkpoint_phase999.torch"] if finished else []),
    ):
        (folder / name).write_bytes(f"weights of {folder}".encode())
    steps = [
        {"iteration": i, "loss": 8000.0 / i, "invariance": 7000.0 / i, "redundancy": 5e4}
        for i in (1, 2)
    ]
    (folder / "barlow.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


def experiment(
    root: Path,
    study: str,
    name: str,
    kind: str,
    *,
    series: str | None = None,
    tried: str | None = None,
    seed=0,
    **options,
) -> Path:
    """The pretraining of one experiment of a study, where and by the command that the study runs it, on
    `kind` ("imagenet", "digits")."""
    chosen = next(
        e
        for e in load_study(study, kind).experiments
        if e.name == name and series in (None, e.series) and tried in (None, e.tried)
    )
    folder = root / kind / "runs" / chosen.folder / f"seed{seed}"
    config, *overrides = pretraining_overrides(chosen, kind, folder, seed)
    batch = next((o for o in overrides if "BATCHSIZE_PER_REPLICA" in o), "=128").partition("=")[2]
    sizes = {"batch": int(batch), "processes": 1} if kind == "digits" else {}
    config = config.removeprefix(f"config={PRETRAIN_GROUP}/")
    return pretraining(folder, config, *overrides, **{**sizes, "seed": seed, **options})


def probed(folder: Path, accuracy: float, first: str = UNTRAINED) -> Path:
    """Adds the probe's result at the end of a pretraining on the digits, whose trunk was `first`."""
    found = {"pretrained trunk": accuracy, first: 0.3, "pixels": 0.95}
    (folder / "barlow_probe.json").write_text(json.dumps(found))
    return folder


def pretend_study(root: Path, study: str, accuracies: dict[tuple[str, str], float]) -> None:
    """Writes the probe's result of experiments on the digits, by name and what was tried."""
    for (name, tried), accuracy in accuracies.items():
        probed(experiment(root, study, name, "digits", tried=tried or None), accuracy)


def linear(
    folder: Path,
    weights: Path | None,
    top_1: float,
    *overrides: str,
    config=LINEAR,
    batch=32,
    **options,
) -> Path:
    """A linear evaluation of `weights`, a checkpoint or a pretraining's folder."""
    if weights is not None and weights.is_dir():
        weights = weights / "checkpoint.torch"
    write(folder, start(vissl_command(config, *overrides), weights=weights, **options))
    deciding = [word for word in overrides if "config/" in word or ".num_epochs=" in word]
    epochs = compose_config(config, tuple(deciding)).OPTIMIZER.num_epochs
    train_config(folder, batch=batch, num_epochs=epochs)
    meter = {"top_1": {"res5avg": top_1}, "top_5": {"res5avg": top_1 + 18}}
    last = {"train_phase_idx": epochs - 1, "test_accuracy_list_meter": meter}
    (folder / "metrics.json").write_text(json.dumps(last) + "\n")
    return folder


def svm(
    folder: Path, weights: Path, mean_ap: float, *, config="voc07_svm", layer="res5", **options
) -> Path:
    """VOC07's SVMs, on the features of a layer."""
    command = vissl_command(f"benchmark/vissl_barlow/{config}", module="tools.train_svm")
    write(folder, start(command, weights=weights, processes=1, **options))
    train_config(folder, batch=32)
    (folder / layer).mkdir()
    (folder / layer / "test_ap.json").write_text(json.dumps({"mAP": mean_ap}))
    return folder


def detection(
    folder: Path, weights: Path, boxes: dict, *overrides: str, seed=0, evaluated=None, data=None
) -> Path:
    """Faster R-CNN on VOC, as Detectron2 and this plugin's command leave it after the last iteration,
    or after what `evaluated` says."""
    command = [
        *(Path(sys.executable).name, "-m", "vissl_barlow.detection", "--resume", "--num-gpus", "8"),
        *("--config-file", "voc0712_faster_rcnn_R50_C4_24k", "MODEL.WEIGHTS", str(weights)),
        *("OUTPUT_DIR", str(folder), "SEED", str(seed), *overrides),
    ]
    write(folder, start(command, weights=weights, seed=seed, data=data))
    (folder / "config.yaml").write_text("VERSION: 2\n")
    last = {"start": "training", "iteration": 24000, "max_iter": 24000}
    content = {"voc_2007_test": {"metric": "VOC's", "bbox": boxes, "evaluated": evaluated or last}}
    (folder / "results.json").write_text(json.dumps(content))
    return folder
