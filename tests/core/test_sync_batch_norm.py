"""The synchronised batch norm on real gloo processes against torch's plain one on the whole batch."""

import copy

import pytest
import torch
from gloo import run_gloo
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vissl_barlow import sync_batch_norm
from vissl_barlow.sync_batch_norm import SyncBatchNorm, convert

# Rows per process: unequal, one alone, and none at all.
SPLITS = {2: [5, 7], 3: [11, 1, 0]}
N, C = 12, 4
# The same sums in another order, in float64.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
STEPS = 3
SHAPES = {"2d": (N, C), "3d": (N, C, 6), "4d": (N, C, 3, 2), "5d": (N, C, 2, 3, 2)}
OPTIONS = {
    "default": {},
    "cumulative": {"momentum": None},
    "not affine": {"affine": False},
    "untracked": {"track_running_stats": False},
    "other numbers": {"momentum": 0.3, "eps": 0.1},
}
CASES = [(shape, option) for shape in SHAPES for option in OPTIONS]


def _batch(shape, step, dtype=torch.float64):
    """(x, g): rows whose mean and scale drift, far from 0, so that no process is like the batch."""
    generator = torch.Generator().manual_seed(step)
    x, g = torch.randn(2, *SHAPES[shape], generator=generator, dtype=torch.float64)
    drift = torch.linspace(1, 5, N, dtype=torch.float64).view(-1, *(1,) * (x.ndim - 1))
    return (100 + drift * (x + step)).to(dtype), (g * drift + 0.1 * x).to(dtype)


def _layer(kind, shape, option):
    plain = {"2d": nn.BatchNorm1d, "3d": nn.BatchNorm1d, "4d": nn.BatchNorm2d, "5d": nn.BatchNorm3d}
    layer = (plain[shape] if kind == "plain" else SyncBatchNorm)(C, **OPTIONS[option]).double()
    if layer.affine:
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 2, C))
            layer.bias.copy_(torch.linspace(3, -2, C))
    return layer


def _pass(layer, shape, rows, channels_last=False):
    """Outputs and gradients of several steps on `rows` of the batch, then the buffers."""
    outputs, grads = [], []
    for step in range(STEPS):
        x, g = (t[rows] for t in _batch(shape, step))
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        y = layer(x)
        y.backward(g)
        outputs.append(y.detach())
        grads.append(x.grad)
        assert y.stride() == x.stride()
    of_parameters = [p.grad for p in layer.parameters()]
    return outputs, grads, of_parameters, dict(layer.named_buffers())


def _own_rows(rank):
    split = SPLITS[dist.get_world_size()]
    return slice(sum(split[:rank]), sum(split[: rank + 1]))


def _net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(5 * 4 * 3, 6),
        nn.BatchNorm1d(6, momentum=None),
    ).double()


def _images():
    x = torch.randn(N, 2, 4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x * torch.linspace(1, 4, N, dtype=torch.float64).view(-1, 1, 1, 1)


def _net_step(net, rows, of_processes=1):
    """One step's gradients, buffers and outputs on `rows`; the loss is a sum over rows."""
    z = net(_images()[rows])
    (z.pow(3) * torch.arange(1.0, 7)).sum().backward()
    grads = [p.grad * of_processes for p in net.parameters()]
    return z.detach(), grads, [b.clone() for b in net.buffers()]


def _everything(rank):
    rows = _own_rows(rank)
    results = {case: _pass(_layer("sync", *case), case[0], rows) for case in CASES}
    results["channels last"] = _pass(_layer("sync", "4d", "default"), "4d", rows, True)
    net = DistributedDataParallel(convert(_net()), broadcast_buffers=False)
    results["net"] = _net_step(net, rows, dist.get_world_size())

    layer = _layer("sync", "4d", "default")
    alone = convert(
        nn.BatchNorm2d(C).double(), dist.new_group([rank], use_local_synchronization=True)
    )
    x = _batch("4d", 0)[0][: rank + 2]
    results["group"] = (alone(x).detach(), nn.BatchNorm2d(C).double()(x).detach())
    pair = dist.new_group([0, 1])
    if rank < 2:
        # Of three processes the third takes no part.
        joined = convert(nn.BatchNorm2d(C).double(), pair)
        results["pair"] = joined(_batch("4d", 0)[0][rank * 5 : rank * 5 + 5]).detach()
    results["eval"] = (
        layer.eval()(x).detach(),
        _layer("plain", "4d", "default").eval()(x).detach(),
    )
    results["float32"] = [
        _float32_and_lower(dtype, rows) for dtype in (torch.float32, torch.bfloat16)
    ]
    with pytest.raises(ValueError, match=r"1 value\(s\) per channel .* raise the batch size") as e:
        SyncBatchNorm(3)(torch.randn(int(rank == 0), 3))
    results["refusal"] = str(e.value)
    return results


def _float32_and_lower(dtype, rows):
    """(output, its dtype, input gradient) under autocast, of a layer whose parameters are float32."""
    layer = _layer("sync", "4d", "default").float()
    x, g = (t[rows] for t in _batch("4d", 0, dtype))
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = layer(x)
    y.backward(g)
    return y.detach(), x.grad, layer.running_mean, layer.running_var


@pytest.fixture(scope="module", params=sorted(SPLITS))
def processes(request):
    """Processes are slow to start: one start for all that is asked of them."""
    return run_gloo(_everything, request.param)


def _assert_same(results, expected, tolerance=TOLERANCE):
    outputs, grads, of_parameters, buffers = expected
    for step in range(STEPS):
        torch.testing.assert_close(
            torch.cat([r[0][step] for r in results]), outputs[step], **tolerance
        )
        torch.testing.assert_close(
            torch.cat([r[1][step] for r in results]), grads[step], **tolerance
        )
    # Each process has its own rows' share: DistributedDataParallel's average is the sum over W.
    for i, grad in enumerate(of_parameters):
        torch.testing.assert_close(sum(r[2][i] for r in results), grad, **tolerance)
    for result in results:
        assert result[3].keys() == buffers.keys()
        for name, buffer in buffers.items():
            torch.testing.assert_close(result[3][name], buffer, **tolerance)


@pytest.mark.parametrize(("shape", "option"), CASES)
def test_outputs_gradients_and_running_statistics_are_those_of_one_process(
    processes, shape, option
):
    expected = _pass(_layer("plain", shape, option), shape, slice(None))
    _assert_same([result[shape, option] for result in processes], expected)


def test_channels_last_is_kept_and_computes_the_same(processes):
    expected = _pass(_layer("plain", "4d", "default"), "4d", slice(None))
    _assert_same([result["channels last"] for result in processes], expected)


def test_update_of_a_network_under_ddp_is_that_of_one_process(processes):
    z, grads, buffers = _net_step(_net(), slice(None))
    torch.testing.assert_close(torch.cat([r["net"][0] for r in processes]), z, **TOLERANCE)
    for result in processes:
        for got, grad in zip(result["net"][1], grads):
            torch.testing.assert_close(got, grad, rtol=1e-10, atol=1e-10)
        for got, buffer in zip(result["net"][2], buffers):
            torch.testing.assert_close(got, buffer, **TOLERANCE)


def test_eval_mode_and_a_group_of_one_are_plain_batch_norm(processes):
    for result in processes:
        for kind in ("eval", "group"):
            got, expected = result[kind]
            assert torch.equal(got, expected)


def test_a_group_is_the_batch(processes):
    got = torch.cat([result["pair"] for result in processes[:2]])
    expected = nn.BatchNorm2d(C).double()(_batch("4d", 0)[0][:10])
    torch.testing.assert_close(got, expected.detach(), **TOLERANCE)


@pytest.mark.parametrize(
    ("index", "dtype", "tolerance"), [(0, torch.float32, 2e-5), (1, torch.bfloat16, 0.02)]
)
def test_lower_precisions_are_near_float64_on_the_same_input(processes, index, dtype, tolerance):
    layer = _layer("plain", "4d", "default")
    x, g = (t.double() for t in _batch("4d", 0, dtype))
    x.requires_grad_()
    y = layer(x)
    y.backward(g)
    for i, expected in enumerate((y.detach(), x.grad)):
        got = torch.cat([r["float32"][index][i] for r in processes])
        assert got.dtype == dtype
        assert (got - expected).norm() < tolerance * expected.norm()
    for result in processes:
        _, _, *running = result["float32"][index]
        for got, expected in zip(running, (layer.running_mean, layer.running_var)):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)


def test_one_value_per_channel_in_the_whole_batch_is_refused_on_every_process(processes):
    assert all("at least 2" in result["refusal"] for result in processes)


def test_statistics_far_from_zero_keep_their_digits():
    x = torch.randn(4096, 3, generator=torch.Generator().manual_seed(0)) + 1e4
    parts = [sync_batch_norm.batch_statistics(part) for part in x.split(1000)]
    pooled = sync_batch_norm.pooled_statistics(parts)
    variance, mean = torch.var_mean(x.double(), 0, correction=0)
    torch.testing.assert_close(pooled.mean, mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(pooled.variance, variance, rtol=1e-3, atol=0)


def test_a_layer_in_several_places_is_one_converted_layer():
    layer = nn.BatchNorm1d(C)
    net = nn.Sequential(layer, nn.Sequential(nn.Linear(C, C), layer), layer)
    convert(net)
    assert isinstance(net[0], SyncBatchNorm)
    assert net[2] is net[0] and net[1][1] is net[0]


def test_convert_keeps_all_there_is_and_swaps_every_layer():
    net = nn.ModuleDict(
        {
            "trunk": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=0.1, momentum=None)),
            "flat": nn.BatchNorm1d(5, affine=False),
            "deep": nn.BatchNorm3d(2, track_running_stats=False),
            "instance": nn.InstanceNorm2d(3, affine=True),
        }
    )
    net["trunk"][1].weight.requires_grad_(False)
    net["trunk"].eval()
    net["flat"].qconfig = "a qconfig"
    seen = []
    net["flat"].register_forward_hook(lambda *_: seen.append("hook"))
    before = copy.deepcopy(net.state_dict())
    parameters = list(net.parameters())

    assert convert(net, "a group") is net
    layers = [net["trunk"][1], net["flat"], net["deep"]]
    assert all(
        type(layer) is SyncBatchNorm and layer.process_group == "a group" for layer in layers
    )
    assert type(net["instance"]) is nn.InstanceNorm2d
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert (layers[0].eps, layers[0].momentum, layers[0].training) == (0.1, None, False)
    assert not layers[0].weight.requires_grad
    assert (layers[1].affine, layers[1].training, layers[1].qconfig) == (False, True, "a qconfig")
    assert (layers[2].track_running_stats, layers[2].running_mean) == (False, None)
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    convert(net, None)
    net["flat"](torch.randn(4, 5))
    assert seen == ["hook"]
    assert net["flat"].num_batches_tracked == 1


def test_state_dict_goes_to_plain_batch_norm_and_back():
    plain = nn.BatchNorm2d(4)
    plain(torch.randn(3, 4, 2, 2))
    converted = convert(copy.deepcopy(plain))
    fresh = nn.BatchNorm2d(4)
    fresh.load_state_dict(converted.state_dict())
    again = SyncBatchNorm(4)
    again.load_state_dict(fresh.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_a_layer_that_does_not_know_its_channels_is_refused():
    with pytest.raises(ValueError, match="LazyBatchNorm1d does not know its number of channels"):
        convert(nn.Sequential(nn.LazyBatchNorm1d()))


def test_input_without_channels_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\): give \(rows, channels\)"):
        SyncBatchNorm(3)(torch.randn(3))
