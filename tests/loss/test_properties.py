"""Laws of the loss that hold for all inputs, extreme ones included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from vissl_barlow.loss import barlow_twins_loss

FORMS = ("correlation", "gram")
# Two forms of one sum in float32 over at most 12 dimensions: each entry of C is rounded a few times.
FLOAT32_RTOL = 1e-3
# 10**n: from where float32's squares vanish to where they overflow.
exponents = some.integers(-18, 18)
shapes = some.tuples(some.integers(2, 9), some.integers(1, 12))


def embeddings(shape, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator).requires_grad_() for _ in range(2))


@settings(max_examples=60)
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


@settings(max_examples=60)
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


@settings(max_examples=30)
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
