"""`barlow_resnet`: torchvision's ResNet, initialised as torchvision does, as a VISSL trunk."""

from collections.abc import Sequence

import torch
from torch import nn
from vissl.models.model_helpers import (
    Flatten,
    Wrap,
    get_trunk_forward_outputs,
    transform_model_input_data_type,
)
from vissl.models.trunks import register_model_trunk

from vissl_barlow.resnet import build_trunk, representation_dim
from vissl_barlow.vissl_plugin.errors import ConfigError

# The keys of the config's section and the arguments of `build_trunk` that they are.
_ARGUMENTS = {
    "DEPTH": "depth",
    "ZERO_INIT_RESIDUAL": "zero_init_residual",
    "SMALL_STEM": "small_stem",
    "WIDTH_MULTIPLIER": "width_multiplier",
}


@register_model_trunk("barlow_resnet")
class BarlowResNet(nn.Module):
    """Config (`config.MODEL.TRUNK.RESNETS`): `DEPTH`, `ZERO_INIT_RESIDUAL`, `WIDTH_MULTIPLIER`,
    and `SMALL_STEM` for 32 x 32 images, the arguments of `vissl_barlow.resnet.build_trunk`.

    VISSL's own `resnet` rebuilds every layer after torchvision has initialised it. The names of
    features and of parameters are VISSL's, so its evaluation configs and checkpoints fit.
    """

    section = "RESNETS"
    keys = frozenset(_ARGUMENTS)

    @staticmethod
    def representation_dim(options) -> int:
        """Dimensions of the representations of the trunk that the section's `options` ask for.

        Raises:
            ConfigError: there is no such trunk.
        """
        try:
            return representation_dim(options.DEPTH, options.WIDTH_MULTIPLIER)
        except ValueError as error:
            raise ConfigError("MODEL.TRUNK.RESNETS.DEPTH", options.DEPTH, str(error)) from None

    def __init__(self, model_config, model_name: str) -> None:
        super().__init__()
        self.model_config = model_config
        options = model_config.TRUNK[self.section]
        model = build_trunk(
            **{_ARGUMENTS[key]: options[key] for key in self.keys if key in options}
        )
        self._feature_blocks = nn.ModuleDict(
            {
                "conv1": model.conv1,
                "bn1": model.bn1,
                "conv1_relu": model.relu,
                "maxpool": model.maxpool,
                "layer1": model.layer1,
                "layer2": model.layer2,
                "layer3": model.layer3,
                "layer4": model.layer4,
                "avgpool": model.avgpool,
                "flatten": Flatten(1),
            }
        )
        self.feat_eval_mapping = {
            "conv1": "conv1_relu",
            "res1": "maxpool",
            "res2": "layer1",
            "res3": "layer2",
            "res4": "layer3",
            "res5": "layer4",
            "res5avg": "avgpool",
            "flatten": "flatten",
        }

    def stages(self) -> list[nn.Module]:
        """Modules that, one after the other, map images to representations: the stem, each residual
        block, the pooling. Activation checkpointing is no part of them."""
        blocks = self._feature_blocks
        stem = [blocks[name] for name in ("conv1", "bn1", "conv1_relu", "maxpool")]
        residual = [block for i in (1, 2, 3, 4) for block in blocks[f"layer{i}"].children()]
        return [
            nn.Sequential(Wrap(self._as_input), *stem),
            *residual,
            nn.Sequential(blocks["avgpool"], blocks["flatten"]),
        ]

    def _as_input(self, images: torch.Tensor) -> torch.Tensor:
        return transform_model_input_data_type(images, self.model_config.INPUT_TYPE)

    def forward(
        self, images: torch.Tensor, out_feat_keys: Sequence[str] = ()
    ) -> list[torch.Tensor]:
        """(N, 3, H, W) to the features named; by default the representations, (N, 512 or 2048)."""
        checkpointing = self.model_config.ACTIVATION_CHECKPOINTING
        return get_trunk_forward_outputs(
            feat=self._as_input(images),
            out_feat_keys=list(out_feat_keys or ()),  # VISSL passes None as well
            feature_blocks=self._feature_blocks,
            feature_mapping=self.feat_eval_mapping,
            use_checkpointing=checkpointing.USE_ACTIVATION_CHECKPOINTING,
            checkpointing_splits=checkpointing.NUM_ACTIVATION_CHECKPOINTING_SPLITS,
        )
