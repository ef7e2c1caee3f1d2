"""Models that cannot be built, images that do not pass, batches of one image: said before the start."""

import copy
import re

import pytest
import torch
from vissl_runs import compose

import vissl_barlow

vissl_barlow.register()

from vissl.models.trunks import MODEL_TRUNKS_REGISTRY  # noqa: E402

from vissl_barlow.vissl_plugin.checks.dry_run import (  # noqa: E402
    check_batch_norm,
    check_last_batch,
    check_passes,
)
from vissl_barlow.vissl_plugin.errors import ConfigError  # noqa: E402

VIT = {"IMAGE_SIZE": 32, "PATCH_SIZE": 16, "NUM_LAYERS": 2, "NUM_HEADS": 4, "HIDDEN_DIM": 32}
REGNET = {"depth": 4, "w_0": 8, "w_a": 8.0, "w_m": 2.0, "group_width": 8}
EFFICIENT_NET = {"model_version": "B0", "bn_momentum": 0.01, "bn_epsilon": 0.001}
EFFICIENT_NET |= {"width_divisor": 8, "min_width": None, "drop_connect_rate": 0.2, "use_se": True}
# Of each trunk: its section, the size of the images, its dimensions, and what is said if it is refused.
TRUNKS = {
    "barlow_resnet": ({"RESNETS": {"DEPTH": 18, "WIDTH_MULTIPLIER": 0.5}}, 32, 256, None),
    "resnet": ({"RESNETS": {"DEPTH": 50, "WIDTH_MULTIPLIER": 1}}, 32, 2048, None),
    "vision_transformer": ({"VISION_TRANSFORMERS": VIT}, 32, 32, None),
    "convit": ({"VISION_TRANSFORMERS": VIT, "CONVIT": {"N_GPSA_LAYERS": 1}}, 32, 32, None),
    "xcit": ({"XCIT": VIT}, 32, 32, None),
    "efficientnet": ({"EFFICIENT_NETS": EFFICIENT_NET}, 32, 1280, None),
    "regnet": ({"REGNET": REGNET}, 32, 32, None),
    "regnet_v2": ({"REGNET": REGNET}, 32, 32, "cannot be built here .*(NVIDIA|CUDA)"),
    "regnet_fsdp": ({"REGNET": REGNET}, 32, 32, "cannot be built here .*(distributed|NVIDIA|CUDA)"),
    "alexnet_deepcluster": ({}, 64, 256, None),
    "alexnet_jigsaw": ({}, 64, 256 * 2 * 2, None),
    "alexnet_rotnet": ({}, 64, 256, None),
    "alexnet_bvlc": ({}, 224, 9216, "do not pass it .*use_checkpointing"),
    "alexnet_colorization": ({}, 224, 6400, "cannot be built here .*LAB"),
}
OF_VISSL = {name for name, t in MODEL_TRUNKS_REGISTRY.items() if t.__module__.startswith("vissl.")}


@pytest.fixture(scope="module")
def composed() -> dict:
    linear = "benchmark/vissl_barlow/places205_linear_2048d"
    small = (
        "config.DATA.TRAIN.DATASET_NAMES=[barlow_digits]",
        "config.DATA.TRAIN.DATA_SOURCES=[barlow_digits]",
        "config.DATA.TRAIN.LABEL_SOURCES=[]",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16",
        "config.DISTRIBUTED.NUM_PROC_PER_NODE=1",
        "config.MODEL.SYNC_BN_CONFIG.CONVERT_BN_TO_SYNC_BN=false",
    )
    return {
        "pretraining": compose("pretrain/vissl_barlow/digits_quickstart", *small),
        "linear": compose(linear, *small, "config.DATA.TRAIN.DROP_LAST=false"),
    }


@pytest.fixture
def config(composed):
    return copy.deepcopy(composed["pretraining"])


@pytest.fixture
def linear(composed):
    return copy.deepcopy(composed["linear"])


def choose(config, name: str, size: int | None = None) -> None:
    sections, own_size, dim, _ = TRUNKS[name]
    config.MODEL.TRUNK.NAME = name
    for section, keys in sections.items():
        config.MODEL.TRUNK[section].update(keys)
    config.DATA.TRAIN.TRANSFORMS[0]["size"] = size or own_size
    config.MODEL.HEAD.PARAMS = [["barlow_projector", {"in_dim": dim, "dims": [16, 16]}]]


def refused(check, *arguments) -> str:
    with pytest.raises(ConfigError) as raised:
        check(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_every_trunk_of_vissls_is_here():
    assert OF_VISSL | {"barlow_resnet"} == TRUNKS.keys()


@pytest.mark.parametrize("name", TRUNKS)
def test_each_trunk_passes_or_is_refused_with_the_reason(name, config):
    choose(config, name)
    model, before = copy.deepcopy(config.MODEL), torch.random.get_rng_state()
    why = TRUNKS[name][3]
    if why is None:
        check_passes(config, ["TRAIN"])
    elif not (name.startswith("regnet_") and torch.cuda.is_available()):
        message = refused(check_passes, config, ["TRAIN"])
        assert re.match(f"config.MODEL.TRUNK.NAME={name}: .*{why}", message), message
    assert config.MODEL == model  # VISSL's efficientnet takes out the key it was chosen by
    assert torch.equal(torch.random.get_rng_state(), before)


def test_images_too_small_for_the_trunk(config):
    choose(config, "alexnet_rotnet", size=32)
    message = refused(check_passes, config, ["TRAIN"])
    assert "=alexnet_rotnet: images of 3 x 32 x 32 (config.DATA.TRAIN.TRANSFORMS)" in message


def test_heads_for_another_trunk(config):
    choose(config, "vision_transformer")
    config.MODEL.HEAD.PARAMS[0][1]["in_dim"] = 64
    message = refused(check_passes, config, ["TRAIN"])
    assert message.startswith("config.MODEL.HEAD.PARAMS=") and "features of shape 32 (" in message


def test_heads_that_cannot_be_built(config):
    config.MODEL.HEAD.PARAMS[0][1]["dims"] = ["wide"]
    message = refused(check_passes, config, ["TRAIN"])
    assert message.startswith("config.MODEL.HEAD.PARAMS=") and "cannot be built" in message


def test_a_trunk_that_does_not_exist(config):
    config.MODEL.TRUNK.NAME = "vision_transformers"
    message = refused(check_passes, config, ["TRAIN"])
    assert message.endswith("did you mean vision_transformer?")


def test_features_that_the_trunk_does_not_have(linear):
    linear.MODEL.TRUNK.NAME = "vision_transformer"
    message = refused(check_passes, linear, ["TEST"])
    assert message.startswith("config.MODEL.TRUNK.NAME=vision_transformer: images of 3 x 224 x 224")
    assert "LINEAR_EVAL_FEAT_POOL_OPS_MAP" in message


def test_red_is_not_taken_for_lightness(config):
    choose(config, "alexnet_colorization")
    config.MODEL.INPUT_TYPE = "lab"
    assert refused(check_passes, config, ["TRAIN"]).startswith("config.MODEL.INPUT_TYPE=lab: ")


# Images, processes, a head, and what is said of the last batch of 16 a process.
LAST_BATCHES = [
    (33, 1, "pretraining", "an epoch of 33 images would be one image, .*(heads.0.projector.1)"),
    (34, 1, "pretraining", None),
    (32, 1, "pretraining", None),
    (34, 2, "pretraining", "34 images would be one image on each of 2 processes.*SYNC_BN_CONFIG"),
    (33, 2, "pretraining", "33 images would be one image on each"),  # filled up to 34
    (35, 2, "pretraining", None),
    (33, 1, "linear", "would be one image, .*(heads.0.channel_bn)"),
    (34, 1, "linear", None),
]


@pytest.mark.parametrize(("images", "processes", "kind", "said"), LAST_BATCHES)
def test_a_last_batch_of_one_image(images, processes, kind, said, composed):
    config = copy.deepcopy(composed[kind])
    config.DATA.TRAIN.DATA_LIMIT, config.DATA.TRAIN.DROP_LAST = images, False
    config.DISTRIBUTED.NUM_PROC_PER_NODE = processes
    if kind == "pretraining":
        config.DATA.TRAIN.TRANSFORMS[0]["size"] = 64  # feature maps of more than 1 x 1
    if said is None:
        check_last_batch(config)
        return
    message = refused(check_last_batch, config)
    assert re.match(f"config.DATA.TRAIN.DROP_LAST=False: .*{said}", message), message
    # The remedies it names work.
    if processes > 1:
        config.MODEL.SYNC_BN_CONFIG.update(CONVERT_BN_TO_SYNC_BN=True, GROUP_SIZE=0)
        check_last_batch(config)
        config.MODEL.SYNC_BN_CONFIG.GROUP_SIZE = 1
        assert refused(check_last_batch, config)
    config.DATA.TRAIN.DROP_LAST = True
    check_last_batch(config)


def test_one_image_is_enough_where_no_channel_gets_one_value(config, linear):
    linear.MODEL.HEAD.PARAMS = [["barlow_linear", {"in_dim": 2048, "num_classes": 10}]]
    linear.DATA.TRAIN.update(DATA_LIMIT=33)
    check_last_batch(linear)
    linear.DATA.TRAIN.BATCHSIZE_PER_REPLICA = 1
    check_batch_norm(linear)
    # But a correlation over one image is none, whatever the layers.
    config.MODEL.HEAD.PARAMS[0][1]["use_bn"] = False
    config.DATA.TRAIN.update(DATA_LIMIT=33, DROP_LAST=False)
    config.DATA.TRAIN.TRANSFORMS[0]["size"] = 64
    assert "a correlation over the batch needs two" in refused(check_last_batch, config)
    config.DISTRIBUTED.NUM_PROC_PER_NODE = 2
    config.DATA.TRAIN.DATA_LIMIT = 34
    check_last_batch(config)
    config.DATA.TRAIN.TRANSFORMS[0]["size"] = 32
    assert "trunk._feature_blocks.layer4.0.bn1" in refused(check_last_batch, config)


def test_batches_of_one_image(config, linear):
    linear.DATA.TRAIN.BATCHSIZE_PER_REPLICA = 1
    message = refused(check_batch_norm, linear)
    assert message.startswith("config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=1: heads.0.channel_bn would")
    linear.DATA.TRAIN.BATCHSIZE_PER_REPLICA = 2
    check_batch_norm(linear)
    config.DATA.TRAIN.BATCHSIZE_PER_REPLICA = 1
    config.DISTRIBUTED.NUM_PROC_PER_NODE = 3
    assert "CONVERT_BN_TO_SYNC_BN:true" in refused(check_batch_norm, config)
    config.MODEL.SYNC_BN_CONFIG.update(CONVERT_BN_TO_SYNC_BN=True, GROUP_SIZE=0)
    check_batch_norm(config)
    config.MODEL.SYNC_BN_CONFIG.GROUP_SIZE = 2  # the third process is alone in its group
    assert refused(check_batch_norm, config)
