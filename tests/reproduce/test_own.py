"""`python -m vissl_barlow.reproduce own`: what it derives, refuses, leaves out, runs and reports."""

import shlex

import cv2
import numpy as np
import pytest
import torch
from vissl_runs import resolve

from vissl_barlow.checkpoint import save_atomically, to_vissl
from vissl_barlow.datasets.file_lists import load_list
from vissl_barlow.overrides import compose_config
from vissl_barlow.reproduce import commands
from vissl_barlow.reproduce.__main__ import main
from vissl_barlow.reproduce.own_protocol import Protocol, read_pretrained
from vissl_barlow.resnet import build_trunk


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def draw(folder, classes: dict[str, int], shape=(40, 48)) -> None:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            cv2.imwrite(
                str(folder / name / f"{number}.png"), np.full((*shape, 3), number, np.uint8)
            )


@pytest.fixture
def images(tmp_path):
    """Three classes, of which 27, 27 and 36 images are trained on, and 3, 3 and 4 tested."""
    draw(tmp_path / "images", {"a": 30, "b": 30, "c": 40})
    return tmp_path / "images"


def checkpoint(path, views=None, **options):
    """A ResNet-18 an eighth as wide; with `views`, the way this plugin's runs leave theirs."""
    torch.manual_seed(0)
    state = build_trunk(18, width_multiplier=0.125, **options).state_dict()
    if views is not None:
        state = to_vissl(state)
        views = {"name": "BarlowTwoViews", **views}
        state["classy_state_dict"]["experiment"] = {
            f"DATA.TRAIN.TRANSFORMS.0.{key}": value for key, value in views.items()
        }
    save_atomically(state, path)
    return path


def planned(capsys, *arguments) -> dict[str, tuple[str, dict[str, str]]]:
    """Of each command, by folder: the module and the overrides."""
    capsys.readouterr()
    assert main(["own", *map(str, arguments), "--dry-run"]) == 0
    found = {}
    for line in capsys.readouterr().out.splitlines():
        _, _, module, *words = shlex.split(line)
        overrides = dict(word.lstrip("+").removeprefix("config.").split("=", 1) for word in words)
        found[overrides["CHECKPOINT.DIR"].partition("report/own/")[2]] = module, overrides
    return found


def test_everything_follows_from_images_and_checkpoint(capsys, tmp_path, images):
    weights = checkpoint(tmp_path / "trunk.pth", small_stem=True)
    found = planned(capsys, "--checkpoint", weights, "--images", images, "--labels", "10,50")
    names = ("linear", "knn", "semi_10pct", "semi_50pct", "svm")
    assert list(found) == [
        f"{name}/{each}" for name in names for each in ("pretrained", "untrained")
    ]
    assert not (tmp_path / "report").exists()
    for name in names:
        (module, ours), (same_module, untrained) = (
            found[f"{name}/{each}"] for each in ("pretrained", "untrained")
        )
        different = {key for key in ours if ours[key] != untrained[key]}
        assert different == {"MODEL.WEIGHTS_INIT.PARAMS_FILE", "CHECKPOINT.DIR"}
        assert ours["MODEL.WEIGHTS_INIT.PARAMS_FILE"] == str(weights)
        assert untrained["MODEL.WEIGHTS_INIT.PARAMS_FILE"] == "''" and module == same_module
    trunk = {
        "MODEL.TRUNK.RESNETS.DEPTH": "18",
        "MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER": "0.125",
        "MODEL.TRUNK.RESNETS.SMALL_STEM": "True",
        "MACHINE.DEVICE": "cpu",
        "DISTRIBUTED.BACKEND": "gloo",
    }
    crops = {
        "DATA.TRAIN.TRANSFORMS.0.size": "40",
        "DATA.TEST.TRANSFORMS.0.size": "40",
        "DATA.TEST.TRANSFORMS.1.size": "40",
    }
    classifier = {
        **trunk,
        **crops,
        "MODEL.HEAD.PARAMS.0.1.in_dim": "64",
        "MODEL.HEAD.PARAMS.0.1.num_classes": "3",
        "METERS.accuracy_list_meter.topk_values": "[1]",
    }
    lists = f"{tmp_path}/report/own/lists"
    linear = {
        **classifier,
        "config": "benchmark/vissl_barlow/own_linear",
        "DATA.TRAIN.DATA_PATHS": f"[{lists}/train_images.npy]",
        "DATA.TEST.LABEL_PATHS": f"[{lists}/test_labels.npy]",
        "DATA.TRAIN.BATCHSIZE_PER_REPLICA": "16",  # 90 images in four steps or more
        "OPTIMIZER.num_epochs": "100",
        "TEST_EVERY_NUM_EPOCH": "100",
    }
    half = {
        **classifier,
        "config": "benchmark/vissl_barlow/own_semi",
        "DATA.TRAIN.DATASET_NAMES": "[own_50pct]",
        "DATA.TRAIN.DATA_PATHS": f"[{lists}/train_50pct_images.npy]",
        "DATA.TRAIN.BATCHSIZE_PER_REPLICA": "8",  # 46 images
        "OPTIMIZER.num_epochs": "34",  # 200 steps
        "OPTIMIZER.param_schedulers.lr.milestones": "[20,27]",
        "OPTIMIZER.param_schedulers.lr_head.milestones": "[20,27]",
    }
    knn = {
        **trunk,
        **crops,
        "config": "benchmark/vissl_barlow/own_knn",
        "NEAREST_NEIGHBOR.TOPK": "5",
        "DATA.TRAIN.TRANSFORMS.1.size": "40",
    }
    svm = {
        **trunk,
        "config": "benchmark/vissl_barlow/own_svm",
        "DATA.TRAIN.LABEL_PATHS": f"[{lists}/train_classes.npy]",
        "DATA.TRAIN.TRANSFORMS.1.size": "[40,40]",
        "SVM.cross_val_folds": "3",
    }
    for name, expected in (("linear", linear), ("semi_50pct", half), ("knn", knn), ("svm", svm)):
        _, overrides = found[f"{name}/pretrained"]
        assert {key: overrides.get(key) for key in expected} == expected, name
    modules = ["tools.run_distributed_engines", "tools.nearest_neighbor_test", "tools.train_svm"]
    assert [found[f"{n}/untrained"][0] for n in ("semi_10pct", "knn", "svm")] == modules


def test_crops_are_the_pretrainings(capsys, tmp_path, images):
    views = {"size": 32, "crop_scale.0": 0.3, "crop_scale.1": 1.0, "flip_p": 0.0}
    arguments = ("--images", images, "--only", "linear", "--checkpoint")
    found = planned(capsys, *arguments, checkpoint(tmp_path / "c.torch", views))
    _, overrides = found["linear/pretrained"]
    train = "DATA.TRAIN.TRANSFORMS"
    assert overrides[f"{train}.0.size"] == "32"
    assert overrides[f"{train}.0.scale"] == "[0.3,1.0]" and overrides[f"{train}.1.p"] == "0.0"
    # The images have 40 pixels: 37 leave the margin that 256 leave around 224.
    assert overrides["DATA.TEST.TRANSFORMS.0.size"] == "37"
    # Whatever else a file says of its views is not believed.
    odd = {"size": "rm", "crop_scale.0": None, "flip_p": 7.0}
    found = planned(capsys, *arguments, checkpoint(tmp_path / "odd.torch", odd))
    _, overrides = found["linear/pretrained"]
    assert overrides[f"{train}.0.size"] == "40"
    assert f"{train}.0.scale" not in overrides and f"{train}.1.p" not in overrides


@pytest.mark.parametrize(
    ("side", "stem", "size", "resized"),
    [(500, False, 224, 256), (230, False, 224, 230), (150, False, 128, 146), (20, True, 32, 32)],
)
def test_sizes_of_weights_from_elsewhere(capsys, tmp_path, side, stem, size, resized):
    draw(tmp_path / "images", {"a": 2, "b": 2}, (side, side + 9))
    weights = checkpoint(tmp_path / "trunk.pth", small_stem=stem)
    found = planned(capsys, "--checkpoint", weights, "--images", "images", "--only", "linear")
    _, overrides = found["linear/pretrained"]
    assert overrides["DATA.TRAIN.TRANSFORMS.0.size"] == str(size)
    assert overrides["DATA.TEST.TRANSFORMS.0.size"] == str(resized)


def test_the_users_overrides_have_the_last_word(capsys, tmp_path, images):
    weights = checkpoint(tmp_path / "trunk.pth")
    more = (
        *("config.OPTIMIZER.num_epochs=5", "config.DISTRIBUTED.NUM_PROC_PER_NODE=2"),
        "config.SEED_VALUE=3",
    )
    found = planned(capsys, "--checkpoint", weights, "--images", images, "--labels", "10", *more)
    folders = {name.partition("-")[0] for name in found}
    assert "semi_10pct" in folders  # runs with other settings have folders of their own
    for name, (_, overrides) in found.items():
        assert "num_epochs-5" in name and "SEED_VALUE-3" in name
        if name.startswith(("linear", "semi")):
            assert overrides["OPTIMIZER.num_epochs"] == "5"
            assert overrides["TEST_EVERY_NUM_EPOCH"] == "5"
        if name.startswith("semi"):  # each process has its share of 9 images, 8 in all
            assert overrides["OPTIMIZER.param_schedulers.lr.milestones"] == "[3,4]"
            assert overrides["DATA.TRAIN.BATCHSIZE_PER_REPLICA"] == "4"


def test_the_images_are_normalised_as_in_pretraining(capsys, tmp_path, images):
    """By config/pretrain/vissl_barlow/cifar10.yaml's numbers, say, in every evaluation."""
    mean, std = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]
    views = {
        f"{name}.{i}": v
        for name, each in (("mean", mean), ("std", std))
        for i, v in enumerate(each)
    }
    weights = checkpoint(tmp_path / "c.torch", {"size": 32, **views})
    found = planned(capsys, "--checkpoint", weights, "--images", images, "--labels", "10")
    assert len(found) == 8
    for _, overrides in found.values():
        for split in ("TRAIN", "TEST"):
            key = f"DATA.{split}.TRANSFORMS.3"
            assert overrides[f"{key}.mean"] == "[0.4914,0.4822,0.4465]"
            assert overrides[f"{key}.std"] == "[0.247,0.2435,0.2616]"
    # The transform that has them, in each config.
    for name in ("linear", "knn", "semi", "svm"):
        data = compose_config(f"benchmark/vissl_barlow/own_{name}").DATA
        assert data.TRAIN.TRANSFORMS[3].name == data.TEST.TRANSFORMS[3].name == "Normalize"


def test_a_share_of_the_labels_has_every_class_and_the_smaller_ones(tmp_path):
    from vissl_barlow.own_images import read_folder

    draw(tmp_path / "images", {"few": 2, "many": 60, "some": 20})
    weights = read_pretrained(str(checkpoint(tmp_path / "c.pth")))
    protocol = Protocol(read_folder("images"), weights, 0, 1, (5, 10, 50))
    shares = protocol.lists()
    assert list(shares) == ["train", "train_5pct", "train_10pct", "train_50pct"]
    labels = protocol.folder.train_labels
    counts = {name: np.bincount(labels[places]).tolist() for name, places in shares.items()}
    assert counts == {
        "train": [1, 54, 18],
        "train_5pct": [1, 3, 1],
        "train_10pct": [1, 5, 2],
        "train_50pct": [1, 27, 9],
    }
    assert set(shares["train_5pct"]) < set(shares["train_10pct"]) < set(shares["train_50pct"])


@pytest.mark.parametrize("images", [2, 5, 9, 17, 33, 65, 1025])
def test_no_batch_is_of_one_image(images):
    batch = Protocol._batch(images)
    assert 2 <= batch <= 256 and images % batch != 1


def test_what_cannot_be_had_is_left_out_and_said(capsys, tmp_path):
    draw(tmp_path / "images", {"lone": 1, "pair": 2, "many": 40})
    arguments = ["--checkpoint", checkpoint(tmp_path / "c.pth"), "--images", "images"]
    found = planned(capsys, *arguments)
    assert {name.partition("/")[0] for name in found} == {"linear", "knn", "semi_10pct"}
    assert main(["own", *map(str, arguments), "--dry-run"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "left out: semi_1pct: 1% of 38 training images are 0, fewer than the 3 classes; --labels 8 has "
        "an image of each",
        "left out: svm: fewer than 2 training images of lone, pair and fewer than 1 test images of "
        "lone; add images, or move these classes out of the folder, for another --out",
    ]
    # What was told to be typed does it.
    assert "semi_8pct/pretrained" in planned(capsys, *arguments, "--labels", "8")
    with pytest.raises(SystemExit):
        main(["own", *map(str, arguments), "--dry-run", "--only", "svm"])
    assert "svm: fewer than 2 training images of lone, pair" in capsys.readouterr().err


def test_all_that_is_wrong_is_refused_at_once(capsys, tmp_path):
    draw(tmp_path / "images", {"a": 1})
    (tmp_path / "run").mkdir()
    checkpoint(tmp_path / "run" / "checkpoint.torch")
    for arguments, messages in (
        ((), ["give --checkpoint FILE", "give --images FOLDER"]),
        (
            ("--checkpoint", "run", "--images", "image", "--labels", "ten"),
            [
                "--checkpoint run: not a regular file; --checkpoint run/checkpoint.torch is one",
                f"--images image: there is no such folder; try --images {tmp_path}/images",
                "--labels ten: give percentages above 0, such as --labels 1,10",
            ],
        ),
        (
            ("--checkpoint", "images/a/0.png", "--images", "images"),
            [
                "--checkpoint images/a/0.png: ",
                "--images images: 1 images without labels; an evaluation needs labels: sort the images "
                "into images/CLASS/, two classes or more",
            ],
        ),
        (
            ("--images", "images", "--out", "images/report"),
            [f"and its picture would be one of the images; give {tmp_path}/report"],
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["own", *arguments])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert [message for message in messages if message not in error] == []
        assert not (tmp_path / "report").exists()


def test_vissl_takes_every_command(capsys, tmp_path, images, monkeypatch):
    """Its resolved config passes the checks of the runner, and the lists are what they are called."""
    ran = []

    def execute(title, command, log):
        ran.append(command)
        return True

    monkeypatch.setattr(commands, "execute", execute)
    views = {"size": 32, "crop_scale.0": 0.3, "flip_p": 0.0}
    weights = checkpoint(tmp_path / "c.torch", views, small_stem=True)
    arguments = ["own", "--checkpoint", str(weights), "--images", str(images), "--labels", "10"]
    # Nothing was evaluated, and nothing failed: that is no success.
    assert main(arguments) == 1 and len(ran) == 8
    assert capsys.readouterr().err.count("and without a result in ") == 8
    for command in ran[1::2]:  # those of the untrained trunk; the others differ in one path
        config, *overrides = command[3:]
        resolve(tmp_path / "elsewhere", config.removeprefix("config="), *overrides)
    lists = tmp_path / "report" / "own" / "lists"
    assert load_list(lists / "train_classes.npy").sum(axis=0).tolist() == [27, 27, 36]
    tenth = load_list(lists / "train_10pct_images.npy").tolist()
    labels = load_list(lists / "train_10pct_labels.npy").tolist()
    assert [path.split("/")[-2] for path in tenth] == ["abc"[label] for label in labels]
    assert set(tenth).isdisjoint(load_list(lists / "test_images.npy").tolist())
    # The results of other images, or of another checkpoint, must not pass for those of these.
    (images / "a" / "0.png").unlink()
    with pytest.raises(SystemExit):
        main(arguments)
    assert "holds the results of other images than are in" in capsys.readouterr().err
