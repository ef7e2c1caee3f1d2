"""Laws that hold for all inputs, extreme ones included: loss, LARS, schedule.

Those of each module that need no extremes are with its own tests.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from vissl_barlow.lars import LARS
from vissl_barlow.loss import barlow_twins_loss
from vissl_barlow.schedule import warmup_cosine

FORMS = ("correlation", "gram")
# Two forms of one sum in float32 over at most 12 dimensions: each entry of C is rounded a few times.
FLOAT32_RTOL = 1e-3
# 10**n: from where float32's squares vanish to where they overflow.
exponents = some.integers(-18, 18)
shapes = some.tuples(some.integers(2, 9), some.integers(1, 12))


def embeddings(shape, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator).requires_grad_() for _ in range(2))


@settings(deadline=None, max_examples=60)
@given(shapes, some.integers(0, 99), exponents, some.sampled_from(FORMS))
def test_loss_and_gradient_are_finite_at_any_scale(shape, seed, exponent, form):
    z_a, z_b = (z.detach() * 10.0**exponent for z in embeddings(shape, seed))
    z_a.requires_grad_()
    loss = barlow_twins_loss(z_a, z_b, form=form).loss
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(z_a.grad).all()
    # |C| is at most 1 everywhere, and 0 where the batch carries nothing; a sum that the Gram form
    # gets as a difference may round below 0.
    dimensions = shape[1]
    bound = 4 * dimensions + 5e-3 * dimensions**2
    assert -FLOAT32_RTOL <= loss <= bound * (1 + FLOAT32_RTOL)


@settings(deadline=None, max_examples=60)
@given(shapes, some.integers(0, 99), some.data(), exponents, some.sampled_from(FORMS))
def test_constant_dimensions_cost_one_each_and_get_a_finite_gradient(
    shape, seed, data, exponent, form
):
    z_a, z_b = (z.detach() for z in embeddings(shape, seed))
    constant = data.draw(some.sets(some.integers(0, shape[1] - 1), min_size=1))
    for z in (z_a, z_b):
        z[:, sorted(constant)] = 10.0**exponent
    z_a.requires_grad_()
    terms = barlow_twins_loss(z_a, z_b, form=form)
    terms.loss.backward()
    assert torch.isfinite(z_a.grad).all()
    if len(constant) == shape[1]:
        # A collapsed batch: C is 0 and equation 1 leaves the D ones of its first sum.
        assert terms.invariance.item() == pytest.approx(shape[1], rel=FLOAT32_RTOL)
        assert terms.redundancy.item() == pytest.approx(0, abs=FLOAT32_RTOL)


@settings(deadline=None, max_examples=30)
@given(shapes, some.integers(0, 99), some.sampled_from(["nan", "inf", "-inf"]), some.data())
def test_a_number_that_is_none_is_never_hidden(shape, seed, number, data):
    z_a, z_b = (z.detach() for z in embeddings(shape, seed))
    z_a[data.draw(some.integers(0, shape[0] - 1)), 0] = float(number)
    for form in FORMS:
        assert not torch.isfinite(barlow_twins_loss(z_a, z_b, form=form).loss)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_without_a_correlation_is_refused(rows):
    z = torch.zeros(rows, 4)
    with pytest.raises(ValueError, match=r"2"):
        barlow_twins_loss(z, z)


@settings(deadline=None, max_examples=40)
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


@settings(deadline=None, max_examples=20)
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
