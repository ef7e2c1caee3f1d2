"""The trunk (section 2.2): torchvision's ResNets and their initialisation, no classifier."""

from collections.abc import Callable
from numbers import Real

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

ARCHITECTURES = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
}


def _architecture(depth: int) -> tuple[type[BasicBlock | Bottleneck], list[int]]:
    if depth not in ARCHITECTURES:
        raise ValueError(f"depth={depth!r} must be one of {', '.join(map(str, ARCHITECTURES))}")
    return ARCHITECTURES[depth]


class _Trunk(ResNet):
    """Widens and restems torchvision's ResNet while it is being built, so that its own
    initialisation, the last thing its constructor does, covers what was changed."""

    inplanes: int  # torchvision's

    def __init__(self, *args, width_multiplier: float, small_stem: bool, **kwargs) -> None:
        self.width_multiplier = width_multiplier
        self.small_stem = small_stem
        super().__init__(*args, **kwargs)
        self.fc = nn.Identity()

    def _make_layer(self, block, planes: int, *args, **kwargs) -> nn.Sequential:
        if not hasattr(self, "layer1"):
            self._adapt_stem()
        return super()._make_layer(block, int(planes * self.width_multiplier), *args, **kwargs)

    def _adapt_stem(self) -> None:
        if self.width_multiplier != 1:
            self.inplanes = int(self.inplanes * self.width_multiplier)
            self.conv1 = nn.Conv2d(3, self.inplanes, 7, stride=2, padding=3, bias=False)
            self.bn1 = self._norm_layer(self.inplanes)
        if self.small_stem:
            self.conv1 = nn.Conv2d(3, self.inplanes, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()


def build_trunk(
    depth: int,
    *,
    zero_init_residual: bool = True,
    small_stem: bool = False,
    width_multiplier: float = 1,
    norm_layer: Callable[[int], nn.Module] | None = None,
) -> ResNet:
    """A ResNet from images (N, 3, H, W) to representations (N, R), R = `representation_dim(...)`.

    Parameter names are torchvision's; `fc` is the identity. Weights of convolutions are normal with
    variance 2 / fan_out, batch normalisation starts at 1 and 0.

    Args:
        depth: 18, 34, 50 (the paper's), 101 or 152.
        zero_init_residual: start the last batch normalisation of each residual branch at 0, so
            that every block starts as its shortcut.
        small_stem: a 3 x 3 convolution of stride 1 and no pooling, for images of 32 x 32 pixels.
        width_multiplier: multiplies every channel count, the representation's too; the narrowest
            layer's, 64 times it, must be a whole number.
        norm_layer: normalisation given a channel count; default `nn.BatchNorm2d`.

    Raises:
        ValueError: unknown depth, or a width multiplier that leaves no whole number of channels.
    """
    block, layers = _architecture(depth)
    if not isinstance(width_multiplier, Real) or not (
        width_multiplier > 0 and float(64 * width_multiplier).is_integer()
    ):
        raise ValueError(
            f"width_multiplier={width_multiplier!r} must be positive and a multiple of 1/64: the "
            "narrowest layer has 64 channels at width 1"
        )
    return _Trunk(
        block,
        layers,
        width_multiplier=width_multiplier,
        small_stem=small_stem,
        zero_init_residual=zero_init_residual,
        norm_layer=norm_layer,
    )


def representation_dim(depth: int, width_multiplier: float = 1) -> int:
    """Dimensions of the representation: 512 for depths 18 and 34, 2048 from 50 on, at width 1."""
    block, _ = _architecture(depth)
    return int(512 * block.expansion * width_multiplier)
