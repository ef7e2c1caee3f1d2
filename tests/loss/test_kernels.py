"""The kernels against their definition in `barlow_twins.py`, on one process and on several."""

import math

import pytest
import torch
from embeddings import EPS, LAMBDA, REGIMES, SHAPES, correlated, nearly_identical, reference
from gloo import run_gloo

from vissl_barlow.loss import (
    LossTerms,
    barlow_twins_loss,
    cross_correlation,
    equation_1,
    equation_2,
    normalize,
)
from vissl_barlow.loss.barlow_twins import normalized_along_batch

FORMS = ("gram", "correlation")
# Two orders of summation of the same float64 numbers. Where the views are nearly identical the
# definition loses digits in float64 too: it takes 1 - C_ii, about 1e-8, from two numbers near 1.
RTOL = {regime: 1e-10 for regime in REGIMES} | {nearly_identical: 1e-7}
# What float32 is held to against float64.
FLOAT32_RTOL = 1e-5
REFERENCE_WORLD_SIZE = 4
SHARES = {1: [12], 2: [5, 7]}


def _relative_error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def _views(regime, n, d):
    torch.manual_seed(0)
    return [z.double() for z in regime(n, d)]


def _values_and_gradients(compute, views):
    """Of each of the terms: its value, and its gradients with respect to both views."""
    views = [z.detach().clone().requires_grad_() for z in views]
    terms = compute(*views)
    return {
        name: (term.detach(), *torch.autograd.grad(term, views, retain_graph=True))
        for name, term in terms._asdict().items()
    }


def test_the_equations_by_hand():
    # Mean 0 along the batch; lengths 2, sqrt(20) and 2, sqrt(8).
    z_a = torch.tensor([[1, 1], [1, 3], [-1, -1], [-1, -3.0]], dtype=torch.float64)
    z_b = torch.tensor([[1, 0], [-1, 2], [1, -2], [-1, 0.0]], dtype=torch.float64) + 5
    c = equation_2(z_a, z_b, eps=0.0)
    expected = [[0, 4 / (2 * math.sqrt(8))], [0, 8 / (math.sqrt(20) * math.sqrt(8))]]
    torch.testing.assert_close(c, torch.tensor(expected, dtype=torch.float64))
    loss, invariance, redundancy = equation_1(z_a, z_b, lambda_=0.5, eps=0.0)
    assert invariance.item() == pytest.approx(1 + (1 - 8 / math.sqrt(160)) ** 2)
    assert redundancy.item() == pytest.approx(1 / 2)
    assert loss.item() == pytest.approx(1 + (1 - 8 / math.sqrt(160)) ** 2 + 1 / 4)


@pytest.mark.parametrize("n, d", SHAPES)
def test_the_equations_are_those_of_the_reference(n, d):
    views = [z.requires_grad_() for z in _views(correlated, n, d)]
    expected_c, expected, expected_grads = reference(*views)
    terms = equation_1(*views, lambda_=LAMBDA, eps=EPS)
    torch.testing.assert_close(equation_2(*views, eps=EPS), expected_c, rtol=0, atol=1e-13)
    for got, want in zip(terms, expected):
        assert got.item() == pytest.approx(want.item(), rel=1e-11)
    for got, want in zip(torch.autograd.grad(terms.loss, views), expected_grads):
        assert _relative_error(got, want) < 1e-11


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n, d", SHAPES)
@pytest.mark.parametrize("regime", REGIMES, ids=lambda f: f.__name__)
def test_each_term_and_its_gradients_equal_the_definition(regime, n, d, form):
    views = _views(regime, n, d)
    ours = _values_and_gradients(lambda a, b: barlow_twins_loss(a, b, form=form), views)
    for name, wanted in _values_and_gradients(equation_1, views).items():
        for got, want in zip(ours[name], wanted):
            assert _relative_error(got, want) < RTOL[regime], name


def test_c_and_the_normalized_views_equal_the_definition():
    z_a, z_b = _views(correlated, 20, 7)
    normalized = normalized_along_batch(z_a, EPS) * math.sqrt(20)
    torch.testing.assert_close(normalize(z_a, eps=EPS), normalized, rtol=0, atol=1e-12)
    c = equation_2(z_a, z_b, eps=0.1)
    torch.testing.assert_close(cross_correlation(z_a, z_b, eps=0.1), c, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_the_kernels_keep_digits_the_definition_loses(form):
    torch.manual_seed(0)
    views = nearly_identical(140, 600)
    _, (_, wanted, _), _ = reference(*views)
    assert _relative_error(equation_1(*views).invariance, wanted) > 1e-3
    assert _relative_error(barlow_twins_loss(*views, form=form).invariance, wanted) < FLOAT32_RTOL


def _on_own_rows(rank, shares, form):
    views = [z.split(shares)[rank] for z in _views(correlated, 12, 9)]

    def compute(a, b):
        return barlow_twins_loss(
            a, b, lambda_=0.1, eps=0.01, form=form, reference_world_size=REFERENCE_WORLD_SIZE
        )

    return _values_and_gradients(compute, views)


def _on_own_rows_in_each_form(rank, shares):
    return {form: _on_own_rows(rank, shares, form) for form in FORMS}


@pytest.mark.parametrize("world_size", SHARES)
def test_processes_of_unequal_shares_compute_the_definition_of_the_global_batch(world_size):
    on_each = run_gloo(_on_own_rows_in_each_form, world_size, SHARES[world_size])
    views = _views(correlated, 12, 9)
    definition = _values_and_gradients(lambda a, b: equation_1(a, b, lambda_=0.1, eps=0.01), views)
    for form in FORMS:
        for name in LossTerms._fields:
            value, *gradients = definition[name]
            for process in on_each:
                assert _relative_error(process[form][name][0], value) < 1e-10
            for view, gradient in enumerate(gradients, start=1):
                # DistributedDataParallel takes the mean over processes of the parameters' gradients.
                got = torch.cat([process[form][name][view] for process in on_each]) / world_size
                assert _relative_error(got, gradient / REFERENCE_WORLD_SIZE) < 1e-10


@pytest.mark.parametrize("form", FORMS)
def test_compiling_a_step_leaves_the_kernels_out(form):
    compiled = []

    def backend(graph, _):
        compiled.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    def step(z_a, z_b):
        return barlow_twins_loss(torch.tanh(z_a), torch.tanh(z_b), form=form).loss

    torch.manual_seed(0)
    views = [z.requires_grad_() for z in correlated(6, 10)]
    loss = torch.compile(step, backend=backend)(*views)
    _, (expected, *_), _ = reference(*(z.tanh() for z in views))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # Inductor's gradients of the Gram form's in-place products were others.
    assert {target.__name__ for target in compiled} == {"tanh"}
