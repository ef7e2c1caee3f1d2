"""A step in pieces under DistributedDataParallel, on real gloo processes with unequal rows."""

import copy

import pytest
import torch
from chunked_networks import (
    build_stages,
    gradients,
    images,
    plain_loss,
    relative_error,
)
from gloo import run_gloo
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from vissl_barlow import chunked
from vissl_barlow.distributed import all_gather_rows, all_reduce_sum, batch_sizes, rank
from vissl_barlow.loss import barlow_twins_loss
from vissl_barlow.sync_batch_norm import convert

ROWS = (5, 8)
N = sum(ROWS)
RTOL = 1e-10
CHUNK = 3  # leaves 2 of 5, and 2 of 8: two and three pieces
SYNC_CHUNKS = (3, 4)  # as many pieces on both processes: 3 + 2, 4 + 4


def _own(views):
    begin = sum(ROWS[: rank()])
    return [view[begin : begin + ROWS[rank()]] for view in views]


class Joined(torch.autograd.Function):
    """All rows, whose gradient is that of the sum over processes: a plain reference for losses."""

    @staticmethod
    def forward(ctx, z):
        ctx.sizes = batch_sizes(len(z))
        return all_gather_rows(z.contiguous(), ctx.sizes)

    @staticmethod
    def backward(ctx, grad):
        return all_reduce_sum(grad).split(list(ctx.sizes))[rank()]


def _global_loss(z_a, z_b):
    return plain_loss(Joined.apply(z_a), Joined.apply(z_b))


def _barlow_loss(z_a, z_b):
    return barlow_twins_loss(z_a, z_b, lambda_=0.5)


def _ddp(net, **kwargs):
    """The network in DistributedDataParallel, and a list that grows with each averaged bucket."""
    reductions = []

    def hook(state, bucket):
        state.append(bucket.index())
        future = dist.all_reduce(
            bucket.buffer() / dist.get_world_size(), async_op=True
        ).get_future()
        return future.then(lambda done: done.value()[0])

    module = DistributedDataParallel(net, **kwargs)
    module.register_comm_hook(reductions, hook)
    return module, reductions


def _ran(net, reductions, output):
    return (
        gradients(net),
        {k: v.clone() for k, v in net.named_buffers()},
        output[0],
        len(reductions),
    )


def _case(net, *, wrap=lambda ddp: ddp, loss=_global_loss, chunk_size=CHUNK, steps=2, **kwargs):
    options = {k: kwargs.pop(k) for k in ("broadcast_buffers",) if k in kwargs}
    module, reductions = _ddp(net, **options)
    stages = list(net) if kwargs.pop("in_stages", False) else None
    for _ in range(steps):
        module.zero_grad()
        output = chunked.backward(
            wrap(module),
            *_own(images(N)),
            loss,
            chunk_size=chunk_size,
            stages=stages,
            **kwargs,
        )
    return _ran(net, reductions, tuple(t.detach() for t in output))


def _refusal(net, loss=_global_loss, chunk_size=CHUNK, **kwargs):
    with pytest.raises(ValueError) as refusal:
        chunked.backward(net, *_own(images(N)), loss, chunk_size=chunk_size, **kwargs)
    return str(refusal.value)


def _ordinary_then_exact():
    """DDP's own step, and ours after it: neither disturbs the other."""
    net = convert(build_stages())
    module, _ = _ddp(net)
    views = _own(images(N))
    results = []
    for mode, chunk_size in (("exact", 0), ("exact", CHUNK), ("exact", 0)):
        module.zero_grad()
        chunked.backward(module, *views, _global_loss, chunk_size=chunk_size, batch_norm=mode)
        results.append(gradients(net))
    return results


def _everything(rank):
    sync_chunk = SYNC_CHUNKS[rank]
    results = {
        "pieces": _case(build_stages()),
        # All of one process's rows are one piece, not so the other's.
        "pieces, one piece": _case(build_stages(), chunk_size=6),
        "pieces, our loss": _case(build_stages(), loss=_barlow_loss),
        "pieces, no broadcast": _case(build_stages(), broadcast_buffers=False),
        "function": _case(build_stages(), wrap=lambda ddp: lambda x: ddp(x)),
        "compiled": _case(build_stages(), wrap=lambda ddp: torch.compile(ddp, backend="eager")),
        "stop a": _case(build_stages(), loss=lambda a, b: _global_loss(a.detach(), b)),
        "stop b": _case(build_stages(), loss=lambda a, b: _global_loss(a, b.detach())),
        "views": _case(build_stages(), chunk_size=0, batch_norm="per_view"),
        "at once": _case(build_stages(), chunk_size=0),
        "views, stop a": _case(
            build_stages(),
            loss=lambda a, b: _global_loss(a.detach(), b),
            chunk_size=0,
            batch_norm="per_view",
        ),
        "exact": _case(build_stages(), batch_norm="exact"),
        "sync pieces": _case(convert(build_stages()), chunk_size=sync_chunk),
        "sync views": _case(convert(build_stages()), chunk_size=0, batch_norm="per_view"),
        "sync at once": _case(convert(build_stages()), chunk_size=0),
        "sync exact": _case(convert(build_stages()), batch_norm="exact"),
        "sync exact in stages": _case(convert(build_stages()), batch_norm="exact", in_stages=True),
        "sync exact, one piece": _case(convert(build_stages()), batch_norm="exact", chunk_size=6),
        "in turn": _ordinary_then_exact(),
    }
    net = build_stages()
    ddp = DistributedDataParallel(net)
    results["refused: loss"] = _refusal(
        ddp, lambda a, b: _global_loss(a @ net[2][6].weight[:, :6], b)
    )
    results["refused: pieces"] = _refusal(convert(build_stages()))
    return results


@pytest.fixture(scope="module")
def processes():
    return run_gloo(_everything, len(ROWS))


def _reference(stop=None, *, chunk_size=None, sync=False):
    """The same two steps in one process: a network for each process, sharing its parameters.

    Without synchronisation each process's rows go through its own copy of batch norm, piece by piece.
    """
    net = build_stages()
    nets = [net] if sync else [net, copy.deepcopy(net)]
    for other in nets[1:]:
        for name, parameter in net.named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(owner), leaf, parameter)
    for _ in range(2):
        net.zero_grad()
        z = []
        for view in images(N):
            rows = [view] if sync else view.split(ROWS)
            pieces = [
                torch.cat([own(x) for x in part.split(chunk_size or len(part))])
                for own, part in zip(nets, rows)
            ]
            z.append(torch.cat(pieces))
        z_a, z_b = (t.detach() if stop == view else t for t, view in zip(z, "ab"))
        output = plain_loss(z_a, z_b)
        output.loss.backward()
    return gradients(net), nets, output


CASES = {
    "pieces": {"chunk_size": CHUNK},
    "pieces, one piece": {"chunk_size": 6},
    "pieces, our loss": {"chunk_size": CHUNK},
    "pieces, no broadcast": {"chunk_size": CHUNK},
    "function": {"chunk_size": CHUNK},
    "compiled": {"chunk_size": CHUNK},
    "stop a": {"chunk_size": CHUNK, "stop": "a"},
    "stop b": {"chunk_size": CHUNK, "stop": "b"},
    "views": {},
    "views, stop a": {"stop": "a"},
    "at once": {},
    "exact": {},
    "sync views": {"sync": True},
    "sync at once": {"sync": True},
    "sync exact": {"sync": True},
    "sync exact in stages": {"sync": True},
    "sync exact, one piece": {"sync": True},
}


@pytest.mark.parametrize("case", CASES)
def test_the_update_is_that_of_one_process(processes, case):
    expected, nets, output = _reference(**CASES[case])
    for i, result in enumerate(processes):
        got, buffers, loss, _ = result[case]
        assert relative_error(got, expected) < RTOL
        torch.testing.assert_close(loss, output.loss.detach(), rtol=RTOL, atol=0)
        # DDP gives every process the first one's buffers before a step: the first's are compared.
        if i == 0 or len(nets) == 1 or case == "pieces, no broadcast":
            for name, buffer in nets[min(i, len(nets) - 1)].named_buffers():
                torch.testing.assert_close(buffers[name], buffer, rtol=1e-12, atol=1e-12, msg=name)


def test_synchronised_pieces_have_the_statistics_of_the_processes_pieces(processes):
    net = build_stages()
    views = []
    for view in images(N):
        of_processes = [own.split(n) for own, n in zip(view.split(ROWS), SYNC_CHUNKS)]
        views.append([torch.cat(pieces) for pieces in zip(*of_processes)])
    for _ in range(2):
        net.zero_grad()
        z_a, z_b = (torch.cat([net(piece) for piece in view]) for view in views)
        plain_loss(z_a, z_b).loss.backward()
    for result in processes:
        got, buffers, _, _ = result["sync pieces"]
        assert relative_error(got, gradients(net)) < RTOL
        for name, buffer in net.named_buffers():
            torch.testing.assert_close(buffers[name], buffer, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("case", [case for case in CASES if "exact" not in case])
def test_gradients_are_averaged_once_a_step(processes, case):
    for result in processes:
        assert result[case][3] == 2


def test_exact_steps_and_ordinary_ones_go_together(processes):
    for result in processes:
        first, *others = result["in turn"]
        assert all(relative_error(other, first) < RTOL for other in others)


def test_refusals_are_said_on_every_process(processes):
    for result in processes:
        assert "loss uses 1 parameter(s) of the network" in result["refused: loss"]
        assert "gives the processes (2, 3) pieces" in result["refused: pieces"]
