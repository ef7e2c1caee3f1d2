import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from vissl_barlow.resnet import build_trunk, representation_dim

DEPTHS = [18, 34, 50, 101, 152]
# Standard error of the standard deviation of the smallest convolution tested (4096 weights), x 5.
STD_TOLERANCE = 5 / (2 * 4096) ** 0.5


def residual_blocks(trunk):
    return [m for m in trunk.modules() if isinstance(m, BasicBlock | Bottleneck)]


def last_norm(block):
    return block.bn3 if isinstance(block, Bottleneck) else block.bn2


@pytest.mark.parametrize("depth", DEPTHS)
def test_parameters_are_torchvisions(depth):
    with torch.device("meta"):
        ours = build_trunk(depth).state_dict()
        theirs = torchvision.models.get_model(f"resnet{depth}").state_dict()
    theirs = {name: tensor.shape for name, tensor in theirs.items() if not name.startswith("fc.")}
    assert {name: tensor.shape for name, tensor in ours.items()} == theirs


def test_a_seed_gives_torchvisions_very_weights():
    torch.manual_seed(3)
    ours = build_trunk(50).state_dict()
    torch.manual_seed(3)
    theirs = torchvision.models.resnet50(zero_init_residual=True).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(
    ("depth", "options"),
    [
        (18, {}),
        (50, {}),
        (50, {"small_stem": True}),
        (18, {"small_stem": True, "width_multiplier": 2}),
    ],
)
def test_initialisation(depth, options):
    torch.manual_seed(0)
    trunk = build_trunk(depth, **options)
    convolutions = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    for conv in convolutions:
        fan_out = conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]
        # kaiming_normal_(mode="fan_out", nonlinearity="relu"); the stem has fewer weights.
        tolerance = STD_TOLERANCE * max(1, (4096 / conv.weight.numel()) ** 0.5)
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=tolerance)
    blocks = residual_blocks(trunk)
    zero = {id(last_norm(block)) for block in blocks}
    assert len(zero) == {18: 8, 50: 16}[depth]
    for norm in (m for m in trunk.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (norm.weight == (0 if id(norm) in zero else 1)).all()
        assert (norm.bias == 0).all()


@pytest.mark.parametrize("depth", [18, 50])
def test_blocks_start_as_their_shortcut(depth):
    torch.manual_seed(0)
    for block in residual_blocks(build_trunk(depth)):
        x = torch.randn(2, block.conv1.in_channels, 4, 4).relu()
        shortcut = x if block.downsample is None else block.downsample(x).relu()
        assert torch.equal(block(x), shortcut)


def test_zero_initialisation_can_be_left_out():
    assert all(
        (last_norm(b).weight == 1).all()
        for b in residual_blocks(build_trunk(18, zero_init_residual=False))
    )


@pytest.mark.parametrize(
    ("depth", "options", "maps"),
    [
        (18, {}, {"conv1": (64, 16), "maxpool": (64, 8), "layer1": (64, 8), "layer4": (512, 1)}),
        (
            18,
            {"small_stem": True},
            {"conv1": (64, 32), "maxpool": (64, 32), "layer1": (64, 32), "layer4": (512, 4)},
        ),
        (
            18,
            {"width_multiplier": 0.5},
            {"conv1": (32, 16), "maxpool": (32, 8), "layer1": (32, 8), "layer4": (256, 1)},
        ),
        (
            18,
            {"width_multiplier": 2},
            {"conv1": (128, 16), "maxpool": (128, 8), "layer1": (128, 8), "layer4": (1024, 1)},
        ),
        (50, {"small_stem": True}, {"conv1": (64, 32), "layer1": (256, 32), "layer4": (2048, 4)}),
    ],
)
def test_shapes_for_small_images(depth, options, maps):
    trunk = build_trunk(depth, **options)
    seen = {}
    for name in maps:
        getattr(trunk, name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: output.shape[1:3]})
        )
    representations = trunk(torch.randn(2, 3, 32, 32))
    assert {name: tuple(shape) for name, shape in seen.items()} == maps
    width = options.get("width_multiplier", 1)
    assert representations.shape == (2, representation_dim(depth, width))


def test_norm_layer_replaces_every_normalisation():
    trunk = build_trunk(
        18, norm_layer=lambda channels: nn.GroupNorm(8, channels), width_multiplier=2
    )
    assert not any(isinstance(m, nn.BatchNorm2d) for m in trunk.modules())
    assert trunk.bn1.num_channels == 128


def test_representation_dims():
    assert [representation_dim(depth) for depth in DEPTHS] == [512, 512, 2048, 2048, 2048]
    assert representation_dim(18, 0.5) == 256


@pytest.mark.parametrize("depth", [20, "50", None])
def test_unknown_depth_is_named(depth):
    for function in (build_trunk, representation_dim):
        with pytest.raises(
            ValueError, match=f"depth={depth!r} must be one of 18, 34, 50, 101, 152"
        ):
            function(depth)


@pytest.mark.parametrize("width", [0, 0.3, -1, "2"])
def test_bad_width_is_named(width):
    with pytest.raises(ValueError, match=f"width_multiplier={width!r}"):
        build_trunk(50, width_multiplier=width)
