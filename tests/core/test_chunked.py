"""A step in pieces on one process, against one pass over the same pieces in float64."""

import copy
import random

import numpy as np
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
from torch.utils.checkpoint import checkpoint

from vissl_barlow import chunked

N = 11
# The same products, summed in another order.
RTOL = 1e-13


def _step(net, chunk_size, *, embed=None, loss=plain_loss, views=None, **kwargs):
    return chunked.backward(
        embed or net, *(views or images(N)), loss, chunk_size=chunk_size, **kwargs
    )


def _states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def _seed(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


class DropsRows(nn.Module):
    """Draws from every default generator, and from torch's as often as there are rows."""

    def forward(self, x):
        factor = random.random() + np.random.rand()
        return x * factor * torch.rand(len(x), 1, dtype=x.dtype, device=x.device)


def _random_net():
    return nn.Sequential(build_stages(dropout=0.4), DropsRows())


@pytest.mark.parametrize("chunk_size", [0, 3, 4, 6, 8, 11, 100])
def test_a_step_leaves_what_one_pass_over_the_pieces_leaves(chunk_size):
    net = _random_net()
    expected = copy.deepcopy(net)
    _seed(7)
    output = one_pass(expected, *images(N), plain_loss, chunk_size or N)
    state = _states()
    _seed(7)
    got = _step(net, chunk_size)
    assert _states() == state
    assert type(got) is type(output)
    torch.testing.assert_close(torch.stack(got), torch.stack(output), rtol=RTOL, atol=0)
    assert relative_error(gradients(net), gradients(expected)) < RTOL
    assert_same_buffers(net, expected)


def test_gradients_add_to_what_is_there_over_several_steps():
    net = _random_net()
    expected = copy.deepcopy(net)
    _seed(3)
    for chunk_size in (4, 6):
        one_pass(expected, *images(N), plain_loss, chunk_size)
    _seed(3)
    for chunk_size in (4, 6):
        _step(net, chunk_size)
    assert relative_error(gradients(net), gradients(expected)) < RTOL
    assert_same_buffers(net, expected)


class CountsRows(nn.Module):
    """Notes the rows of each call, and how many rows have their graph in memory at the time."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls, self.alive, self.most_alive = net, [], 0, 0

    def forward(self, x):
        self.calls.append((len(x), torch.is_grad_enabled()))
        z = self.net(x)
        if z.requires_grad:
            self.alive += len(x)
            self.most_alive = max(self.most_alive, self.alive)
            z.register_hook(self._gone(len(x)))
        return z

    def _gone(self, rows):
        def hook(grad):
            self.alive -= rows

        return hook


def test_no_more_rows_than_a_piece_are_in_memory_and_one_piece_is_embedded_once():
    net = CountsRows(build_stages())
    _step(net, 4)
    assert net.most_alive == 4
    first = [(4, False), (4, False), (3, False), (4, False), (4, False), (3, True)]
    second = [(4, True), (4, True), (3, True), (4, True), (4, True)]
    assert net.calls == first + second


def test_per_view_keeps_one_view_in_memory_and_batch_norm_exact():
    net = CountsRows(build_stages())
    expected = copy.deepcopy(net.net)
    output = one_pass(expected, *images(N), plain_loss, N)
    got = _step(net, 0, batch_norm="per_view")
    torch.testing.assert_close(torch.stack(got), torch.stack(output), rtol=RTOL, atol=0)
    assert relative_error(gradients(net.net), gradients(expected)) < RTOL
    assert_same_buffers(net.net, expected)
    assert net.most_alive == N
    assert len(net.calls) == 3


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: plain_loss(a, b.detach()).loss,
        lambda a, b: (plain_loss(a.detach(), b).loss, "anything"),
        lambda a, b: plain_loss(a * torch.rand(a.shape[1], dtype=a.dtype), b).loss,
    ],
    ids=["stop-gradient on b, scalar", "stop-gradient on a, tuple", "random"],
)
@pytest.mark.parametrize("chunk_size", [4, 0])
def test_losses_that_stop_the_gradient_of_a_view_or_draw_random_numbers(loss, chunk_size):
    net = build_stages(dropout=0.2)
    expected = copy.deepcopy(net)
    _seed(5)
    output = one_pass(expected, *images(N), loss, chunk_size or N)
    state = _states()
    _seed(5)
    got = _step(net, chunk_size, loss=loss, batch_norm="per_piece" if chunk_size else "per_view")
    assert _states() == state
    assert type(got) is type(output)
    assert relative_error(gradients(net), gradients(expected)) < RTOL
    assert_same_buffers(net, expected)


@pytest.mark.parametrize("chunk_size", [4, 0])
def test_parameters_of_the_loss_and_images_get_their_gradients(chunk_size):
    results = []
    for step in (one_pass, None):
        net, scale = build_stages(), torch.full((6,), 1.5, dtype=torch.float64, requires_grad=True)
        views = [view.requires_grad_() for view in images(N)]

        def loss(a, b, scale=scale):
            return ((a * scale - b).tanh().square()).sum()

        if step:
            step(net, *views, loss, chunk_size or N)
        else:
            _step(net, chunk_size, loss=loss, views=views)
        results.append([gradients(net), scale.grad, *(view.grad for view in views)])
    for got, expected in zip(*results):
        assert relative_error(got, expected) < RTOL


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build_stages()

    def embed(self, x):
        return self.net(x)


def _embed_of(kind, twins):
    if kind == "method":
        return twins.embed
    if kind == "function":
        return lambda x: twins.net[2](twins.net[1](twins.net[0](x)))
    compiled = torch.compile(twins.net, backend="aot_eager")
    return compiled if kind == "compiled module" else lambda x: compiled(x)


@pytest.mark.parametrize(
    "kind", ["method", "function", "compiled module", "function of a compiled module"]
)
def test_embed_may_be_a_method_a_function_or_compiled(kind):
    twins = Twins()
    expected = copy.deepcopy(twins)
    embed = _embed_of(kind, twins)
    for _ in range(2):
        one_pass(expected.net, *images(N), plain_loss, 4)
        _step(None, 4, embed=embed)
    assert relative_error(gradients(twins), gradients(expected)) < 1e-12
    assert_same_buffers(twins, expected, 1e-12)


class Checkpointed(nn.Module):
    """Forgets its activations, and passes its batch norm layers twice for it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=False)


def test_running_statistics_move_once_under_activation_checkpointing_and_in_the_loss():
    def predicting(predictor):
        return lambda a, b: plain_loss(predictor(a), b)

    expected = Twins()
    expected.predictor = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).double()
    twins = copy.deepcopy(expected)
    twins.net = Checkpointed(twins.net)
    one_pass(expected.embed, *images(N), predicting(expected.predictor), 4)
    _step(None, 4, embed=twins.embed, loss=predicting(twins.predictor))
    assert relative_error(gradients(twins), gradients(expected)) < RTOL
    for got, buffer in zip(twins.buffers(), expected.buffers(), strict=True):
        assert torch.equal(got, buffer)


def test_channels_last_reaches_the_network():
    net = build_stages().to(memory_format=torch.channels_last)
    expected = copy.deepcopy(net)
    views = [view.contiguous(memory_format=torch.channels_last) for view in images(N)]
    formats = []
    net[0].register_forward_pre_hook(
        lambda _, x: formats.append(x[0].is_contiguous(memory_format=torch.channels_last))
    )
    one_pass(expected, *views, plain_loss, 4)
    _step(net, 4, views=views)
    assert formats and all(formats)
    assert relative_error(gradients(net), gradients(expected)) < RTOL


@pytest.mark.parametrize("mode", ["per_piece", "exact"])
def test_autocast_gives_every_weight_its_gradient_in_the_precision_of_the_forward_pass(mode):
    net = build_stages().float()
    expected, in_float64 = copy.deepcopy(net), copy.deepcopy(net).double()
    views = [view.float() for view in images(N)]
    dtypes = []

    def loss(a, b):
        dtypes.append((a.dtype, b.dtype))
        return plain_loss(a.float(), b.float())

    chunk_size = 4 if mode == "per_piece" else N
    with torch.autocast("cpu", torch.bfloat16):
        # A forward pass without a graph leaves copies of the weights in autocast's cache.
        with torch.no_grad():
            net[0][0](views[0])
        _step(net, 4, loss=loss, views=views, batch_norm=mode)
        z = [torch.cat([expected(x) for x in v.split(chunk_size)]) for v in views]
        value = loss(*z).loss
    value.backward()
    one_pass(in_float64, *images(N), plain_loss, chunk_size)
    assert dtypes == [(torch.bfloat16, torch.bfloat16)] * 2
    # Both round as they go. Neither may be farther from the truth than rounding explains.
    truth = gradients(in_float64)
    error, expected_error = (relative_error(gradients(x).double(), truth) for x in (net, expected))
    assert error < 1.5 * expected_error + 0.01
    for p, q in zip(net.parameters(), expected.parameters()):
        assert p.grad is not None and p.grad.dtype == q.grad.dtype


def test_weights_that_changed_within_one_autocast_are_cast_again():
    net = build_stages().float()
    views = [view.float() for view in images(N)]

    def loss(a, b):
        return plain_loss(a.float(), b.float())

    with torch.autocast("cpu", torch.bfloat16):
        _step(net, 4, loss=loss, views=views)
        torch.optim.SGD(net.parameters(), 0.01).step()
        net.zero_grad()
        _step(net, 4, loss=loss, views=views)
    got = gradients(net)
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        _step(net, 4, loss=loss, views=views)
    assert torch.equal(got, gradients(net))


@pytest.mark.parametrize(("chunk_size", "mode"), [(0, "per_piece"), (4, "per_piece"), (4, "exact")])
def test_grad_scaler_scales_the_gradient_and_not_the_loss(chunk_size, mode):
    plain, scaled = build_stages(), build_stages()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    output = _step(plain, chunk_size, batch_norm=mode)
    got = _step(scaled, chunk_size, batch_norm=mode, grad_scaler=scaler)
    assert torch.equal(got.loss, output.loss)
    assert relative_error(gradients(scaled), 1024 * gradients(plain)) < RTOL
    scaler.step(torch.optim.SGD(scaled.parameters(), 0.1))
    scaler.update()
    assert relative_error(gradients(scaled), gradients(plain)) < RTOL


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["per_piece", "exact"])
def test_a_step_on_a_gpu(mode):
    # In the exact mode a piece draws other numbers than one pass: no random layers there.
    net = (_random_net() if mode == "per_piece" else build_stages()).cuda()
    expected = copy.deepcopy(net)
    views = [view.cuda() for view in images(N)]
    _seed(7)
    one_pass(expected, *views, plain_loss, 4 if mode == "per_piece" else N)
    state = torch.cuda.get_rng_state()
    _seed(7)
    _step(net, 4, views=views, batch_norm=mode)
    if mode == "per_piece":
        assert torch.equal(torch.cuda.get_rng_state(), state)
    assert relative_error(gradients(net), gradients(expected)) < 1e-10
    assert_same_buffers(net, expected, 1e-12)
