"""Runs of VISSL's without a `BARLOW` section are VISSL's own, with this plugin installed or not."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from vissl_several import run_several

import vissl_barlow
from vissl_barlow.checkpoint import read_checkpoint

vissl_barlow.register()

from vissl.config import AttrDict  # noqa: E402
from vissl.data.dataset_catalog import get_data_files  # noqa: E402
from vissl.data.ssl_dataset import GenericSSLDataset  # noqa: E402
from vissl.trainer import SelfSupervisionTrainer  # noqa: E402
from vissl.utils import checkpoint, io  # noqa: E402
from vissl.utils.svm_utils.svm_trainer import SVMTrainer  # noqa: E402

pytestmark = pytest.mark.usefixtures("plain_run")

# VISSL's own configs, made small; two epochs each, the evaluation tests after both.
COMMON = (
    "config.OPTIMIZER.num_epochs=2",
    "config.DATA.NUM_DATALOADER_WORKERS=0",
    "config.DATA.TRAIN.DATA_LIMIT=-1",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
    "config.MODEL.TRUNK.RESNETS.WIDTH_PER_GROUP=4",
    "config.MACHINE.DEVICE=cpu",
    "config.DISTRIBUTED.BACKEND=gloo",
)
SIMCLR = (
    "config=test/integration_test/quick_simclr_imagefolder",
    *COMMON,
    "config.DATA.TRAIN.TRANSFORMS.1.size=32",
    "config.MODEL.HEAD.PARAMS=[[mlp,{dims:[2048,16]}]]",
    "config.LOSS.simclr_info_nce_loss.buffer_params.embedding_dim=16",
    "config.OPTIMIZER.use_larc=false",  # apex's
    "config.CHECKPOINT.DIR=simclr",
)
LINEAR = (
    "config=test/integration_test/quick_eval_in1k_linear_imagefolder",
    *COMMON,
    "config.DATA.TRAIN.TRANSFORMS.0.size=32",
    "config.DATA.TEST.TRANSFORMS.0.size=32",
    "config.DATA.TEST.TRANSFORMS.1.size=32",
    "config.DATA.TEST.DATA_LIMIT=-1",
    "config.DATA.TEST.BATCHSIZE_PER_REPLICA=4",
    "config.MODEL.FEATURE_EVAL_SETTINGS.LINEAR_EVAL_FEAT_POOL_OPS_MAP=[[res5avg,[Identity,[]]]]",
    "config.MODEL.HEAD.PARAMS=[[eval_mlp,{in_channels:2048,dims:[2048,3]}]]",
    "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=simclr/model_final_checkpoint_phase1.torch",
    "config.METERS.accuracy_list_meter.topk_values=[1]",
    "config.CHECKPOINT.DIR=linear",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three classes in an image folder, 4 images each to train on and 2 to test."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label in range(3):
            (folder / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 128, (40, 40, 3)) + 40 * label
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / split / f"class{label}" / f"{number}.png")
    return folder


def pretrain_and_evaluate(folder: Path, images: Path, plugin: bool) -> Path:
    """VISSL's SimCLR, and its linear evaluation on the result, in `folder`."""
    folder.mkdir()
    paths = [
        f"config.DATA.{split}.{kind}=[{images}/{name}]"
        for split, name in (("TRAIN", "train"), ("TEST", "val"))
        for kind in ("DATA_PATHS", "LABEL_PATHS")
    ]
    run_several(folder, [(*SIMCLR, *paths), (*LINEAR, *paths)], plugin=plugin)
    return folder


def left_behind(folder: Path) -> dict:
    """What the two runs left in `folder`, but for times and machine: files, metrics, states."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.name == "metrics.json":
            found[name] = path.read_text()
        elif path.name == "stdout.json":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [
                {key: line[key] for key in ("ep", "iter", "lr", "loss")} for line in lines
            ]
        elif path.suffix == ".torch":
            found[name] = read_checkpoint(path)
        else:
            found[name] = None
    return found


def differing(ours, theirs, name: str = "") -> Iterator[str]:
    """The names under which nested containers hold different things."""
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() | theirs.keys():
            yield from differing(ours.get(key, "none"), theirs.get(key, "none"), f"{name}/{key}")
    elif isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if not torch.equal(ours, theirs):
            yield name
    elif ours != theirs:
        yield name


def test_vissls_own_runs_are_the_same_with_and_without_the_plugin(images, tmp_path):
    ours = left_behind(pretrain_and_evaluate(tmp_path / "with", images, plugin=True))
    theirs = left_behind(pretrain_and_evaluate(tmp_path / "without", images, plugin=False))
    assert "linear/model_final_checkpoint_phase1.torch" in theirs
    assert len(theirs["simclr/stdout.json"]) > 1
    assert "test_accuracy_list_meter" in theirs["linear/metrics.json"]
    assert list(differing(ours, theirs)) == []


def test_checkpoints_are_written_by_vissl(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(torch, "save", lambda state, file: written.append(file.name))
    checkpoint.save_checkpoint(str(tmp_path), {"epoch": 1}, "model.torch")
    assert written == [f"{tmp_path}/model.torch"]


def test_links_are_made_by_vissl(tmp_path):
    (tmp_path / "model.torch").touch()
    checkpoint.create_file_symlink(str(tmp_path / "model.torch"), str(tmp_path / "link"))
    assert (tmp_path / "link").readlink() == tmp_path / "model.torch"


def test_pickles_of_any_object_load(tmp_path):
    (tmp_path / "any.pkl").write_bytes(pickle.dumps(Path("a path")))
    assert io.load_file(str(tmp_path / "any.pkl")) == Path("a path")


def test_data_is_copied_by_vissls_commands(tmp_path, monkeypatch):
    local, commands = tmp_path / "local", []

    def system(command: str) -> None:
        commands.append(command.split()[0])
        (local / "a.jpg").touch()  # VISSL asks for the size of the copy

    monkeypatch.setattr(io.os, "system", system)
    (tmp_path / "a.jpg").touch()
    local.mkdir()
    io.copy_file(str(tmp_path / "a.jpg"), str(local), None)
    io.copy_dir(str(tmp_path), str(local), 2)
    io.cleanup_dir(str(local))
    assert commands[:2] == ["rsync", "ls"]
    assert commands[2:] == ["rm"] or not local.exists()  # by 0.1.6, or by main, without a shell


def test_svms_found_on_disk_are_used(tmp_path):
    options = {"normalize": True, "cls_list": [], "loss": "squared_hinge", "penalty": "l2"}
    fit = {"dual": True, "max_iter": 500, "cross_val_folds": 3, "force_retrain": False}
    costs = {"costs_list": [1.0], "base": -1.0, "power_range": [4, 20]}
    trainer = SVMTrainer(AttrDict({**options, **fit, "costs": costs}), "res5avg", str(tmp_path))
    generator = np.random.default_rng(0)
    targets = (np.arange(60) % 2)[:, None].astype(np.int32)
    contents = []
    for _ in range(2):
        features = generator.normal(size=(60, 5))
        trainer.train(features, targets)
        trainer.test(features, targets)
        contents.append((tmp_path / "res5avg" / "cls0_cost1.0.pickle").read_bytes())
    assert contents[0] == contents[1]
    assert {path.suffix for path in (tmp_path / "res5avg").iterdir()} == {".npy", ".pickle"}


def test_features_are_extracted_by_vissl(tmp_path):
    stale = tmp_path / "rank3_chunk0_train_res5avg_inds.npy"
    stale.touch()
    task = SimpleNamespace(device=torch.device("cpu"))
    trainer = SimpleNamespace(cfg={}, task=task)
    with pytest.raises(AssertionError, match=r"Set MACHINE\.DEVICE = gpu"):
        SelfSupervisionTrainer.extract(trainer, output_folder=str(tmp_path))
    assert stale.exists()


def test_labels_of_any_object_load(tmp_path):
    path = tmp_path / "labels.npy"
    np.save(path, np.array([{"cat": 1}], dtype=object), allow_pickle=True)
    data_set = GenericSSLDataset.__new__(GenericSSLDataset)
    data_set.split = "TRAIN"
    data_set.cfg = {"DATA": {"TRAIN": AttrDict({"MMAP_MODE": False})}}
    assert data_set.load_single_label_file(str(path)).tolist() == [{"cat": 1}]


def test_the_catalogue_is_asked_for_labels(tmp_path):
    names = {"DATASET_NAMES": ["not in the catalogue"], "DATA_SOURCES": ["disk_folder"]}
    section = {**names, "DATA_PATHS": [str(tmp_path)], "LABEL_PATHS": []}
    with pytest.raises(KeyError):
        get_data_files("TRAIN", AttrDict({"TRAIN": section}))
