"""Tables 1 to 3's configs: each number of the protocol, and the whole of them run on the digits.

The runs are VISSL's own runner and tools in fresh processes, on digits written to disk as the data
sets are, with the overlay `overlays/digits`. Each result must beat the untrained trunk's by a margin: a
probe that ignored its features, or weights that were never loaded, would not.
"""

import json
import math
import os

import numpy as np
import pytest
import torch
from digits_on_disk import ATTRIBUTES, OVERLAY
from PIL import Image
from vissl_runs import resolve, run_engines, run_module, succeeded

from vissl_barlow.checkpoint import load_trunk, read_checkpoint, save_atomically

LINEAR = "benchmark/vissl_barlow/imagenet1k_linear"
SEMI = "benchmark/vissl_barlow/imagenet1k_semi_1pct"
# Measured: 10 to 15% without, 79 to 84% with 5 epochs of pretraining; mAP 50% and 96%.
MARGIN = 30.0
# Features of an image in batches of other sizes, for which other kernels are used.
BATCHING = 1e-5
WEIGHTS = "config.MODEL.WEIGHTS_INIT.PARAMS_FILE"


def composed(name: str, *overrides: str):
    """The config as it reaches training, but for the checks of this machine and its data."""
    from omegaconf import OmegaConf
    from vissl.config import AttrDict
    from vissl.utils.hydra_config import compose_hydra_configuration, infer_learning_rate

    config = compose_hydra_configuration([f"config=benchmark/vissl_barlow/{name}", *overrides])
    return infer_learning_rate(AttrDict(OmegaConf.to_container(config)).config)


def learning_rates(config, name: str = "lr") -> list[float]:
    """The rate at each epoch's start, from VISSL's own scheduler."""
    from classy_vision.optim import build_optimizer_schedulers

    epochs = config.OPTIMIZER.num_epochs
    scheduler = build_optimizer_schedulers(config.OPTIMIZER)[name]
    return [scheduler(epoch / epochs) for epoch in range(epochs)]


def batch_size(config) -> int:
    distributed = config.DISTRIBUTED
    processes = distributed.NUM_NODES * distributed.NUM_PROC_PER_NODE
    return config.DATA.TRAIN.BATCHSIZE_PER_REPLICA * processes


def transforms(config, split: str) -> list[tuple]:
    return [(t["name"], t.get("size")) for t in config.DATA[split].TRANSFORMS[:2]]


TRAIN_VIEWS = [("RandomResizedCrop", 224), ("RandomHorizontalFlip", None)]
TEST_VIEW = [("Resize", 256), ("CenterCrop", 224)]


@pytest.mark.parametrize(
    ("name", "weight_decay", "head"),
    [
        ("imagenet1k_linear", 1e-6, ["barlow_linear", {"in_dim": 2048, "num_classes": 1000}]),
        ("imagenet1k_semi_1pct", 0.0, ["barlow_linear", {"in_dim": 2048, "num_classes": 1000}]),
        ("imagenet1k_semi_10pct", 0.0, ["barlow_linear", {"in_dim": 2048, "num_classes": 1000}]),
        ("places205_linear", 5e-4, ["eval_mlp", {"in_channels": 2048, "dims": [2048, 205]}]),
        ("inat18_linear", 5e-4, ["eval_mlp", {"in_channels": 2048, "dims": [2048, 8142]}]),
    ],
)
def test_every_classifier_trains_as_the_paper_says(name, weight_decay, head):
    config = composed(name)
    optimizer = config.OPTIMIZER
    assert (optimizer.name, optimizer.momentum, optimizer.nesterov) == ("sgd", 0.9, False)
    assert optimizer.weight_decay == weight_decay
    assert optimizer.head_optimizer_params.weight_decay == weight_decay
    assert batch_size(config) == 256
    assert config.MODEL.HEAD.PARAMS == [head]
    assert config.MODEL.TRUNK.NAME == "barlow_resnet"
    assert config.MODEL.TRUNK.RESNETS.DEPTH == 50
    assert transforms(config, "TRAIN") == TRAIN_VIEWS
    assert transforms(config, "TEST") == TEST_VIEW
    assert config.METERS.accuracy_list_meter.topk_values == [1, 5]


def test_linear_rate_is_the_cosine_of_100_epochs():
    expected = [0.15 * (1 + math.cos(math.pi * epoch / 100)) for epoch in range(100)]
    assert learning_rates(composed("imagenet1k_linear")) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["imagenet1k_semi_1pct", "imagenet1k_semi_10pct"])
def test_fine_tuning_has_two_rates_and_steps_after_epochs_12_and_16(name):
    config = composed(name)
    steps = [1.0] * 12 + [0.2] * 4 + [0.04] * 4
    assert learning_rates(config) == pytest.approx([0.002 * step for step in steps], rel=1e-6)
    assert learning_rates(config, "lr_head") == pytest.approx([0.5 * s for s in steps], rel=1e-6)
    assert not config.MODEL.FEATURE_EVAL_SETTINGS.EVAL_MODE_ON  # everything is trained
    lists = {"1pct": "google-imagenet1k-per01", "10pct": "google-imagenet1k-per10"}
    assert config.DATA.TRAIN.DATASET_NAMES == [lists[name.rpartition("_")[2]]]
    assert config.DATA.TEST.DATASET_NAMES == ["imagenet1k_folder"]


@pytest.mark.parametrize(("name", "epochs"), [("places205_linear", 14), ("inat18_linear", 84)])
def test_pirls_rate_falls_at_two_equally_spaced_points(name, epochs):
    from classy_vision.optim import build_optimizer_schedulers

    config = composed(name)
    scheduler = build_optimizer_schedulers(config.OPTIMIZER)["lr"]
    assert config.OPTIMIZER.num_epochs == epochs
    assert scheduler.update_interval.value == "step"
    rates = [scheduler(where) for where in (0, 0.333, 0.334, 0.666, 0.667, 0.999)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001], rel=1e-6)


def test_the_rates_follow_the_batch():
    half = composed("imagenet1k_semi_1pct", "config.DISTRIBUTED.NUM_PROC_PER_NODE=4")
    assert learning_rates(half)[0] == pytest.approx(0.001)
    assert learning_rates(half, "lr_head")[0] == pytest.approx(0.25)


def test_voc07_svms():
    config = composed("voc07_svm")
    assert config.SVM.costs.costs_list == [0.01, 0.1, 1.0, 2, 5, 10, 15, 20, 50, 100, 1000]
    assert (config.SVM.cross_val_folds, config.SVM.normalize) == (3, True)
    assert (config.SVM.loss, config.SVM.penalty, config.SVM.dual) == ("squared_hinge", "l2", True)
    assert len(config.SVM.class_names) == 20
    assert config.SVM.class_names == sorted(config.SVM.class_names)
    assert transforms(config, "TEST") == [("Resize", 256), ("Resize", [224, 224])]


def test_frozen_trunk_and_two_rates_reach_the_optimizer(tmp_path, digits_on_disk):
    from classy_vision.optim import build_optimizer_schedulers
    from vissl.models import build_model
    from vissl.optimizers import get_optimizer_param_groups

    config = composed("imagenet1k_semi_1pct", OVERLAY)
    config.MODEL["_MODEL_INIT_SEED"] = 0
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("RANK", "0")
    model = build_model(config.MODEL, config.OPTIMIZER)
    groups = get_optimizer_param_groups(
        model, config.MODEL, config.OPTIMIZER, build_optimizer_schedulers(config.OPTIMIZER)
    )
    rates = {id(p): group["lr"](0) for group in groups for p in group["params"]}
    # Batch 64: a quarter of the paper's.
    for name, parameter in model.named_parameters():
        expected = 0.5 / 4 if name.startswith("heads") else 0.002 / 4
        assert rates[id(parameter)] == pytest.approx(expected), name
    head = model.heads[0].linear
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.1)  # 2560 draws: 1.4% at 1 sigma
    assert not head.bias.any()


def last_accuracy(folder) -> dict[str, float]:
    entries = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    tests = [e["test_accuracy_list_meter"] for e in entries if "test_accuracy_list_meter" in e]
    return {name: next(iter(meter.values())) for name, meter in tests[-1].items()}


@pytest.fixture(scope="module")
def checkpoints(digits_checkpoint, tmp_path_factory):
    """The pretrained trunk in each format, and none."""
    folder = tmp_path_factory.mktemp("formats")
    # As the authors publish theirs: torchvision's names, bare.
    save_atomically(load_trunk(digits_checkpoint), folder / "resnet50.pth")
    return {
        "pretrained": digits_checkpoint,
        "torchvision": folder / "resnet50.pth",
        "untrained": "",
    }


def test_linear_classification(checkpoints, digits_on_disk, tmp_path):
    accuracy = {}
    for name in ("pretrained", "untrained"):
        folder = tmp_path / name
        folder.mkdir()
        succeeded(
            run_engines(
                folder,
                f"config={LINEAR}",
                OVERLAY,
                f"{WEIGHTS}={checkpoints[name]}",
                *digits_on_disk.folders(),
                "config.OPTIMIZER.num_epochs=2",
                f"config.CHECKPOINT.DIR={folder}",
            )
        )
        accuracy[name] = last_accuracy(folder)
    assert accuracy["pretrained"]["top_1"] > accuracy["untrained"]["top_1"] + MARGIN
    assert accuracy["pretrained"]["top_5"] > accuracy["pretrained"]["top_1"]
    # Frozen, and its running statistics too: bit for bit what it was before two epochs.
    before = load_trunk(checkpoints["pretrained"])
    after = load_trunk(tmp_path / "pretrained" / "checkpoint.torch")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_fine_tuning_on_a_tenth_of_the_labels(checkpoints, digits_on_disk, tmp_path):
    lists = tmp_path / "lists"
    succeeded(
        run_module(
            tmp_path,
            "vissl_barlow.datasets.imagenet_subsets",
            *("--names", str(digits_on_disk.tenth), "--imagenet", str(digits_on_disk.imagenet)),
            *("--out", str(lists), "--allow-any-count"),
        )
    )
    accuracy = {}
    for name in ("torchvision", "untrained"):
        folder = tmp_path / name
        folder.mkdir()
        succeeded(
            run_engines(
                folder,
                f"config={SEMI}",
                OVERLAY,
                f"{WEIGHTS}={checkpoints[name]}",
                f"config.DATA.TRAIN.DATA_PATHS=[{lists}/train_images.npy]",
                f"config.DATA.TRAIN.LABEL_PATHS=[{lists}/train_labels.npy]",
                f"config.DATA.TEST.DATA_PATHS=[{digits_on_disk.imagenet}/val]",
                "config.TEST_EVERY_NUM_EPOCH=20",
                f"config.CHECKPOINT.DIR={folder}",
                "config.CHECKPOINT.CHECKPOINT_FREQUENCY=20",
            )
        )
        accuracy[name] = last_accuracy(folder)
    assert accuracy["torchvision"]["top_1"] > accuracy["untrained"]["top_1"] + MARGIN
    before = load_trunk(checkpoints["pretrained"])
    after = load_trunk(tmp_path / "torchvision" / "checkpoint.torch")
    # All of it is trained, in train mode.
    for name in ("conv1.weight", "layer4.1.bn2.weight", "bn1.running_mean"):
        assert not torch.equal(before[name], after[name]), name


def test_voc07_svms_on_attributes(checkpoints, digits_on_disk, tmp_path):
    mean_ap = {}
    for name in ("pretrained", "untrained"):
        folder = tmp_path / name
        folder.mkdir()
        done = succeeded(
            run_module(
                folder,
                "tools.train_svm",
                "config=benchmark/vissl_barlow/voc07_svm",
                OVERLAY,
                f"{WEIGHTS}={checkpoints[name]}",
                *digits_on_disk.attribute_lists(),
                "config.SVM.costs.costs_list=[0.1,1.0]",
                f"config.CHECKPOINT.DIR={folder}",
            )
        )
        result = json.loads((folder / "res5avg" / "test_ap.json").read_text())
        assert result["AP"].keys() == ATTRIBUTES.keys()
        assert result["mAP"] == pytest.approx(np.mean(list(result["AP"].values())))
        assert f"res5avg mAP: {100 * result['mAP']:.2f}" in done.stdout
        mean_ap[name] = 100 * result["mAP"]
    assert mean_ap["pretrained"] > mean_ap["untrained"] + MARGIN


def test_nearest_neighbours(checkpoints, digits_on_disk, tmp_path):
    top_1 = {}
    for name in ("torchvision", "untrained"):
        folder = tmp_path / name
        folder.mkdir()
        done = succeeded(
            run_module(
                folder,
                "tools.nearest_neighbor_test",
                "config=benchmark/vissl_barlow/imagenet1k_knn",
                OVERLAY,
                f"{WEIGHTS}={checkpoints[name]}",
                *digits_on_disk.folders(),
                f"config.CHECKPOINT.DIR={folder}",
            )
        )
        result = json.loads((folder / "knn_res5avg.json").read_text())
        assert result["images"] == 360
        assert f"top-1: {result['top_1']:.2f}" in done.stdout
        top_1[name] = result["top_1"]
    assert top_1["torchvision"] > top_1["untrained"] + MARGIN

    # The same features from VISSL's engine alone, on two processes and in files of 50.
    folder = tmp_path / "engine"
    folder.mkdir()
    succeeded(
        run_engines(
            folder,
            "engine_name=extract_features",
            "config=benchmark/vissl_barlow/imagenet1k_knn",
            OVERLAY,
            f"{WEIGHTS}={checkpoints['pretrained']}",
            *digits_on_disk.folders(),
            "config.TEST_ONLY=true",
            "config.EXTRACT_FEATURES.CHUNK_THRESHOLD=50",
            "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
            f"config.CHECKPOINT.DIR={folder}",
        )
    )
    # 180 images of each process in batches of 64: a file after each of two, and one of the rest.
    assert len(list(folder.glob("rank?_chunk?_test_res5avg_features.npy"))) == 6
    extracted, expected = merged(folder), merged(tmp_path / "torchvision")
    assert extracted.keys() == expected.keys() == set(range(360))
    for index, (feature, label) in extracted.items():
        np.testing.assert_allclose(feature, expected[index][0], atol=BATCHING)
        assert label == expected[index][1]


def merged(folder) -> dict[int, tuple[np.ndarray, int]]:
    """Feature and label of each image, from all files of the test images."""
    images = {}
    for path in folder.glob("*_test_res5avg_inds.npy"):
        stem = path.name.removesuffix("inds.npy")
        features, targets = (
            np.load(folder / f"{stem}{kind}.npy") for kind in ("features", "targets")
        )
        images |= {i: (f, t.item()) for i, f, t in zip(np.load(path).tolist(), features, targets)}
    return images


def refusal(tmp_path, name, *overrides) -> str:
    from vissl_barlow.vissl_plugin.errors import ConfigError

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
    assert "does not fit BarlowResNet: 80 missing: _feature_blocks.layer1.2.conv1.weight" in deeper


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


def test_heads_are_loaded_where_they_fit_and_left_alone_where_not(checkpoints, tmp_path):
    from vissl.models import build_model

    from vissl_barlow.vissl_plugin.components.weights import model_weights

    config = composed("imagenet1k_semi_1pct", OVERLAY)
    config.MODEL["_MODEL_INIT_SEED"] = 0
    model = build_model(config.MODEL, config.OPTIMIZER)
    # The pretraining's projector is no classifier.
    trunk, heads = model_weights(model, str(checkpoints["pretrained"]))
    assert heads == {}
    saved = read_checkpoint(checkpoints["pretrained"])["classy_state_dict"]["base_model"]["model"]
    assert trunk.keys() == saved["trunk"].keys()
    fine_tuned = {"classy_state_dict": {"base_model": {"model": model.get_classy_state()["model"]}}}
    save_atomically(fine_tuned, tmp_path / "fine_tuned.torch")
    _, heads = model_weights(model, str(tmp_path / "fine_tuned.torch"))
    assert torch.equal(heads["0.linear.weight"], model.heads[0].linear.weight)


def test_checkpoints_of_vissls_own_trunk_fit_ours(tmp_path):
    from vissl.models import build_model

    from vissl_barlow.vissl_plugin.components.weights import model_weights

    def built(trunk: str):
        config = composed("imagenet1k_linear", f"config.MODEL.TRUNK.NAME={trunk}")
        config.MODEL["_MODEL_INIT_SEED"] = 0
        return build_model(config.MODEL, config.OPTIMIZER)

    vissls, ours = built("resnet"), built("barlow_resnet")
    # A trunk that was frozen for an evaluation has one more prefix than a pretrained one.
    state = {"classy_state_dict": {"base_model": vissls.get_classy_state()}}
    save_atomically(state, tmp_path / "vissl.torch")
    trunk, _ = model_weights(ours, str(tmp_path / "vissl.torch"))
    ours.trunk.base_model.load_state_dict(trunk)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        outputs = [model.eval().trunk(images, ["res5avg"])[0] for model in (vissls, ours)]
    assert torch.equal(*outputs)
