import math

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as some
import numpy as np
import pytest
import torch
from embeddings import EPS, LAMBDA, REGIMES, SHAPES, correlated, reference
from hypothesis import given, settings

from vissl_barlow import cpu_cache
from vissl_barlow.loss import barlow_twins_loss, cross_correlation, kernels, normalize

# What float32 is held to against float64; the rounding met is about ten times smaller.
FLOAT32_RTOL = 1e-5
# Two orders of summation of the same float64 numbers.
FLOAT64_RTOL = 1e-10
FORMS = ("gram", "correlation")


def step(z_a, z_b, **options):
    z_a, z_b = (z.detach().clone().requires_grad_() for z in (z_a, z_b))
    terms = barlow_twins_loss(z_a, z_b, **options)
    terms.loss.backward()
    return terms, (z_a.grad, z_b.grad)


def assert_equals(terms, grads, z_a, z_b, rtol, **options):
    _, expected, expected_grads = reference(z_a, z_b, **options)
    for got, want in zip(terms, expected):
        assert got.item() == pytest.approx(want.item(), rel=rtol)
    for got, want in zip(grads, expected_grads):
        assert (got.double() - want).norm() < rtol * want.norm()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n, d", SHAPES)
@pytest.mark.parametrize("regime", REGIMES, ids=lambda f: f.__name__)
def test_float32_equals_the_equations_in_float64(regime, n, d, form):
    torch.manual_seed(0)
    z_a, z_b = regime(n, d)
    assert_equals(*step(z_a, z_b, form=form), z_a, z_b, FLOAT32_RTOL)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lambda_, eps", [(0.0, EPS), (0.3, 1e-2), (LAMBDA, 0.0)])
def test_float64_equals_the_equations_and_stays_float64(lambda_, eps, form):
    torch.manual_seed(0)
    z_a, z_b = (z.double() for z in correlated(20, 30))
    terms, grads = step(z_a, z_b, form=form, lambda_=lambda_, eps=eps)
    assert terms.loss.dtype == torch.float64
    assert_equals(terms, grads, z_a, z_b, FLOAT64_RTOL, lambda_=lambda_, eps=eps)


@pytest.mark.parametrize("form", FORMS)
def test_blocks_do_not_show(monkeypatch, form):
    # 300 rows, 40 columns: not a multiple of the Gram matrices' blocks nor of these.
    for module in (cpu_cache, kernels):
        monkeypatch.setattr(module, "CACHED_ELEMENTS", 7 * 2 * 40)
    for columns in ("_GRAM_COLUMNS", "_PRODUCT_COLUMNS"):
        monkeypatch.setattr(kernels, columns, 12)
    torch.manual_seed(0)
    z_a, z_b = correlated(300, 40)
    assert_equals(*step(z_a, z_b, form=form), z_a, z_b, FLOAT32_RTOL)
    z_a, z_b = z_a.bfloat16().requires_grad_(), z_b.T.contiguous().T.requires_grad_()
    loss = barlow_twins_loss(z_a, z_b, form=form).loss
    first = torch.autograd.grad(loss, (z_a, z_b), retain_graph=True)
    second = torch.autograd.grad(loss, (z_a, z_b))
    assert all(map(torch.equal, first, second))
    _, _, expected = reference(z_a, z_b)
    for got, want, rtol in zip(
        first, expected, (2 * torch.finfo(torch.bfloat16).eps, FLOAT32_RTOL)
    ):
        assert (got.double() - want).norm() < rtol * want.norm()


def test_blocks_of_embeddings_that_were_changed_have_no_gradient(monkeypatch):
    # The backward pass reads them again.
    for module in (cpu_cache, kernels):
        monkeypatch.setattr(module, "CACHED_ELEMENTS", 7 * 2 * 40)
    monkeypatch.setattr(kernels, "_GRAM_COLUMNS", 12)
    z_a, z_b = (z.requires_grad_() for z in correlated(300, 40))
    loss = barlow_twins_loss(z_a, z_b, form="gram").loss
    with torch.no_grad():
        z_a.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("term", ["loss", "invariance", "redundancy"])
def test_each_term_has_its_own_gradient(term, form):
    torch.manual_seed(0)
    z_a, z_b = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda a, b: getattr(barlow_twins_loss(a, b, form=form), term), (z_a, z_b)
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_view_without_gradient_gets_none(form):
    z_a, z_b = (torch.randn(6, 4) for _ in range(2))
    z_a.requires_grad_()
    barlow_twins_loss(z_a, z_b, form=form).loss.backward()
    _, _, (expected, _) = reference(z_a, z_b)
    torch.testing.assert_close(z_a.grad, expected.float(), rtol=1e-4, atol=1e-6)
    assert z_b.grad is None


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_kept_gives_the_same_gradient_again(form):
    z_a, z_b = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
    loss = barlow_twins_loss(z_a, z_b, form=form).loss
    first = torch.autograd.grad(loss, (z_a, z_b), retain_graph=True)
    second = torch.autograd.grad(loss, (z_a, z_b))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("form", FORMS)
def test_reference_world_size_divides_the_gradient_only(form):
    z_a, z_b = correlated(8, 6)
    terms, grads = step(z_a, z_b, form=form)
    terms_32, grads_32 = step(z_a, z_b, form=form, reference_world_size=32)
    assert terms == terms_32
    assert all(torch.equal(g, 32 * g32) for g, g32 in zip(grads, grads_32))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_under_autocast_is_computed_in_float32(dtype, form):
    torch.manual_seed(0)
    # Sums of squares of these are beyond float16.
    z_a, z_b = ((300 * z).to(dtype).requires_grad_() for z in correlated(64, 256))
    with torch.autocast("cpu", dtype=dtype):
        terms = barlow_twins_loss(z_a, z_b, form=form)
        # Scaled as a GradScaler would: the gradients are beyond float16's resolution.
        (terms.loss * 2.0**16).backward()
        c = cross_correlation(z_a, z_b)
        assert normalize(z_a).dtype == torch.float32
    expected_c, expected, expected_grads = reference(z_a, z_b)
    for got, want in zip(terms, expected):
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(want.item(), rel=FLOAT32_RTOL)
    for z, want in zip((z_a, z_b), expected_grads):
        assert z.grad.dtype == dtype
        got = z.grad.double() / 2.0**16
        assert (got - want).norm() < 2 * torch.finfo(dtype).eps * want.norm()
    torch.testing.assert_close(c, expected_c.float(), rtol=0, atol=1e-6)


def test_mixed_dtypes_and_strides():
    torch.manual_seed(0)
    z_a, z_b = correlated(10, 12)
    z_a, z_b = z_a.bfloat16(), z_b.T.contiguous().T
    for form in FORMS:
        terms, grads = step(z_a, z_b, form=form)
        _, expected, (_, expected_grad_b) = reference(z_a, z_b)
        assert terms.loss.item() == pytest.approx(expected[0].item(), rel=FLOAT32_RTOL)
        torch.testing.assert_close(grads[1], expected_grad_b.float(), rtol=1e-4, atol=1e-6)
        assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32]


def test_cross_correlation_is_equation_2_and_differentiable():
    torch.manual_seed(0)
    z_a, z_b = (z.double().requires_grad_() for z in correlated(9, 5))
    c, _, _ = reference(z_a, z_b)
    torch.testing.assert_close(cross_correlation(z_a, z_b), c, rtol=0, atol=1e-14)
    assert not torch.allclose(c, c.T)  # or the order of the views could not be told
    assert torch.autograd.gradcheck(cross_correlation, (z_a, z_b))


@pytest.mark.parametrize("regime", REGIMES, ids=lambda f: f.__name__)
def test_normalize_gives_mean_0_and_variance_1(regime):
    torch.manual_seed(0)
    z, _ = regime(200, 30)
    got = normalize(z).double()
    z = z.double()
    want = (z - z.mean(0)) / torch.sqrt(z.var(0, unbiased=False) + EPS)
    assert (got - want).norm() < FLOAT32_RTOL * want.norm()


views = arrays.arrays(
    np.float64,
    some.tuples(some.just(2), some.integers(3, 12), some.integers(2, 12)),
    elements=some.floats(-100, 100),
    fill=some.nothing(),
).map(lambda z: torch.from_numpy(z) + torch.randn(z.shape, dtype=torch.float64))


@settings(max_examples=30)
@given(views, some.floats(0.01, 100), some.floats(-1000, 1000), some.sampled_from(FORMS))
def test_affine_maps_of_a_dimension_do_not_change_the_loss(z, scale, shift, form):
    scales = torch.logspace(0, 1, z.shape[2], base=scale, dtype=z.dtype)
    before = barlow_twins_loss(*z, eps=0.0, form=form)
    after = barlow_twins_loss(z[0] * scales + shift, z[1], eps=0.0, form=form)
    # Dimensions of 1e-2 on a shift of 1e3 keep ten digits.
    torch.testing.assert_close(after, before, rtol=1e-7, atol=1e-9)


@settings(max_examples=30)
@given(views, some.sampled_from(FORMS))
def test_views_are_interchangeable(z, form):
    terms, (grad_a, grad_b) = step(*z, form=form)
    swapped, (swapped_b, swapped_a) = step(z[1], z[0], form=form)
    torch.testing.assert_close(swapped, terms, rtol=FLOAT64_RTOL, atol=1e-12)
    torch.testing.assert_close((swapped_a, swapped_b), (grad_a, grad_b), rtol=1e-7, atol=1e-10)


@settings(max_examples=30)
@given(views)
def test_forms_agree(z):
    gram, gram_grads = step(*z, form="gram")
    correlation, correlation_grads = step(*z, form="correlation")
    torch.testing.assert_close(gram, correlation, rtol=FLOAT64_RTOL, atol=1e-12)
    torch.testing.assert_close(gram_grads, correlation_grads, rtol=1e-7, atol=1e-10)


def test_identical_uncorrelated_views_have_no_loss():
    hadamard = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1.0]])
    z = hadamard[:, 1:]
    for form in FORMS:
        # 1 - C_ii is eps / (1 + eps).
        terms = barlow_twins_loss(z, z, form=form)
        assert terms.invariance.item() == pytest.approx(3 * (EPS / (1 + EPS)) ** 2, rel=1e-5)
        assert terms.redundancy.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"z_a": torch.randn(4)}, r"z_a has shape \(4,\): give a matrix"),
        ({"z_b": torch.randn(2, 4, 3)}, r"z_b has shape \(2, 4, 3\): give a matrix"),
        ({"z_b": torch.randn(4, 2)}, r"z_a has shape \(4, 3\) and z_b \(4, 2\): give both views"),
        ({"z_b": torch.ones(4, 3, dtype=torch.int64)}, r"z_b has dtype torch.int64: give floating"),
        ({"z_a": torch.randn(1, 3), "z_b": torch.randn(1, 3)}, r"global batch has 1 row.*raise"),
        ({"form": "c"}, r"form='c' is unknown: use one of auto, correlation, gram"),
        ({"lambda_": -1.0}, r"lambda_=-1.0 must be finite and at least 0"),
        ({"lambda_": math.nan}, r"lambda_=nan must be finite"),
        ({"lambda_": math.inf}, r"lambda_=inf must be finite"),
        ({"eps": -1e-5}, r"eps=-1e-05 must be finite and at least 0"),
        ({"reference_world_size": 0}, r"reference_world_size=0 must be at least 1"),
        ({"gather_in_bfloat16": "no"}, r"gather_in_bfloat16='no' must be true or false"),
        ({"reference_world_size": math.nan}, r"reference_world_size=nan must be at least 1"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_with_a_remedy(change, message):
    options = {"z_a": torch.randn(4, 3), "z_b": torch.randn(4, 3), **change}
    z_a, z_b = options.pop("z_a"), options.pop("z_b")
    with pytest.raises(ValueError, match=message):
        barlow_twins_loss(z_a, z_b, **options)


def test_no_element_of_the_large_matrices_is_read_by_the_host(monkeypatch):
    # Stands in for a device: reading a value there would wait for it.
    z_a, z_b = (torch.randn(8, 6, requires_grad=True) for _ in range(2))
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the host read a tensor"))
    for form in FORMS:
        barlow_twins_loss(z_a, z_b, form=form).loss.backward()
