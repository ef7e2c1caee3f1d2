"""The trunk in every supported file, and what is said of a file without one."""

import pytest
import torch
from trunks import (
    LAYOUTS,
    assert_same,
    convert,
    features,
    prefixed,
    vissl_model_config,
    vissl_training_checkpoint,
)

from vissl_barlow import checkpoint as ck

# The same float32 convolutions on the same machine; room for another algorithm's choice of order.
SAME_OUTPUT = 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_reads_every_layout(tmp_path, resnet18, layout, zipped):
    trunk = dict(resnet18.state_dict())
    path = tmp_path / "in.pth"
    torch.save(LAYOUTS[layout](trunk), path, _use_new_zipfile_serialization=zipped)
    assert_same(ck.load_trunk(path), trunk)


def test_vissls_own_trunk_loads_the_file_and_agrees(tmp_path, resnet50):
    from vissl.models.trunks.resnext import ResNeXt

    torch.save(resnet50.state_dict(), tmp_path / "resnet50.pth")
    assert convert(tmp_path / "resnet50.pth", tmp_path / "vissl.torch", "vissl") == 0
    written = torch.load(tmp_path / "vissl.torch", weights_only=True)
    trunk = ResNeXt(vissl_model_config(), "resnet").eval()
    trunk.load_state_dict(written["classy_state_dict"]["base_model"]["model"]["trunk"], strict=True)
    (output,) = features(trunk, ["res5avg"])
    torch.testing.assert_close(output.flatten(1), features(resnet50), rtol=0, atol=SAME_OUTPUT)
    torch.save(vissl_training_checkpoint(trunk.state_dict(), prefix=""), tmp_path / "trained.torch")
    assert_same(ck.load_trunk(tmp_path / "trained.torch"), resnet50.state_dict())


@pytest.mark.parametrize("extractor", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_vissl_initialises_its_models_from_every_layout(tmp_path, resnet18, layout, extractor):
    from vissl.config import AttrDict
    from vissl.utils.checkpoint import get_checkpoint_model_state_dict

    torch.save(LAYOUTS[layout](dict(resnet18.state_dict())), tmp_path / "in")
    pooling = [["res5avg", ["Identity", []]]] if extractor else []
    model = vissl_model_config(
        EVAL_MODE_ON=extractor, FREEZE_TRUNK_ONLY=extractor, LINEAR_EVAL_FEAT_POOL_OPS_MAP=pooling
    )
    checkpoint = ck.as_vissl_checkpoint(tmp_path / "in")
    weights = get_checkpoint_model_state_dict(
        AttrDict({"MODEL": model}), checkpoint["classy_state_dict"]
    )
    prefix = "trunk.base_model._feature_blocks." if extractor else "trunk._feature_blocks."
    heads = {name: weights.pop(name) for name in list(weights) if name.startswith("heads.")}
    assert_same(weights, prefixed(prefix, resnet18.state_dict()))
    assert len(heads) == (2 if layout in ("VISSL", "VISSL feature extractor") else 0)


def test_vissl_checkpoints_of_other_architectures_pass_through(tmp_path):
    sharded = {"type": "shard_list", "shards": ["a_shard0.torch"]}
    torch.save(sharded, tmp_path / "sharded")
    assert ck.as_vissl_checkpoint(tmp_path / "sharded") == sharded
    model = {"model": {"trunk": {"pos_embed": torch.ones(2)}, "heads": {}}}
    torch.save({"classy_state_dict": {"base_model": model}}, tmp_path / "vit")
    passed = ck.as_vissl_checkpoint(tmp_path / "vit")["classy_state_dict"]["base_model"]["model"]
    assert_same(passed["trunk"], model["model"]["trunk"])
    with pytest.raises(ck.CheckpointError, match="convert_sharded_checkpoint"):
        ck.load_trunk(tmp_path / "sharded")


def without(state_dict, *names):
    return {name: tensor for name, tensor in state_dict.items() if name not in names}


def test_a_trunk_that_does_not_fit_says_where(tmp_path, resnet18, resnet50):
    # Full shapes over a single stored number: small files.
    trunk = {k: v.new_zeros(()).expand(v.shape) for k, v in resnet50.state_dict().items()}
    wide = trunk | {"layer1.0.conv1.weight": torch.ones(128, 64, 1, 1)}
    unfit = {
        "no conv1": (without(trunk, "conv1.weight"), r"ResNet-50: 1 missing: conv1\.weight$"),
        "several gone": (
            {
                k: v
                for k, v in trunk.items()
                if not k.startswith("layer2.1.conv1") and "4.2.bn2" not in k
            },
            r"ResNet-50: 5 missing: layer2\.1\.conv1\.weight, layer4\.2\.bn2\.weight, "
            r"layer4\.2\.bn2\.bias, layer4\.2\.bn2\.running_mean, \.\.\.$",
        ),
        "extra": (trunk | {"attention.weight": torch.ones(1)}, "1 unexpected: attention.weight"),
        "wide": (
            wide,
            r"another shape: layer1\.0\.conv1\.weight \(128, 64, 1, 1\) instead of \(64",
        ),
        "no trunk": ({"a": torch.ones(1)}, "no ResNet trunk at its top level; names there: a$"),
        "nothing": ({}, "names there: none"),
        "list": ([trunk], "holds a list"),
        "nested": (
            {"classy_state_dict": {"base_model": 3}},
            "no dict at classy_state_dict.base_model",
        ),
        "twins": (
            {"state_dict": prefixed("left.", trunk) | prefixed("right.", trunk)},
            r"2 ResNet trunks under its state_dict, with the prefixes left\., right\.: choose one by "
            r"config\.BARLOW\.WEIGHTS_TRUNK, or by --trunk of python -m vissl_barlow\.checkpoint$",
        ),
    }
    for name, (content, message) in unfit.items():
        path = tmp_path / name
        torch.save(content, path)
        with pytest.raises(ck.CheckpointError, match=message) as refused:
            ck.load_trunk(path)
        assert str(refused.value).startswith(f"{path}: ")
    ck.check_fits(trunk, resnet50)
    with pytest.raises(
        ck.CheckpointError, match=r"does not fit ResNet: .* unexpected: .*layer1\.0\.conv3"
    ):
        ck.check_fits(trunk, resnet18)
