"""An evaluation that cannot work, or would mislead, is refused before it starts."""

import os
import shlex
from urllib.error import URLError

import numpy as np
import pytest
import torch
from digits_on_disk import OVERLAY
from PIL import Image
from vissl_runs import compose, resolve

from vissl_barlow.checkpoint import (
    CheckpointError,
    TrunkDepth,
    as_vissl_checkpoint,
    load_trunk,
    read_checkpoint,
    save_atomically,
)
from vissl_barlow.resnet import build_trunk
from vissl_barlow.vissl_plugin.errors import ConfigError

WEIGHTS = "config.MODEL.WEIGHTS_INIT.PARAMS_FILE"


def refusal(tmp_path, name, *overrides) -> str:
    with pytest.raises(ConfigError) as raised:
        resolve(tmp_path / "run", f"benchmark/vissl_barlow/{name}", OVERLAY, *overrides)
    return str(raised.value)


def test_classes_that_do_not_match_the_classifier(digits_on_disk, tmp_path):
    message = refusal(
        tmp_path,
        "imagenet1k_linear",
        *digits_on_disk.folders(),
        "config.MODEL.HEAD.PARAMS=[[barlow_linear,{in_dim:256,num_classes:1000}]]",
    )
    assert message.startswith("config.MODEL.HEAD.PARAMS=")
    assert "1000 outputs" in message
    assert "10 classes" in message


def test_folders_laid_out_wrongly(digits_on_disk, tmp_path):
    root, flat = digits_on_disk.imagenet, tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (8, 8)).save(flat / "ILSVRC2012_val_00000001.JPEG")
    test = f"config.DATA.TEST.DATA_PATHS=[{root}/val]"
    above = refusal(tmp_path, "imagenet1k_linear", f"config.DATA.TRAIN.DATA_PATHS=[{root}]", test)
    assert "expected one sub-folder of images per class, found train, val" in above
    unsorted = refusal(
        tmp_path,
        "imagenet1k_linear",
        f"config.DATA.TRAIN.DATA_PATHS=[{root}/train]",
        f"config.DATA.TEST.DATA_PATHS=[{flat}]",
    )
    assert unsorted.startswith("config.DATA.TEST.DATA_PATHS=")
    assert "found 1 images and no sub-folder" in unsorted


def test_test_images_of_other_classes_than_the_training_images(digits_on_disk, tmp_path):
    for name in [*(f"n{digit:08d}" for digit in range(9)), "n99999999"]:
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "val" / name / "image.png")
    message = refusal(
        tmp_path,
        "imagenet1k_linear",
        digits_on_disk.folders()[0],
        f"config.DATA.TEST.DATA_PATHS=[{tmp_path}/val]",
    )
    assert "1 missing (n00000009), 1 unexpected (n99999999)" in message


def test_missing_and_unfit_lists(digits_on_disk, tmp_path):
    test = f"config.DATA.TEST.DATA_PATHS=[{digits_on_disk.imagenet}/val]"

    def with_lists(images, labels) -> str:
        return refusal(
            tmp_path,
            "imagenet1k_semi_1pct",
            f"config.DATA.TRAIN.DATA_PATHS=[{images}]",
            f"config.DATA.TRAIN.LABEL_PATHS=[{labels}]",
            test,
        )

    images = digits_on_disk.lists / "train_images.npy"
    missing = with_lists(tmp_path / "none.npy", tmp_path / "none.npy")
    assert "there is no such file; `python -m vissl_barlow.datasets.imagenet_subsets`" in missing

    labels = tmp_path / "labels.npy"
    np.save(labels, np.arange(7))
    assert "7 labels for the 1437 images" in with_lists(images, labels)
    np.save(labels, np.arange(1437) % 11)
    assert "11 classes" in with_lists(images, labels)
    np.save(labels, np.arange(1437) % 9)
    assert "9 classes" in with_lists(images, labels)
    np.save(labels, np.zeros((1437, 3)))
    assert "float64 of shape (1437, 3)" in with_lists(images, labels)
    gone = tmp_path / "images.npy"
    np.save(gone, np.array([str(tmp_path / "gone.JPEG")] * 1437))
    np.save(labels, np.arange(1437) % 10)
    assert "missing or cannot be read" in with_lists(gone, labels)


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_lists_and_checkpoints_with_code_are_refused_unread(digits_on_disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "labels.npy", np.array([Code()], dtype=object), allow_pickle=True)
    message = refusal(
        tmp_path,
        "imagenet1k_semi_1pct",
        f"config.DATA.TRAIN.DATA_PATHS=[{digits_on_disk.lists}/train_images.npy]",
        "config.DATA.TRAIN.LABEL_PATHS=[labels.npy]",
        digits_on_disk.folders()[1],
    )
    assert "not a plain array" in message
    torch.save({"model": Code()}, tmp_path / "weights.pth")
    message = refusal(
        tmp_path, "imagenet1k_linear", *digits_on_disk.folders(), f"{WEIGHTS}=weights.pth"
    )
    assert message.startswith(f"{WEIGHTS}=weights.pth: refused: it holds")
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_missing_or_of_another_trunk(checkpoints, digits_on_disk, tmp_path):
    folders = digits_on_disk.folders()
    placeholder = refusal(tmp_path, "imagenet1k_linear", *folders)
    assert "cannot be read (No such file or directory)" in placeholder
    deeper = refusal(
        tmp_path,
        "imagenet1k_linear",
        *folders,
        f"{WEIGHTS}={checkpoints['torchvision']}",
        "config.MODEL.TRUNK.RESNETS.DEPTH=34",
    )
    assert deeper.endswith(": this is a ResNet-18 x0.5: set config.MODEL.TRUNK.RESNETS.DEPTH=18")


def test_weights_of_a_folder_an_address_or_null(checkpoints, digits_on_disk, tmp_path, monkeypatch):
    import vissl.utils.io

    start = ("imagenet1k_linear", *digits_on_disk.folders())
    newest = tmp_path / "checkpoint.torch"
    newest.symlink_to(checkpoints["torchvision"])
    named = refusal(tmp_path, *start, f"{WEIGHTS}={tmp_path}")
    assert named.endswith(f"cannot be read (not a regular file); name {newest}")

    def unknown(url, cache_dir):
        raise URLError("Name or service not known")

    monkeypatch.setattr(vissl.utils.io, "cache_url", unknown)
    address = f"{WEIGHTS}=https://example.org/x.pth"
    assert refusal(tmp_path, *start, address).startswith(f"{address}: cannot be downloaded (<urlo")
    # What came is looked at as any file is.
    other = tmp_path / "x.pth"
    torch.save(build_trunk(34, width_multiplier=0.5).state_dict(), other)
    monkeypatch.setattr(vissl.utils.io, "cache_url", lambda url, cache_dir: str(other))
    assert "this is a ResNet-34 x0.5" in refusal(tmp_path, *start, address)
    run = resolve(
        tmp_path / "run",
        f"benchmark/vissl_barlow/{start[0]}",
        OVERLAY,
        *start[1:],
        f"{WEIGHTS}=null",
    )
    assert run.MODEL.WEIGHTS_INIT.PARAMS_FILE == ""


@pytest.mark.parametrize(
    ("config", "layout", "keys"),
    [
        ("benchmark/vissl_barlow/imagenet1k_linear", (18, False, 1), "DEPTH=18"),
        ("benchmark/vissl_barlow/imagenet1k_linear", (50, False, 2), "WIDTH_MULTIPLIER=2"),
        ("pretrain/vissl_barlow/resnet50_in1k_300ep", (18, False, 1), "DEPTH=18"),
        ("pretrain/vissl_barlow/resnet50_in1k_300ep", (34, True, 1), "DEPTH=34 SMALL_STEM=true"),
    ],
)
def test_a_trunk_of_another_depth_width_or_stem_says_the_keys(
    digits_on_disk, tmp_path, config, layout, keys
):
    """In evaluations and in pretraining: the keys that are named build the trunk that fits."""
    depth, small_stem, width = layout
    with torch.device("meta"):
        trunk = build_trunk(depth, small_stem=small_stem, width_multiplier=width).state_dict()
    # One number behind a whole tensor: small files.
    zeros = {name: torch.zeros((), dtype=t.dtype).expand(t.shape) for name, t in trunk.items()}
    torch.save(zeros, tmp_path / "brought.pth")
    weights = [f"{WEIGHTS}={tmp_path}/brought.pth", *digits_on_disk.folders()]
    if "pretrain" in config:
        del weights[-1]
    settings = [f"config.MODEL.TRUNK.RESNETS.{key}" for key in keys.split()]
    with pytest.raises(ConfigError) as raised:
        resolve(tmp_path / "run", config, *weights)
    line = next(line for line in str(raised.value).splitlines() if WEIGHTS in line)
    name = str(TrunkDepth(depth, small_stem, width))
    assert line == f"{WEIGHTS}={tmp_path}/brought.pth: this is a {name}: set {' '.join(settings)}"
    # Not at the top: imported before the plugin is registered, they would keep VISSL's own functions.
    from vissl_barlow.vissl_plugin.checks.common import model_on_meta
    from vissl_barlow.vissl_plugin.components.weights import model_weights

    model = compose(config, *settings)
    model_weights(model_on_meta(model), f"{tmp_path}/brought.pth")


@pytest.mark.parametrize("part", ["trunk", "heads"])
def test_weights_that_are_not_finite(checkpoints, tmp_path, part):
    # Not at the top: imported before the plugin is registered, they would keep VISSL's own functions.
    from vissl_barlow.vissl_plugin.checks.common import model_on_meta
    from vissl_barlow.vissl_plugin.components.weights import model_weights

    cfg = compose("benchmark/vissl_barlow/imagenet1k_linear", OVERLAY)
    path = tmp_path / "linear.torch"
    saved = as_vissl_checkpoint(checkpoints["torchvision"])
    model = saved["classy_state_dict"]["base_model"]["model"]
    heads = {"0.linear.weight": torch.ones(10, 256), "0.linear.bias": torch.ones(10)}
    model["heads"] = heads
    torch.save(saved, path)
    assert model_weights(model_on_meta(cfg), str(path))[1].keys() == heads.keys()
    name = next(iter(model[part]))
    model[part][name] = model[part][name] * float("nan")
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match=rf"linear\.torch: .*not finite .*{name}"):
        model_weights(model_on_meta(cfg), str(path))


def test_images_are_normalised_as_those_of_the_pretraining(checkpoints, digits_on_disk, tmp_path):
    checkpoint = read_checkpoint(checkpoints["pretrained"])
    views = "DATA.TRAIN.TRANSFORMS.0"
    noted = {f"{views}.{name}.{i}": 0.5 for name in ("mean", "std") for i in range(3)}
    checkpoint["classy_state_dict"]["experiment"] = {f"{views}.name": "BarlowTwoViews", **noted}
    save_atomically(checkpoint, tmp_path / "own.torch")
    command = (
        "imagenet1k_linear",
        *digits_on_disk.folders(),
        f"{WEIGHTS}={tmp_path / 'own.torch'}",
    )
    message = refusal(tmp_path, *command)
    assert "own.torch: was pretrained on images that were normalised otherwise; set" in message
    told = shlex.split(message.partition("set as there ")[2])
    assert [word for word in told if not word.endswith("=[0.5,0.5,0.5]")] == []
    assert len(told) == 4
    config, *overrides = command
    resolve(tmp_path / "run", f"benchmark/vissl_barlow/{config}", OVERLAY, *overrides, *told)


def test_one_of_two_trunks_is_chosen_by_a_key(checkpoints, digits_on_disk, tmp_path):
    trunk = load_trunk(checkpoints["torchvision"])
    both = {
        f"{side}.{name}": tensor for side in ("left", "right") for name, tensor in trunk.items()
    }
    torch.save(both, tmp_path / "both.pth")
    start = (*digits_on_disk.folders(), f"{WEIGHTS}={tmp_path}/both.pth")
    assert "choose one by config.BARLOW.WEIGHTS_TRUNK" in refusal(
        tmp_path, "imagenet1k_linear", *start
    )
    chosen = (*start, "config.BARLOW.WEIGHTS_TRUNK=left")
    resolve(tmp_path / "run", "benchmark/vissl_barlow/imagenet1k_linear", OVERLAY, *chosen)


def test_features_that_the_images_are_too_small_or_too_large_for(digits_on_disk, tmp_path):
    pooled = "config.MODEL.FEATURE_EVAL_SETTINGS.LINEAR_EVAL_FEAT_POOL_OPS_MAP"
    pirls = f"{pooled}=[[res5,[AvgPool2d,[[6,6],1,0]]]]"
    start = (*digits_on_disk.folders(), f"{WEIGHTS}=", pirls)
    small = refusal(tmp_path, "imagenet1k_linear", *start)
    assert "images of 3 x 32 x 32" in small and pooled in small
    head = "config.MODEL.HEAD.PARAMS=[[barlow_linear,{in_dim:1024,num_classes:10}]]"
    size = "config.DATA.TRAIN.TRANSFORMS.0.size"
    large = refusal(tmp_path, "imagenet1k_linear", *start, head, f"{size}=256")
    assert large.startswith("config.MODEL.HEAD.PARAMS=") and "features of shape 2304" in large
    fit = ("benchmark/vissl_barlow/imagenet1k_linear", OVERLAY, *start, head, f"{size}=224")
    resolve(tmp_path / "run", *fit)


def test_more_best_answers_or_steps_than_there_are(digits_on_disk, tmp_path):
    folders = (*digits_on_disk.folders(), f"{WEIGHTS}=")
    key = "config.METERS.accuracy_list_meter.topk_values"
    assert refusal(tmp_path, "imagenet1k_linear", *folders, f"{key}=[1,11]").startswith(key)
    short = refusal(
        tmp_path,
        "imagenet1k_semi_1pct",
        *folders,
        "config.OPTIMIZER.num_epochs=10",
        "config.DATA.TRAIN.DATA_SOURCES=[disk_folder]",
        "config.DATA.TRAIN.LABEL_SOURCES=[disk_folder]",
    )
    assert short.startswith("config.OPTIMIZER.param_schedulers.lr=")
    assert "num_epochs=10" in short


@pytest.mark.parametrize(
    ("config", "words", "told"),
    [
        ("imagenet1k_semi_1pct", ["num_epochs=20"], None),
        ("imagenet1k_semi_1pct_released", ["num_epochs=40"], None),
        ("imagenet1k_linear", ["num_epochs=40"], None),
        ("cifar10_linear", ["num_epochs=50"], ".lr.milestones=[30,40]'"),
        (
            "imagenet1k_semi_1pct",
            ["num_epochs=40"],
            "rate falls at the milestones of 20 epochs; set, in proportion, "
            "'config.OPTIMIZER.param_schedulers.lr.milestones=[24,32]' "
            "'config.OPTIMIZER.param_schedulers.lr_head.milestones=[24,32]'",
        ),
        (
            "imagenet1k_semi_1pct",
            ["num_epochs=40", "param_schedulers.lr.milestones=[24,32]"],
            "set, in proportion, 'config.OPTIMIZER.param_schedulers.lr_head.milestones=[24,32]'",
        ),
        ("imagenet1k_semi_1pct", ["num_epochs=2"], "set config.OPTIMIZER.num_epochs=3 or more"),
    ],
)
def test_milestones_of_other_epochs_than_are_typed(config, words, told):
    """Each config with so many epochs trains, or is refused with what to type beside them."""
    from vissl_barlow.vissl_plugin.checks.evaluation import check_classifier
    from vissl_barlow.vissl_plugin.settings import complete

    name = f"benchmark/vissl_barlow/{config}"
    overrides = [f"config.OPTIMIZER.{word}" for word in words]
    cfg = compose(name, *overrides)
    cfg.BARLOW.COMMAND = [f"config={name}", *overrides]
    complete(cfg.BARLOW)
    if told is None:
        check_classifier(cfg)
        return
    with pytest.raises(ConfigError) as raised:
        check_classifier(cfg)
    assert str(raised.value).startswith(f"{overrides[0]}: ") and told in str(raised.value)


def test_a_run_that_is_extended_keeps_its_milestones():
    from vissl_barlow.vissl_plugin.checks.evaluation import check_classifier

    name, longer = "benchmark/vissl_barlow/cifar10_linear", "config.OPTIMIZER.num_epochs=400"
    cfg = compose(name, longer)
    cfg.BARLOW.COMMAND = [f"config={name}", longer]
    cfg.BARLOW.EXTEND = True
    check_classifier(cfg)
