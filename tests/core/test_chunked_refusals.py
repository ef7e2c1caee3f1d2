"""What a step in pieces refuses, and says."""

import pytest
import torch
from chunked_networks import build_stages, images, plain_loss
from torch import nn

from vissl_barlow import chunked

N = 9


class DrawsItsOwn(nn.Module):
    """Drops a value in ten by a generator that nobody else knows."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return x * (torch.rand(x.shape, generator=self.generator) > 0.1)


def _is_refused(match, net=None, *, views=None, loss=plain_loss, chunk_size=5, **kwargs):
    net = net or build_stages()
    with pytest.raises(ValueError, match=match):
        chunked.backward(net, *(views or images(N)), loss, chunk_size=chunk_size, **kwargs)


@pytest.mark.parametrize("chunk_size", [-1, 2.0, True, None, "4"])
def test_chunk_size_that_is_no_number_of_rows(chunk_size):
    _is_refused(f"chunk_size={chunk_size!r} must be a whole number", chunk_size=chunk_size)


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 8])
def test_a_piece_of_one_row_under_batch_norm(chunk_size):
    net = build_stages()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    _is_refused(
        rf"chunk_size={chunk_size} leaves a piece of 1 of the 9 rows", net, chunk_size=chunk_size
    )
    # From within a function the layer is found when it is about to run.
    with pytest.raises(ValueError, match="leaves a piece of 1"):
        chunked.backward(lambda x: net(x), *images(N), plain_loss, chunk_size=chunk_size)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    assert all(p.grad is None for p in net.parameters())


def test_a_piece_of_one_row_is_welcome_where_batch_norm_does_not_mind():
    for net in (build_stages().eval(), nn.Sequential(nn.Flatten(), nn.Linear(60, 6)).double()):
        chunked.backward(net, *images(N), plain_loss, chunk_size=1)
        assert all(p.grad is not None for p in net.parameters())
    chunked.backward(build_stages(), *images(N), plain_loss, chunk_size=1, batch_norm="exact")


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((0, 3), (0, 3)), ((), ())])
def test_views_that_do_not_fit_together(shapes):
    _is_refused("give both views of the same images", views=[torch.randn(s) for s in shapes])


def test_modes_that_do_not_exist_or_do_not_go_together():
    _is_refused(
        "batch_norm='sync' is unknown: use one of per_piece, per_view, exact", batch_norm="sync"
    )
    _is_refused("chunk_size=5 has no effect with batch_norm='per_view'", batch_norm="per_view")
    _is_refused("give at least one, and for 'exact' only", stages=[build_stages()])
    _is_refused("give at least one, and for 'exact' only", stages=[], batch_norm="exact")


@pytest.mark.parametrize("chunk_size", [0, 5])
def test_a_loss_that_is_no_scalar(chunk_size):
    _is_refused(r"loss returned \(6,\)", loss=lambda a, b: (a - b).sum(0), chunk_size=chunk_size)
    _is_refused("loss returned float", loss=lambda a, b: 1.0, chunk_size=chunk_size)


@pytest.mark.parametrize("mode", ["per_piece", "exact"])
def test_a_loss_without_a_gradient_of_the_embeddings(mode):
    weight = torch.ones(1, requires_grad=True)
    for loss in (lambda a, b: (a - b).detach().sum(), lambda a, b: (a.detach() * weight).sum()):
        _is_refused("has no gradient with respect to z_a or z_b", loss=loss, batch_norm=mode)


def test_embeddings_that_are_no_rows():
    _is_refused(r"embed returned \(\) for 5 rows", lambda x: x.sum())
    _is_refused("embed returned list for 5 rows", lambda x: [x])
    _is_refused("embeddings without a gradient", build_stages().requires_grad_(False))


def test_embeddings_that_differ_the_second_time():
    _is_refused("other embeddings for the same rows", nn.Sequential(build_stages(), DrawsItsOwn()))
    _is_refused(
        "other embeddings for the same rows",
        nn.Sequential(build_stages(), DrawsItsOwn()),
        batch_norm="exact",
    )


def test_a_compiled_function_whose_layers_cannot_be_found():
    _is_refused("embed is a compiled function", torch.compile(lambda x: x.mean((2, 3))))


class CallsInTurn(nn.Module):
    """Another batch norm in every other call."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.BatchNorm1d(6), nn.BatchNorm1d(6)]).double()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layers[self.calls % 2](x)


class CallsNowAndThen(CallsInTurn):
    def forward(self, x):
        self.calls += 1
        return self.layers[0](x) if self.calls % 3 else x


def test_what_the_exact_mode_cannot_do():
    def is_refused(match, net, **kwargs):
        _is_refused(match, net, batch_norm="exact", **kwargs)

    net = build_stages()
    is_refused("embed is a function.*: give a module", lambda x: net(x))
    is_refused(r"stages\[0\] is a function", net, stages=[images, net])
    is_refused(r"stages\[0\] is compiled", torch.compile(net, backend="eager"))
    is_refused("not called in the same order", nn.Sequential(net, CallsInTurn()))
    is_refused("not called in the same order", nn.Sequential(net, CallsNowAndThen()))
    moving = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6).double()))
    is_refused(r"stages\[1\] has the buffer '0.parametrizations", net, stages=[net, moving])
    assert all("forward" not in vars(module) for module in net.modules())


def test_activation_checkpointing_within_the_exact_mode():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build_stages()

        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)

    _is_refused("take out activation checkpointing", Checkpointed(), batch_norm="exact")


def test_piece_sizes():
    assert chunked.piece_sizes(9, 4) == [4, 4, 1]
    assert chunked.piece_sizes(8, 4) == [4, 4]
    assert (
        chunked.piece_sizes(3, 0) == chunked.piece_sizes(3, 3) == chunked.piece_sizes(3, 7) == [3]
    )
