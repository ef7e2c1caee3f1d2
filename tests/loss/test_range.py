"""What float32 does not hold has the right loss or NaN, and what is no embedding is refused."""

import numpy as np
import pytest
import torch
from embeddings import EPS, LAMBDA, correlated, reference

from vissl_barlow.loss import (
    OBJECTIVES,
    barlow_twins_loss,
    byol_loss,
    cross_correlation,
    equation_1,
    equation_2,
    normalize,
    simsiam_loss,
)

FORMS = ("correlation", "gram")
WAYS = {
    **{form: lambda a, b, form=form: barlow_twins_loss(a, b, form=form) for form in FORMS},
    "equation": lambda a, b: equation_1(a, b, lambda_=LAMBDA, eps=EPS),
}
N, D = 24, 7


def scaled(factor: float, dimensions=slice(None), dtype=torch.float32) -> list[torch.Tensor]:
    """Two views, some of whose dimensions are scaled, and on a shift of as much."""
    torch.manual_seed(0)
    views = correlated(N, D)
    for z in views:
        z[:, dimensions] = z[:, dimensions] * factor + factor
    return [z.to(dtype).requires_grad_() for z in views]


def assert_right(terms, views) -> None:
    """Values and gradients of `terms` are those of the equations in float64, which holds them all."""
    _, expected, gradients = reference(*views)
    torch.testing.assert_close([t.double() for t in terms], list(expected), rtol=1e-4, atol=1e-5)
    for z, gradient in zip(views, gradients):
        # The shortest dimension's gradient is the largest.
        error = (z.grad.double() - gradient).abs().amax() / gradient.abs().amax()
        assert error < 1e-3


@pytest.mark.parametrize("dimensions", [slice(None), [2]], ids=["all", "one"])
@pytest.mark.parametrize("factor", [1e15, 1e17, 5e17, 1e18])
@pytest.mark.parametrize("way", WAYS)
def test_large_embeddings_have_the_right_loss(way, factor, dimensions):
    views = scaled(factor, dimensions)
    terms = WAYS[way](*views)
    terms.loss.backward()
    assert_right(terms, views)


@pytest.mark.parametrize("dimensions", [slice(None), [2]], ids=["all", "one"])
@pytest.mark.parametrize("factor", [2e19, 1e25, 1e37, 1e38])
@pytest.mark.parametrize("way", WAYS)
def test_larger_embeddings_have_none(way, factor, dimensions):
    views = scaled(factor, dimensions)
    terms = WAYS[way](*views)
    terms.loss.backward()
    assert all(term.isnan() for term in terms)
    assert all(z.grad.isnan().any() for z in views)


@pytest.mark.parametrize("factor", [1.3e18, 1.8e18, 3.2e18, 5.6e18, 1e19])
@pytest.mark.parametrize("way", WAYS)
def test_between_them_it_is_right_or_none(way, factor):
    views = scaled(factor)
    terms = WAYS[way](*views)
    terms.loss.backward()
    if not terms.loss.isnan():
        assert_right(terms, views)


@pytest.mark.parametrize("factor", [1e-14, 1e-16, 1e-18, 1e-20, 1e-22, 1e-30])
@pytest.mark.parametrize("form", FORMS)
def test_without_an_eps_small_embeddings_have_the_right_loss_or_none(form, factor):
    torch.manual_seed(0)
    views = [(z * factor).float().requires_grad_() for z in correlated(N, D)]
    terms = barlow_twins_loss(*views, form=form, eps=0.0)
    _, expected, _ = reference(*views, eps=0.0)
    right = [
        got.item() == pytest.approx(want.item(), rel=1e-4) for got, want in zip(terms, expected)
    ]
    assert all(right) if factor > 1e-15 else all(right) or all(term.isnan() for term in terms)


def test_correlations_and_normalised_views_are_right_or_none():
    z_a, z_b = scaled(1e18)
    torch.testing.assert_close(cross_correlation(z_a, z_b), reference(z_a, z_b)[0].float())
    wide = z_a.double()
    wide = (wide - wide.mean(0)) / wide.std(0, correction=0)
    torch.testing.assert_close(normalize(z_a), wide.float(), rtol=1e-5, atol=1e-5)
    z_a, z_b = scaled(1e20)
    for matrix in (cross_correlation(z_a, z_b), equation_2(z_a, z_b), normalize(z_a)):
        assert matrix.isnan().all()


def test_float64_holds_what_float32_does_not():
    views = scaled(1e30, dtype=torch.float64)
    for way in WAYS.values():
        torch.testing.assert_close(list(way(*views)), list(reference(*views)[1]))


MATRIX = torch.randn(6, 3)
UNSUPPORTED = {
    "list": (MATRIX.tolist(), "is a list: give a torch.Tensor"),
    "numpy": (np.zeros((6, 3), np.float32), "is a ndarray: give a torch.Tensor"),
    "none": (None, "is a NoneType: give a torch.Tensor"),
    "sparse": (MATRIX.to_sparse(), "is a tensor of layout sparse_coo: give a dense one"),
    "nested": (
        torch.nested.nested_tensor([MATRIX], layout=torch.jagged),
        "is a tensor of layout nested",
    ),
    "meta": (MATRIX.to("meta"), "is on the device meta, which holds no numbers"),
    "float8": (MATRIX.to(torch.float8_e4m3fn), "has dtype torch.float8_e4m3fn: give floating"),
    "complex": (MATRIX + 0j, "has dtype torch.complex64: give floating-point embeddings"),
    "no dimensions": (MATRIX[:, :0], r"has shape \(6, 0\): give a matrix"),
}
LOSSES = {
    "barlow_twins": barlow_twins_loss,
    "equation_1": equation_1,
    "equation_2": equation_2,
    "cross_correlation": cross_correlation,
    **OBJECTIVES,
    "hsic": lambda a, b: OBJECTIVES["hsic"](a, b, lambda_=1.0),
}


@pytest.mark.parametrize(("z", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_is_no_embedding_is_refused_by_its_name(z, message):
    for loss in LOSSES.values():
        with pytest.raises(ValueError, match=f"z_a {message}"):
            loss(z, MATRIX)
        with pytest.raises(ValueError, match=f"z_b {message}"):
            loss(MATRIX, z)
    with pytest.raises(ValueError, match=f"^z {message}"):
        normalize(z)
    for loss in (byol_loss, simsiam_loss):
        for place, name in enumerate(("p_a", "p_b", "target_a", "target_b")):
            given = [MATRIX] * 4
            given[place] = z
            with pytest.raises(ValueError, match=f"{name} {message}"):
                loss(*given)
