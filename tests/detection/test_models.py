"""Pretrained trunks in Detectron2's models: every tensor, and the same features."""

import importlib.util

import pytest
import torch
import torchvision
from detection_runs import FPN, VOC, build

pytestmark = pytest.mark.detectron2
# 53 convolutions, and four tensors for each of their 53 norms.
BACKBONE_TENSORS = 265
# The same float32 operations in the same order; the issue of the weights' layout is far above it.
FEATURE_TOLERANCE = 1e-5


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        (VOC, {"conv1": "backbone.stem.conv1", "layer4.2.bn3": "roi_heads.res5.2.conv3.norm"}),
        (FPN, {"layer4.0.downsample.1": "backbone.bottom_up.res5.0.shortcut.norm"}),
    ],
)
@pytest.mark.parametrize("source", ["authors", "vissl"])
def test_every_backbone_tensor_is_loaded(name, layers, source, resnet, checkpoints):
    from vissl_barlow.detection.weights import load_backbone

    model = build(name)
    assert load_backbone(model, getattr(checkpoints, source)) == BACKBONE_TENSORS
    for theirs, ours in layers.items():
        expected = resnet.get_submodule(theirs).weight
        assert torch.equal(model.get_submodule(ours).weight, expected)


def test_features_equal_torchvisions(resnet, checkpoints):
    from vissl_barlow.detection.weights import load_backbone

    model = build(VOC, "MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4']")
    load_backbone(model, checkpoints.vissl)
    pixels = torch.randint(256, (3, 128, 160), dtype=torch.uint8)
    image = model.preprocess_image([{"image": pixels}]).tensor
    normalize = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(
        image[0], normalize(pixels / 255), rtol=FEATURE_TOLERANCE, atol=FEATURE_TOLERANCE
    )
    with torch.no_grad():
        ours = model.backbone(image)
        ours["res5"] = model.roi_heads.res5[:3](ours["res4"])
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image))))
        for stage in (2, 3, 4, 5):
            x = resnet.get_submodule(f"layer{stage - 1}")(x)
            torch.testing.assert_close(
                ours[f"res{stage}"], x, rtol=FEATURE_TOLERANCE, atol=FEATURE_TOLERANCE
            )


def test_strides_in_the_1x1_convolutions_load_as_well_and_change_the_features(resnet, checkpoints):
    """Why `check_input` exists: nothing else notices."""
    from vissl_barlow.detection.weights import load_backbone

    model = build(VOC, "MODEL.RESNETS.STRIDE_IN_1X1", True)
    assert load_backbone(model, checkpoints.vissl) == BACKBONE_TENSORS
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        stem = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image))))
        expected = resnet.layer3(resnet.layer2(resnet.layer1(stem)))
        distance = (model.backbone(image)["res4"] - expected).norm() / expected.norm()
    assert distance > 0.1


def test_the_extra_norm_follows_res5_beside_vissls_head():
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY

    import vissl_barlow.detection.roi_heads  # noqa: F401

    head = build(VOC).roi_heads
    assert [type(m).__name__ for m in head.res5] == ["BottleneckBlock"] * 3 + ["BatchNorm2d"]
    if importlib.util.find_spec("tools.object_detection_benchmark") is None:
        pytest.skip("VISSL is not installed beside Detectron2")
    import tools.object_detection_benchmark  # noqa: F401

    assert "Res5ROIHeadsExtraNorm" in ROI_HEADS_REGISTRY
    theirs = build(VOC, "MODEL.ROI_HEADS.NAME", "Res5ROIHeadsExtraNorm")
    assert theirs.roi_heads.state_dict().keys() == head.state_dict().keys()
