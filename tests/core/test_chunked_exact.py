"""Exact batch norm in pieces: the unchunked update in float64, whatever the pieces."""

import copy
import random

import pytest
import torch
from chunked_networks import (
    assert_same_buffers,
    build_stages,
    gradients,
    images,
    one_pass,
    plain_loss,
    relative_error,
)
from torch import nn

from vissl_barlow import chunked
from vissl_barlow.resnet import build_trunk

N = 11
RTOL = 1e-10


def _exact(net, chunk_size, *, embed=None, loss=plain_loss, views=None, stages=None):
    return chunked.backward(
        embed or net,
        *(views or images(N)),
        loss,
        chunk_size=chunk_size,
        batch_norm="exact",
        stages=stages,
    )


@pytest.mark.parametrize("in_stages", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 3, 4, 5, 10, 11, 0])
def test_the_update_is_the_unchunked_one(chunk_size, in_stages):
    net = build_stages()
    expected = copy.deepcopy(net)
    for _ in range(2):
        output = one_pass(expected, *images(N), plain_loss, N)
        got = _exact(net, chunk_size, stages=list(net) if in_stages else None)
    torch.testing.assert_close(torch.stack(got), torch.stack(output), rtol=RTOL, atol=0)
    assert relative_error(gradients(net), gradients(expected)) < RTOL
    for p, q in zip(net.parameters(), expected.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)
    assert_same_buffers(net, expected, 1e-12)


def test_a_resnet_in_stages_of_a_block_each():
    torch.manual_seed(0)
    net = build_trunk(
        18, small_stem=True, width_multiplier=1 / 16, zero_init_residual=False
    ).double()
    expected = copy.deepcopy(net)
    blocks = [b for layer in (net.layer1, net.layer2, net.layer3, net.layer4) for b in layer]
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    stages = [stem, *blocks, nn.Sequential(net.avgpool, nn.Flatten())]
    views = torch.randn(2, N, 3, 12, 12, dtype=torch.float64).unbind()
    one_pass(expected, *views, plain_loss, N)
    _exact(net, 4, views=views, stages=stages)
    assert relative_error(gradients(net), gradients(expected)) < RTOL
    assert_same_buffers(net, expected, 1e-12)


@pytest.mark.parametrize("stopped", ["a", "b"])
def test_a_view_without_a_gradient_moves_the_running_statistics(stopped):
    def loss(a, b):
        return plain_loss(a.detach() if stopped == "a" else a, b.detach() if stopped == "b" else b)

    net = build_stages()
    expected = copy.deepcopy(net)
    one_pass(expected, *images(N), loss, N)
    _exact(net, 4, loss=loss)
    assert relative_error(gradients(net), gradients(expected)) < RTOL
    assert_same_buffers(net, expected, 1e-12)


def test_layers_in_eval_mode_without_running_statistics_frozen_or_called_twice():
    net = build_stages()
    net[0][1].eval()
    net[1].bn1 = nn.BatchNorm2d(4, affine=False, track_running_stats=False).double()
    net[1].shortcut.requires_grad_(False)
    net[1].bn2 = net[1].shortcut
    net[0][0].requires_grad_(False)
    expected = copy.deepcopy(net)
    one_pass(expected, *images(N), plain_loss, N)
    _exact(net, 4)
    for p, q in zip(net.parameters(), expected.parameters()):
        assert (p.grad is None) == (q.grad is None)
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)
    assert_same_buffers(net, expected, 1e-12)


def test_images_get_their_gradient_also_through_a_batch_norm_of_their_own():
    results = []
    for step in (lambda net, views: one_pass(net, *views, plain_loss, N), None):
        net = nn.Sequential(nn.BatchNorm2d(3).double(), build_stages())
        views = [view.requires_grad_() for view in images(N)]
        step(net, views) if step else _exact(net, 4, views=views, stages=list(net))
        results.append([gradients(net), *(view.grad for view in views)])
    for got, expected in zip(*results):
        assert relative_error(got, expected) < RTOL


class NotesMasks(nn.Module):
    """Dropout that notes each row's mask, by the row's position in memory."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def forward(self, x):
        mask = torch.rand(x.shape[0], 3)
        self.masks.append(mask)
        return x * (1 + mask.mean(1, keepdim=True).double())


def test_random_layers_draw_the_same_in_every_sweep_and_other_numbers_for_every_piece():
    noise = NotesMasks()
    net = nn.Sequential(build_stages(), noise, nn.BatchNorm1d(6).double(), nn.Linear(6, 6).double())
    torch.manual_seed(1)
    state, python_state = torch.get_rng_state(), random.getstate()
    _exact(net, 4)
    assert random.getstate() == python_state
    after = torch.get_rng_state()
    distinct = {tuple(mask.flatten().tolist()) for mask in noise.masks}
    # Three pieces of two views.
    assert len(distinct) == 6
    assert len(noise.masks) > 12
    assert not torch.equal(after, state)
    torch.set_rng_state(state)
    first = gradients(net)
    net.zero_grad()
    _exact(net, 4)
    assert relative_error(gradients(net), first) < 1e-12
    assert torch.equal(torch.get_rng_state(), after)
