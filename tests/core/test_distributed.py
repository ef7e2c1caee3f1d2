"""The sums over processes and the loss under real DistributedDataParallel, over gloo."""

import weakref

import pytest
import torch
from gloo import run_gloo
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vissl_barlow import distributed
from vissl_barlow.loss import barlow_twins_loss, cross_correlation, equation_1, normalize

# Rows per process: unequal, so that a mean of the processes' means is not the mean.
SPLITS = {1: [12], 2: [5, 7], 4: [4, 1, 5, 2]}
N, IN_DIM, D = 12, 6, 10
LR = 0.1
# The update of a parameter is a sum of the same numbers in another order.
RTOL = {torch.float64: 1e-10, torch.float32: 1e-6}
DTYPES = (torch.float64, torch.float32)
FORMS = ("gram", "correlation", "auto")


def _images(dtype):
    """Two views of N rows whose mean drifts from row to row, so that each process has its own."""
    generator = torch.Generator().manual_seed(0)
    drift = torch.linspace(-3, 3, N, dtype=torch.float64)[:, None]
    noise = torch.randn(3, N, IN_DIM, generator=generator, dtype=torch.float64)
    return [(drift + noise[0] + 0.5 * view).to(dtype) for view in noise[1:]]


def _net(dtype):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(IN_DIM, 8), nn.Tanh(), nn.Linear(8, D)).to(dtype)


def _reference_update(reference_world_size=1):
    """Equations 1 and 2 on all rows in one process, in float64; one step of plain SGD."""
    net = _net(torch.float64)
    a, b = (net(view) for view in _images(torch.float64))
    a, b = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (a, b))
    c = a.T @ b / N
    on_diagonal = (1 - c.diagonal()).square().sum()
    off_diagonal = (c - torch.diag(c.diagonal())).square().sum()
    loss = on_diagonal + 5e-3 * off_diagonal
    grads = torch.autograd.grad(loss, list(net.parameters()))
    update = torch.cat([g.flatten() for g in grads]) * -LR / reference_world_size
    return update, torch.stack((loss, on_diagonal, off_diagonal)).detach()


def _ddp_update(rank, dtype, form, reference_world_size):
    world_size = distributed.world_size()
    net = DistributedDataParallel(_net(dtype), broadcast_buffers=False)
    rows = slice(sum(SPLITS[world_size][:rank]), sum(SPLITS[world_size][: rank + 1]))
    views = [view[rows] for view in _images(dtype)]
    # Both views in one forward pass: DDP reduces each gradient once.
    z_a, z_b = net(torch.cat(views)).chunk(2)
    terms = barlow_twins_loss(z_a, z_b, form=form, reference_world_size=reference_world_size)
    terms.loss.backward()
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    grad = torch.cat([p.grad.flatten() for p in net.parameters()])
    torch.optim.SGD(net.parameters(), LR).step()
    after = torch.cat([p.detach().flatten() for p in net.parameters()])
    return grad, after - before, torch.stack(terms).detach()


def _building_blocks(rank):
    world_size = distributed.world_size()
    sizes = distributed.batch_sizes(SPLITS[world_size][rank])
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    z_a, z_b = (view[rows].requires_grad_() for view in _images(torch.float64))
    (normalize(z_a).pow(4) * torch.arange(1, IN_DIM + 1)).sum().backward()
    c = cross_correlation(z_a.detach(), z_b)
    c.pow(3).sum().backward()
    gathered = distributed.all_gather_rows(z_a.detach(), sizes)
    return sizes, gathered, z_a.grad, c.detach(), z_b.grad


def _refusal_of_a_batch_of_one(rank):
    z = torch.randn(1 if rank == 0 else 0, 3)
    with pytest.raises(ValueError, match=r"global batch has 1 row") as refusal:
        barlow_twins_loss(z, z)
    return str(refusal.value)


def _is_freed_once_destroyed(rank):
    group = torch.distributed.new_group()
    distributed.batch_sizes(1, group)
    alive = weakref.ref(group)
    torch.distributed.destroy_process_group(group)
    del group
    return alive() is None


def _everything(rank):
    """Processes are slow to start: one start for all that is asked of them."""
    results = {
        (dtype, form, reference): _ddp_update(rank, dtype, form, reference)
        for dtype in DTYPES
        for form in FORMS
        for reference in (1, 32)
    }
    results["building blocks"] = _building_blocks(rank)
    results["refusal"] = _refusal_of_a_batch_of_one(rank)
    results["freed"] = _is_freed_once_destroyed(rank)
    return results


@pytest.fixture(scope="module", params=sorted(SPLITS))
def processes(request):
    """Per process: (dtype, form, reference_world_size) -> (gradient, update, terms), and others."""
    return run_gloo(_everything, request.param)


def _relative_error(got, expected):
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_update_does_not_depend_on_the_number_of_processes(processes, form, dtype):
    expected, expected_terms = _reference_update()
    for result in processes:
        grad, update, terms = result[dtype, form, 1]
        assert _relative_error(grad * -LR, expected) < RTOL[dtype]
        # The update in float32 has lost digits to the weights it was added to.
        update_rtol = RTOL[dtype] if dtype == torch.float64 else 1e-5
        assert _relative_error(update, expected) < update_rtol
        torch.testing.assert_close(
            terms.double(), expected_terms, rtol=RTOL[dtype], atol=0, msg=f"{terms}"
        )
        assert torch.equal(terms, processes[0][dtype, form, 1][2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_reference_world_size_scales_the_gradient_and_nothing_else(processes, form, dtype):
    for result in processes:
        true_grad, _, true_terms = result[dtype, form, 1]
        grad, _, terms = result[dtype, form, 32]
        assert torch.equal(grad * 32, true_grad)  # a power of two: exact
        assert torch.equal(terms, true_terms)


def test_building_blocks_on_processes_equal_one_process(processes):
    world_size = len(processes)
    results = [result["building blocks"] for result in processes]
    z_a, z_b = (view.requires_grad_() for view in _images(torch.float64))
    a, b = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z_a, z_b))
    (a.pow(4) * torch.arange(1, IN_DIM + 1)).sum().backward()
    c = a.detach().T @ b / N
    c.pow(3).sum().backward()
    for sizes, gathered, _, c_seen, _ in results:
        assert sizes == tuple(SPLITS[world_size])
        assert torch.equal(gathered, z_a)
        torch.testing.assert_close(c_seen, c.detach(), rtol=1e-10, atol=1e-12)
    # The first is summed over processes by nobody but the sum rule, each row once; the second is a
    # global number that every process back-propagates, hence world_size times the true gradient.
    torch.testing.assert_close(torch.cat([r[2] for r in results]), z_a.grad, rtol=1e-9, atol=1e-11)
    grad_b = torch.cat([r[4] for r in results])
    torch.testing.assert_close(grad_b, world_size * z_b.grad, rtol=1e-9, atol=1e-11)


def test_global_batch_of_one_is_refused_on_every_process(processes):
    assert all("raise the batch size" in result["refusal"] for result in processes)


def _loss_of_gathered(rank, in_bfloat16):
    rows = slice(64 * rank, 64 * rank + 64)
    torch.manual_seed(0)
    common, *own = torch.randn(3, 128, 1024, dtype=torch.float64)
    z_a, z_b = ((common + 0.5 * view)[rows].float().requires_grad_() for view in own)
    terms = barlow_twins_loss(z_a, z_b, form="gram", gather_in_bfloat16=in_bfloat16)
    terms.loss.backward()
    return torch.stack(terms).detach().double(), torch.stack((z_a.grad, z_b.grad)).double()


def _sent_in_bfloat16(rank):
    dtypes = []
    gather = distributed.dist.all_gather_into_tensor

    def note(out, x, **kwargs):
        dtypes.append(x.dtype)
        return gather(out, x, **kwargs)

    distributed.dist.all_gather_into_tensor = note
    return (*_loss_of_gathered(rank, True), dtypes[-2:])


def test_gathering_in_bfloat16_halves_the_bytes_and_rounds_the_gradient_alone():
    torch.manual_seed(0)
    common, *own = torch.randn(3, 128, 1024, dtype=torch.float64)
    views = [(common + 0.5 * view).float().double().requires_grad_() for view in own]
    expected = equation_1(*views)
    expected.loss.backward()
    gradient = torch.stack([view.grad for view in views]) * 2  # processes
    found = run_gloo(_sent_in_bfloat16, 2)
    for terms, _, dtypes in found:
        torch.testing.assert_close(terms, torch.stack(expected).detach(), rtol=1e-5, atol=0)
        assert dtypes == [torch.bfloat16] * 2
    error = torch.cat([part[1] for part in found], 1) - gradient
    # Half of a bfloat16's last bit, 2^-9, of the rows of the other process, is half of all.
    assert 1e-4 < error.norm() / gradient.norm() < 2**-9


def test_one_process_without_a_group_communicates_nothing():
    x = torch.randn(3, 2, requires_grad=True)
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.batch_sizes(3) == (3,)
    assert distributed.all_reduce_sum(x) is x
    assert distributed.all_gather_rows(x, (3,)) is x


def test_no_group_outlives_its_destruction(processes):
    assert all(result["freed"] for result in processes)


def test_scale_gradient_keeps_the_value():
    x = torch.tensor([2.0, -3.0], requires_grad=True)
    y = distributed.scale_gradient(x, 0.25)
    y.square().sum().backward()
    assert torch.equal(y, x)
    assert torch.equal(x.grad, 0.25 * 2 * x.detach())


def _fails_on_rank_one(rank):
    if rank == 1:
        raise RuntimeError("the reason")


def test_run_gloo_raises_what_a_child_raised():
    with pytest.raises(Exception, match="the reason"):
        run_gloo(_fails_on_rank_one, 2)
