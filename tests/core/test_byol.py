"""BYOL's target network and SimSiam's projector against references written here."""

import copy

import pytest
import torch
from torch import nn

from vissl_barlow.byol import build_normalized_projector, target_momentum, update_target

# Float32 networks, the same operations in the same order.
SINGLE = 1e-6


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 0.996), (0.25, 0.996585786437627), (0.5, 0.998), (1.0, 1.0)]
)
def test_target_momentum_rises_along_a_cosine(progress, expected):
    assert target_momentum(progress, base=0.996) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("progress", "base"), [(-0.1, 0.9), (1.1, 0.9), (0.5, 1.1), (0.5, -0.1)])
def test_target_momentum_refuses_what_is_out_of_range(progress, base):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        target_momentum(progress, base=base)


def test_the_target_averages_parameters_and_keeps_its_own_batch_statistics():
    online, target = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    online(torch.randn(8, 3))
    before = copy.deepcopy(target.state_dict())
    update_target(target, online, 0.9)
    for name, tensor in target.named_parameters():
        expected = 0.9 * before[name] + 0.1 * online.state_dict()[name]
        torch.testing.assert_close(tensor.detach(), expected, rtol=SINGLE, atol=SINGLE)
    for name, tensor in target.named_buffers():
        assert torch.equal(tensor, before[name])


def test_the_normalized_projector_ends_in_unit_variance():
    output = build_normalized_projector(6, [8, 4])(torch.randn(64, 6) * 5 + 3)
    torch.testing.assert_close(output.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.var(0, unbiased=False), torch.ones(4), rtol=0, atol=1e-2)
