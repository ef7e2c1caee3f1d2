import copy
import functools
import math

import pytest
import torch
from torch import nn
from torch.distributed.fsdp._common_utils import _set_fsdp_flattened

from vissl_barlow.lars import LARS

# float64 against float64: what 25 steps of rounding can add up to.
FLOAT64_TOLERANCE = 1e-12
# float32 against float64: rounding of about 25 steps of 1e-7 each.
FLOAT32_TOLERANCE = 2e-6
# float32 sums of 4096 equal values, whose rounding errors all have one sign.
LARGE_NORM_TOLERANCE = 1e-5
# A trust ratio of 1e-6 kept as its difference from 1 in float64.
SCALE_TOLERANCE = 1e-8
# bfloat16 keeps 8 bits: one rounding of the result.
BFLOAT16_TOLERANCE = 2**-8


def parameters(dtype=torch.float64, seed=0):
    """A convolution, a matrix, a bias and a scalar."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3, 3, 3), (5, 7), (6,), ()]
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in shapes
    ]


def set_gradients(params, step):
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def loop_reference(params, gradients, lrs, momentum, weight_decay, trust, bias_lr_scale):
    """Section 2.2 one parameter and one step at a time, in float64."""
    results = []
    for i, p in enumerate(params):
        p = p.detach().double()
        velocity = torch.zeros_like(p)
        for lr, gradient in zip(lrs, gradients):
            d = gradient[i].double()
            if p.ndim > 1:
                d = d + weight_decay * p
                norm, d_norm = math.sqrt((p * p).sum()), math.sqrt((d * d).sum())
                d = d * (trust * norm / d_norm if norm > 0 and d_norm > 0 else 1.0)
            else:
                lr = lr * bias_lr_scale
            velocity = momentum * velocity + d
            p = p - lr * velocity
        results.append(p)
    return results


def test_two_steps_by_hand():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    bias = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = LARS(
        [weight, bias],
        lr=2.0,
        momentum=0.5,
        weight_decay=1.0,
        trust_coefficient=0.1,
        bias_lr_scale=0.25,
    )
    # Weights: g = (3, 4) makes d = (6, 8), |d| = 10, |p| = 5; q = 0.1 * 5 / 10 = 0.05; m = (0.3, 0.4);
    # p = (3, 4) - 2 m = (2.4, 3.2).
    # Biases: m = g = (4, 8); p = (1, -2) - 0.5 m = (-1, -6).
    weight.grad, bias.grad = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([4.0, 8.0]).double()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[2.4, 3.2]]).double())
    torch.testing.assert_close(bias.detach(), torch.tensor([-1.0, -6.0]).double())
    # Weights: g = -p + (0, 8) makes d = (0, 8); q = 0.1 * 4 / 8 = 0.05; m = (0.15, 0.2) + (0, 0.4);
    # p = (2.4, 3.2) - 2 (0.15, 0.6) = (2.1, 2.0). Biases: m = (2, 4) + 0; p = (-1, -6) - (1, 2).
    weight.grad = torch.tensor([[-2.4, 4.8]]).double()
    bias.grad = torch.zeros(2).double()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[2.1, 2.0]]).double())
    torch.testing.assert_close(bias.detach(), torch.tensor([-2.0, -8.0]).double())


def contiguous(tensor):
    return tensor


def channels_last(tensor):
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, FLOAT64_TOLERANCE), (torch.float32, FLOAT32_TOLERANCE)],
)
def test_trajectory_is_the_loops(dtype, tolerance, weight_decay, momentum, layout):
    options = {"momentum": momentum, "weight_decay": weight_decay, "bias_lr_scale": 0.024}
    start = parameters(dtype)
    params = [nn.Parameter(layout(p.detach().clone())) for p in start]
    lrs = [0.02 * (1 + math.sin(step)) for step in range(25)]
    optimizer = LARS(params, lr=0.0, trust_coefficient=0.02, **options)
    gradients = []
    for step, lr in enumerate(lrs):
        set_gradients(params, step)  # contiguous, whatever the layout of the parameter
        gradients.append([p.grad.clone() for p in params])
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    for p, expected in zip(params, loop_reference(start, gradients, lrs, trust=0.02, **options)):
        torch.testing.assert_close(p.double(), expected, rtol=tolerance, atol=tolerance)


def test_adaptation_is_exact_for_large_matrices():
    # One float32 sum over as many elements, as in torch's own norm, is off by 1e-3.
    weight = nn.Parameter(torch.full((4096, 4096), 0.1))
    weight.grad = torch.eye(4096)
    LARS([weight], lr=1.0, trust_coefficient=1.0).step()
    # |p| = 4096 * 0.1 and |g| = sqrt(4096), so q = 6.4.
    assert weight[0, 0].item() == pytest.approx(0.1 - 6.4, rel=LARGE_NORM_TOLERANCE)
    assert weight[0, 1].item() == pytest.approx(0.1)


@pytest.mark.parametrize("zero", ["weights", "gradients"])
def test_a_zero_norm_means_no_adaptation(zero):
    weight, gradient = torch.ones(2, 3), torch.full((2, 3), 2.0)
    (weight if zero == "weights" else gradient).zero_()
    parameter = nn.Parameter(weight.clone())
    parameter.grad = gradient.clone()
    LARS([parameter], lr=0.5).step()
    torch.testing.assert_close(parameter.detach(), weight - 0.5 * gradient)


def test_a_clipped_rate_is_no_larger_than_the_rate_itself():
    """As solo-learn's `clip_lr`, apex's LARC: q = min(trust |p| / |d| / lr, 1)."""
    # |p| = 5 and |d| = 50 give 0.02 x 5 / 50 = 0.002: below a rate of 0.5, above one of 0.001.
    for rate, factor in ((0.5, 0.002), (0.001, 0.001)):
        weight = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
        weight.grad = torch.tensor([[30.0, 40.0]], dtype=torch.float64)
        LARS([weight], rate, momentum=0.0, trust_coefficient=0.02, clip=True).step()
        moved = torch.tensor([[3.0, 4.0]], dtype=torch.float64) * (1 - 10 * factor)
        torch.testing.assert_close(weight.detach(), moved, rtol=0, atol=FLOAT64_TOLERANCE)
    # At the first step of a warm-up the rate is 0.
    weight.grad = torch.ones_like(weight)
    before = weight.detach().clone()
    LARS([weight], 0.0, momentum=0.9, clip=True).step()
    assert torch.equal(weight, before)


def test_states_from_before_clipping_load():
    optimizer = LARS(parameters(), 0.1, clip=True)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["clip"]
    optimizer.load_state_dict(state)
    assert [group["clip"] for group in optimizer.param_groups] == [False]


def test_weights_ignore_the_gradients_scale_and_biases_do_not():
    runs = {}
    for scale in (1.0, 1024.0):  # a power of two, exact in floating point
        params = parameters()
        optimizer = LARS(params, lr=0.1)
        for step in range(3):
            set_gradients(params, step)
            for p in params:
                p.grad.mul_(scale)
            optimizer.step()
        runs[scale] = params
    start = parameters()
    for before, small, large in zip(start, runs[1.0], runs[1024.0]):
        factor = 1.0 if before.ndim > 1 else 1024.0
        torch.testing.assert_close(
            large - before, factor * (small - before), rtol=SCALE_TOLERANCE, atol=0
        )


def test_state_dict_resumes_bit_for_bit(tmp_path):
    def train(params, optimizer, steps):
        for step in steps:
            set_gradients(params, step)
            optimizer.step()

    options = {"lr": 0.2, "weight_decay": 1e-4, "bias_lr_scale": 0.024}
    params = parameters(torch.float32)
    optimizer = LARS(params, **options)
    train(params, optimizer, range(3))
    saved = copy.deepcopy(params)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    train(params, optimizer, range(3, 6))

    resumed = LARS(saved, lr=9.0)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(saved, resumed, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(params, saved))


def test_groups_keep_their_own_options_and_idle_parameters_stay():
    first, second, idle = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    optimizer = LARS([{"params": [first, idle], "weight_decay": 0.0}], lr=1.0, weight_decay=0.5)
    optimizer.add_param_group({"params": [second], "lr": 0.0})
    for p in (first, second):
        p.grad = torch.eye(2)
    optimizer.step()
    # The first group has no decay.
    for p, update in ((first, torch.eye(2)), (second, torch.eye(2) + 0.5)):
        trust = 1e-3 * 2 / update.norm()
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], trust * update)
    assert not torch.equal(first, torch.ones(2, 2))
    assert torch.equal(second, torch.ones(2, 2))
    assert torch.equal(idle, torch.ones(2, 2))
    assert idle not in optimizer.state


def test_mixed_dtypes_match_the_loop():
    tolerances = {
        torch.bfloat16: BFLOAT16_TOLERANCE,
        torch.float32: FLOAT32_TOLERANCE,
        torch.float64: FLOAT64_TOLERANCE,
    }
    params = [p for dtype in tolerances for p in parameters(dtype)]
    set_gradients(params, 0)
    start, gradients = copy.deepcopy(params), [[p.grad.clone() for p in params]]
    LARS(params, lr=0.1, weight_decay=0.01, trust_coefficient=0.02).step()
    expected = loop_reference(start, gradients, [0.1], 0.9, 0.01, 0.02, 1.0)
    for p, reference in zip(params, expected):
        tolerance = tolerances[p.dtype]
        torch.testing.assert_close(p.double(), reference, rtol=tolerance, atol=tolerance)


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert (weight < 1).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", "0.2"),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1e-6),
        ("weight_decay", math.inf),
        ("trust_coefficient", 0.0),
        ("clip", 1),
        ("bias_lr_scale", -1.0),
    ],
)
def test_bad_hyper_parameters_are_named(name, value):
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        LARS([weight], **{"lr": 0.1, name: value})
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        LARS([{"params": [weight], name: value}], lr=0.1)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"dense gradients.*\(4, 3\)"):
        LARS(embedding.parameters(), lr=0.1).step()


def test_parameters_that_fsdp_has_flattened_are_refused():
    optimizer = LARS([nn.Parameter(torch.ones(2, 2))], lr=0.1)
    flat = nn.Parameter(torch.ones(12))
    _set_fsdp_flattened(flat)
    with pytest.raises(ValueError, match=r"FullyShardedDataParallel.*ZeroRedundancyOptimizer"):
        optimizer.add_param_group({"params": flat})
    with pytest.raises(ValueError, match="updated as biases"):
        LARS([flat], lr=0.1)


@pytest.mark.gpu
def test_a_cuda_step_is_the_loops_and_never_waits_for_the_device():
    options = {"momentum": 0.9, "weight_decay": 0.01, "bias_lr_scale": 0.024}
    start = parameters()
    params = [nn.Parameter(p.detach().cuda()) for p in start]
    optimizer = LARS(params, lr=0.1, trust_coefficient=0.02, **options)
    gradients = []
    for step in range(3):
        set_gradients(start, step)
        gradients.append([p.grad.clone() for p in start])
        for p, gradient in zip(params, gradients[-1]):
            p.grad = gradient.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for p, expected in zip(
        params, loop_reference(start, gradients, [0.1] * 3, trust=0.02, **options)
    ):
        tolerance = FLOAT64_TOLERANCE
        torch.testing.assert_close(p.detach().cpu(), expected, rtol=tolerance, atol=tolerance)


def test_a_compiled_training_step_updates_as_any_other():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    images = torch.randn(5, 4)
    left = []
    for compile in (lambda step: step, functools.partial(torch.compile, backend="aot_eager")):
        model = copy.deepcopy(net)
        optimizer = LARS(model.parameters(), 0.5, weight_decay=0.1, bias_lr_scale=0.1)

        def step(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()

        compiled = compile(step)
        compiled()
        compiled()
        left.append(model.state_dict())
    torch.testing.assert_close(*left)
