"""Laws of LARS and of the schedule that hold for all inputs, extreme ones included."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from vissl_barlow.lars import LARS
from vissl_barlow.schedule import warmup_cosine


@settings(max_examples=40)
@given(
    some.floats(1e-8, 1e3),
    some.integers(-5, 5),
    some.integers(-5, 5),
    some.floats(0, 0.1),
    some.integers(0, 99),
)
def test_a_first_lars_step_is_as_long_as_the_trust_says(lr, weight_exp, grad_exp, decay, seed):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(3, 4, generator=generator, dtype=torch.float64) * 10.0**weight_exp
    weight = nn.Parameter(start.clone())
    gradient = torch.randn(3, 4, generator=generator, dtype=torch.float64) * 10.0**grad_exp
    weight.grad = gradient
    LARS([weight], lr, weight_decay=decay, trust_coefficient=1e-3).step()
    moved = (start - weight.detach()).norm().item()
    # Eta times the weight's norm times the rate, whatever the gradient's size. The difference from
    # `start` cannot be finer than its last bit, nor the ratio of weight to gradient than that of 1:
    # the CPU's fused kernel takes it as the difference from 1.
    eps = torch.finfo(torch.float64).eps
    ratio = 1e-3 * start.norm().item() / (gradient + decay * start).norm().item()
    expected = lr * 1e-3 * start.norm().item()
    assert moved == pytest.approx(
        expected, rel=1e-9 + 2 * eps / ratio, abs=8 * eps * start.norm().item()
    )


@settings(max_examples=20)
@given(some.integers(0, 99), some.sampled_from([(3, 4), (5,)]), some.integers(1, 4))
def test_lars_moves_nothing_without_a_gradient_and_resumes_bit_for_bit(seed, shape, steps):
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(shape, generator=generator) for _ in range(2 * steps)]
    start = torch.randn(shape, generator=generator)

    def optimizer(value):
        parameter = nn.Parameter(value.clone())
        options = dict(momentum=0.9, weight_decay=1e-6, bias_lr_scale=0.024)
        return parameter, LARS([parameter], 0.2, **options)

    def run(parameter, lars, gradients):
        for gradient in gradients:
            parameter.grad = gradient.clone()
            lars.step()

    whole, lars = optimizer(start)
    lars.step()
    assert torch.equal(whole, start)
    run(whole, lars, gradients)
    first, before = optimizer(start)
    run(first, before, gradients[:steps])
    second, after = optimizer(first.detach())
    after.load_state_dict(before.state_dict())
    run(second, after, gradients[steps:])
    assert torch.equal(second, whole)


def test_loss_scaling_skips_an_overflown_step_and_trains_on():
    weight = nn.Parameter(torch.ones(2, 3))
    lars, scaler = LARS([weight], 0.1), torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def step(factor: float) -> None:
        lars.zero_grad()
        scaler.scale(weight.sum() * factor).backward()
        scaler.step(lars)
        scaler.update()

    step(1e35)  # 65536 times that is inf
    assert torch.equal(weight, torch.ones(2, 3)) and not lars.state[weight]
    assert scaler.get_scale() == 2.0**15
    step(1.0)
    # Equal weights and equal gradients: each moves by rate times eta.
    torch.testing.assert_close(weight.detach(), torch.full((2, 3), 1 - 0.1 * 1e-3))


@given(some.floats(0, 1, exclude_max=True), some.floats(0, 0.9), some.floats(0, 1))
def test_the_schedule_stays_between_its_ends_and_turns_once(progress, warmup, end_factor):
    value = warmup_cosine(progress, warmup=warmup, end_factor=end_factor)
    assert 0 <= value <= 1
    if progress >= warmup:
        assert end_factor - 1e-12 <= value
    later = progress + (1 - progress) / 2
    if later < 1:
        change = warmup_cosine(later, warmup=warmup, end_factor=end_factor) - value
        if later < warmup:
            assert change >= 0
        elif progress >= warmup:
            assert change <= 1e-12


@given(some.one_of(some.just(math.nan), some.floats(max_value=-1e-9), some.floats(1.001)))
def test_the_schedule_refuses_progress_that_is_none(progress):
    with pytest.raises(ValueError, match="progress"):
        warmup_cosine(progress, warmup=0.1, end_factor=0.001)
