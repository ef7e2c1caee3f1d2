import pytest
import torch
from torch import nn

from vissl_barlow.projector import build_projector

L, B, R = nn.Linear, nn.BatchNorm1d, nn.ReLU


@pytest.mark.parametrize(
    ("in_dim", "dims", "options", "count"),
    [
        # The paper's: 2048 * 8192 + 2 * 8192 * 8192 weights, and 2 * 8192 per normalisation.
        (2048, [8192, 8192, 8192], {}, 16_777_216 + 134_217_728 + 32_768),
        (2048, [8192, 8192, 16384], {}, 16_777_216 + 67_108_864 + 134_217_728 + 32_768),
        (512, [256], {}, 131_072),
        (512, [256, 128], {}, 131_072 + 32_768 + 512),
        (512, [256, 128], {"use_bn": False}, 131_072 + 32_768),
        (512, [256, 128], {"use_bn": False, "bias": True}, 131_072 + 32_768 + 256 + 128),
        (512, [256, 128], {"output_bias": True}, 131_072 + 32_768 + 512 + 128),
        (512, [256, 128], {"bias": True, "output_bias": False}, 131_072 + 32_768 + 512 + 256),
    ],
)
def test_parameter_counts(in_dim, dims, options, count):
    with torch.device("meta"):
        projector = build_projector(in_dim, dims, **options)
    assert sum(p.numel() for p in projector.parameters()) == count


@pytest.mark.parametrize(
    ("dims", "use_bn", "layers"),
    [
        ([6, 7, 8], True, [L, B, R, L, B, R, L]),
        ([6, 7, 8], False, [L, R, L, R, L]),
        ([8], True, [L]),
    ],
)
def test_layers_and_widths(dims, use_bn, layers):
    projector = build_projector(4, dims, use_bn=use_bn)
    assert [type(layer) for layer in projector] == layers
    linear = [layer for layer in projector if isinstance(layer, L)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(
        zip([4, *dims], dims)
    )
    assert projector(torch.randn(3, 4)).shape == (3, dims[-1])


def test_names_are_the_released_checkpoints():
    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["0.weight", *(f"1.{name}" for name in names)]
    expected += ["3.weight", *(f"4.{name}" for name in names), "6.weight"]
    assert list(build_projector(4, [5, 6, 7]).state_dict()) == expected


def test_weights_have_the_default_initialisation():
    torch.manual_seed(0)
    weight = build_projector(400, [500, 300])[0].weight
    bound = 400**-0.5  # uniform in +-1/sqrt(fan_in)
    assert 0.999 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("in_dim", "dims", "message"),
    [
        (2048, [], r"dims=\[\]"),
        (2048, 8192, r"dims=8192"),
        (2048, "8192-8192", r"dims='8192-8192'"),
        (2048, [8192, 0], r"dims\[1\]=0"),
        (2048, [81.92], r"dims\[0\]=81.92"),
        (-1, [8192], r"in_dim=-1"),
    ],
)
def test_bad_widths_are_named(in_dim, dims, message):
    with pytest.raises(ValueError, match=message):
        build_projector(in_dim, dims)


@pytest.mark.parametrize("switch", ["use_bn", "bias", "output_bias"])
def test_a_text_is_no_switch(switch):
    """YAML 1.2, which hydra reads, takes `no` for a text, and Python a text for true."""
    with pytest.raises(ValueError, match=f"{switch}='no' must be true or false"):
        build_projector(4, [5, 6], **{switch: "no"})
