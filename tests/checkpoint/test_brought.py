"""Checkpoints of other training codes, in the layouts in which these save them."""

import argparse
import collections
import copy

import pytest
import torch
import torchvision
from torch import nn
from trunks import assert_same, prefixed, resnet

from vissl_barlow import checkpoint as ck
from vissl_barlow.checkpoint.__main__ import main


@pytest.fixture(scope="module")
def other18(resnet18):
    """A second trunk, of which no tensor equals the first one's."""
    other = copy.deepcopy(resnet18)
    for tensor in other.state_dict().values():
        tensor.add_(1)
    return other


MLP = {"fc.0.weight": torch.ones(2, 2), "fc.0.bias": torch.ones(2), "fc.2.weight": torch.ones(2, 2)}


def moco(a, b):
    """moco/builder.py and main_moco.py:270; v1's fc is one layer."""
    queue = {"module.queue": torch.ones(2, 8), "module.queue_ptr": torch.zeros(1).long()}
    model = prefixed("module.encoder_q.", a | MLP) | prefixed("module.encoder_k.", b | MLP) | queue
    return {"epoch": 200, "arch": "resnet18", "state_dict": model, "optimizer": {"state": {}}}


def moco_v3(a, b):
    """moco/builder.py and main_moco.py:310."""
    model = prefixed("module.base_encoder.", a | MLP) | prefixed(
        "module.momentum_encoder.", b | MLP
    )
    model["module.predictor.0.weight"] = torch.ones(2, 2)
    return {"epoch": 100, "arch": "resnet18", "state_dict": model, "optimizer": {}, "scaler": {}}


def dino(a, b):
    """main_dino.py:278: ResNets have batch normalisation, so both networks are wrapped."""
    head = {"module.head.last_layer.weight_v": torch.ones(2, 2)}
    return {
        "student": prefixed("module.backbone.", b) | head,
        "teacher": prefixed("module.backbone.", a) | head,
        "optimizer": {"state": {}},
        "epoch": 100,
        "args": argparse.Namespace(arch="resnet18", lr=0.03),
        "dino_loss": {"center": torch.ones(1, 2)},
    }


def dino_unwrapped_teacher(a, b):
    """As `dino`, with a teacher that DistributedDataParallel does not wrap; iBOT's names."""
    head = {"head.last_layer.weight_v": torch.ones(2, 2)}
    saved = dino(a, b) | {"teacher": prefixed("backbone.", a) | head}
    saved["ibot_loss"] = saved.pop("dino_loss")
    return saved


def solo_learn(a, b):
    """solo/methods/base.py, as Lightning saves it."""
    model = prefixed("backbone.", a) | prefixed("momentum_backbone.", b)
    model["classifier.weight"] = model["projector.0.weight"] = torch.ones(2, 2)
    return {"epoch": 1, "state_dict": model, "callbacks": {}, "hparams_name": "cfg"}


def solo_learn_old(a, b):
    return {"state_dict": prefixed("encoder.", a) | prefixed("momentum_encoder.", b)}


def lightly_benchmark(other_name):
    def saved(a, b):
        heads = {"projection_head.layers.0.weight": torch.ones(2, 2)}
        return {"state_dict": prefixed("backbone.", a) | prefixed(other_name, b) | heads}

    return saved


def byol_pytorch(a, b):
    model = prefixed("net.", a) | prefixed("online_encoder.net.", a)
    return model | prefixed("target_encoder.net.", b)


def timm(a, b):
    """timm/utils/checkpoint_saver.py; timm/models/_helpers.py reads the average first."""
    return {
        "epoch": 1,
        "arch": "resnet18",
        "args": argparse.Namespace(model="resnet18"),
        "state_dict": prefixed("module.", b) | {"module.fc.weight": torch.ones(2, 2)},
        "state_dict_ema": a | {"fc.weight": torch.ones(2, 2)},
    }


def weight_averaging(a, b):
    """lightning/pytorch/callbacks/weight_averaging.py, on_save_checkpoint."""
    head = {"head.weight": torch.ones(2, 2)}
    return {
        "epoch": 1,
        "state_dict": prefixed("backbone.", a) | head,
        "current_model_state": prefixed("backbone.", b) | head,
        "averaging_state": {"n_averaged": torch.tensor(3)},
    }


# What the authors evaluate is `a`; words that choose `b`.
PAIRS = {
    "MoCo": (moco, "encoder_k"),
    "MoCo v3": (moco_v3, "module.momentum_encoder."),
    "DINO": (dino, "student"),
    "iBOT, unwrapped": (dino_unwrapped_teacher, "student.module.backbone"),
    "solo-learn": (solo_learn, "momentum_backbone"),
    "solo-learn, old": (solo_learn_old, "momentum_encoder"),
    "lightly's MoCo": (lightly_benchmark("key_backbone."), "key_backbone"),
    "lightly's BYOL": (lightly_benchmark("teacher_backbone."), "teacher_backbone"),
    "lightly's DINO": (lightly_benchmark("student_backbone."), "student_backbone"),
    "lightly's TiCo": (lightly_benchmark("backbone_momentum."), "backbone_momentum"),
    "byol-pytorch": (byol_pytorch, "target_encoder"),
    "timm": (timm, "state_dict"),
    "Lightning": (weight_averaging, "current_model_state"),
}


@pytest.mark.parametrize("code", PAIRS)
def test_the_trunk_its_authors_evaluate_or_the_one_named(tmp_path, resnet18, other18, code, capsys):
    saved, other = PAIRS[code]
    evaluated, second = dict(resnet18.state_dict()), dict(other18.state_dict())
    torch.save(saved(evaluated, second), tmp_path / "in.pth")
    assert_same(ck.load_trunk(tmp_path / "in.pth"), evaluated)
    assert_same(ck.load_trunk(tmp_path / "in.pth", other), second)
    arguments = ["--to", "torchvision", "--trunk", other, str(tmp_path / "in.pth")]
    assert main([*arguments, str(tmp_path / "out.pth")]) == 0
    assert "not the trunk " in capsys.readouterr().out
    assert_same(torch.load(tmp_path / "out.pth", weights_only=True), second)


@pytest.mark.parametrize("model, other", [("model", "ema"), ("online", "target")])
def test_a_second_trunk_under_whatever_key_is_not_passed_over(
    tmp_path, resnet18, other18, model, other
):
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []}
    saved = {model: dict(resnet18.state_dict()), "projector": {"0.weight": torch.ones(2, 2)}}
    path = tmp_path / "in.pth"
    torch.save(saved | {"optimizer": optimizer}, path)
    assert_same(ck.load_trunk(path), resnet18.state_dict())
    average = prefixed("module.", dict(other18.state_dict())) | {"n_averaged": torch.tensor(9)}
    torch.save(saved | {"optimizer": optimizer, other: average}, path)
    with pytest.raises(ck.CheckpointError, match=f"2 ResNet trunks under its {model}, {other}"):
        ck.load_trunk(path)
    assert_same(ck.load_trunk(path, model), resnet18.state_dict())
    assert_same(ck.load_trunk(path, other), other18.state_dict())


def test_a_prefix_that_no_trunk_or_more_than_one_has_is_refused(tmp_path, resnet18, other18):
    torch.save(dino(resnet18.state_dict(), other18.state_dict()), tmp_path / "in.pth")
    for prefix, fault in (("encoder_q", "no trunk has"), ("backbone", "several trunks have")):
        with pytest.raises(ck.CheckpointError) as refused:
            ck.load_trunk(tmp_path / "in.pth", prefix)
        assert f"in.pth: {fault} '{prefix}'; it holds 2 ResNet trunks under its" in str(
            refused.value
        )
        assert "student.module.backbone., teacher.module.backbone.: choose" in str(refused.value)
    torch.save(resnet18.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(
        ck.CheckpointError, match=r"no trunk has 'student'; it holds 1 ResNet trunk at"
    ):
        ck.load_trunk(tmp_path / "bare.pth", "student")


def test_swav_with_its_heads_behind_the_trunks_prefix(tmp_path, resnet18):
    """src/resnet50.py and main_swav.py:239; the published files are the bare state dict."""
    heads = {
        "projection_head.0.weight": torch.ones(2, 2),
        "projection_head.1.num_batches_tracked": torch.tensor(1),
        "prototypes.prototypes0.weight": torch.ones(3, 2),
    }
    model = collections.OrderedDict(prefixed("module.", dict(resnet18.state_dict()) | heads))
    for content in (model, {"epoch": 800, "state_dict": model, "optimizer": {}, "amp": {}}):
        torch.save(content, tmp_path / "in.pth.tar")
        trunk = ck.read_trunk(tmp_path / "in.pth.tar")
        assert_same(trunk.state_dict, resnet18.state_dict())
        assert trunk.left_out == 3


@pytest.mark.parametrize("depth", [18, 50])
def test_lightlys_sequences_of_a_torchvision_resnet(tmp_path, depth, request):
    model = request.getfixturevalue(f"resnet{depth}")
    backbone = nn.Sequential(*list(model.children())[:-1])  # as its examples do
    heads = {"projection_head.layers.0.weight": torch.ones(2, 2)}
    content = {"state_dict": prefixed("backbone.", backbone.state_dict()) | heads}
    assert "backbone.4.0.conv1.weight" in content["state_dict"]
    torch.save(content, tmp_path / "in.ckpt")
    assert_same(ck.load_trunk(tmp_path / "in.ckpt"), model.state_dict())


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("numbered", [False, True])
def test_lightlys_own_resnet(tmp_path, numbered, depth):
    """lightly/models/resnet.py: a small stem, `shortcut` for `downsample`; neither ReLU nor pooling."""
    trunk = dict(resnet(depth, small_stem=True).state_dict())
    order = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    lightlys = {}
    for name, tensor in trunk.items():
        part, _, rest = name.partition(".")
        part = str(order.index(part)) if numbered else part
        lightlys[f"backbone.{part}.{rest.replace('downsample', 'shortcut')}"] = tensor
    if not numbered:
        lightlys["backbone.linear.weight"] = torch.ones(2, 2)
    torch.save({"state_dict": lightlys}, tmp_path / "in.ckpt")
    assert_same(ck.load_trunk(tmp_path / "in.ckpt"), trunk)


def test_timms_resnet_with_a_deep_stem_is_told_from_torchvisions(tmp_path, resnet50):
    deep = {
        name: tensor for name, tensor in resnet50.state_dict().items() if name != "conv1.weight"
    }
    for index, shape in ((0, (32, 3, 3, 3)), (3, (32, 32, 3, 3)), (6, (64, 32, 3, 3))):
        deep[f"conv1.{index}.weight"] = torch.ones(shape)
    torch.save(deep, tmp_path / "resnet50c.pth")
    with pytest.raises(
        ck.CheckpointError, match=r"1 missing: conv1\.weight; 3 unexpected: conv1\.0"
    ):
        ck.load_trunk(tmp_path / "resnet50c.pth")


def test_arguments_and_scalars_beside_the_weights_are_not_rebuilt(tmp_path, resnet18):
    """timm's `metric` may be numpy's; nothing of either class is imported or called."""
    import numpy as np

    saved = {"model": dict(resnet18.state_dict()), "metric": np.float64(0.5)}
    saved["args"] = argparse.Namespace(lr=0.1)
    before = set(torch.serialization.get_safe_globals())
    for zipped in (True, False):
        torch.save(saved, tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
        read = ck.read_checkpoint(tmp_path / "in.pth")
        assert_same(read["model"], resnet18.state_dict())
        assert not isinstance(read["args"], argparse.Namespace) and not vars(read["args"])
    assert set(torch.serialization.get_safe_globals()) == before


def test_width_and_stem_are_said(tmp_path):
    assert str(ck.TrunkDepth(50, False, 2)) == "ResNet-50 x2"
    assert str(ck.TrunkDepth(18, True)) == "ResNet-18 with small stem"
    wide = torchvision.models.resnet18().state_dict()
    assert ck.trunk_depth({k: v for k, v in wide.items() if not k.startswith("fc.")}) == (
        18,
        False,
        1,
    )
