"""BYOL's and SimSiam's losses against references written here from their papers."""

import pytest
import torch
from gloo import run_gloo
from torch.nn import functional as F

from vissl_barlow.loss import byol_loss, simsiam_loss

# Float64 against float64: what is left is the order of the sums.
EXACT = 1e-12
N, D = 10, 5


def _outputs():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(N, D, generator=g, dtype=torch.float64) for _ in range(4)]


def _byol_reference(p_a, p_b, target_a, target_b):
    """Equation 2 of Grill et al.: squared distance of unit vectors, both directions, mean over rows."""
    total = 0
    for p, target in ((p_a, target_b), (p_b, target_a)):
        for x, y in zip(p, target):
            total = total + ((x / x.norm() - y / y.norm()) ** 2).sum() / len(p)
    return total


def _simsiam_reference(p_a, p_b, target_a, target_b):
    """Algorithm 1 of Chen & He: D(p1, z2) / 2 + D(p2, z1) / 2, D the negative cosine."""
    forth, back = F.cosine_similarity(p_a, target_b), F.cosine_similarity(p_b, target_a)
    return -forth.mean() / 2 - back.mean() / 2


LOSSES = [(byol_loss, _byol_reference), (simsiam_loss, _simsiam_reference)]


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
def test_loss_is_the_reference_and_stops_at_the_targets(loss, reference):
    ours, theirs = ([x.clone().requires_grad_() for x in _outputs()] for _ in range(2))
    value, expected = loss(*ours).loss, reference(*theirs)
    torch.testing.assert_close(value, expected, rtol=EXACT, atol=EXACT)
    value.backward()
    gradients = torch.autograd.grad(expected, theirs[:2])
    for x, gradient in zip(ours, gradients):
        torch.testing.assert_close(x.grad, gradient, rtol=EXACT, atol=EXACT)
    assert ours[2].grad is None and ours[3].grad is None


@pytest.mark.parametrize(("loss", "reference"), LOSSES)
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("factor", [1e17, 1e18, 1e20, 1e37])
def test_rows_too_long_to_be_squared_have_no_loss(loss, reference, factor, both):
    factors = (factor, factor, *(factor if both else 1,) * 2)
    ours = [(x * f).float().requires_grad_() for x, f in zip(_outputs(), factors)]
    value = loss(*ours).loss
    if factor > 1e19:
        assert value.isnan() and torch.autograd.grad(value, ours[0])[0].isnan().all()
    else:
        expected = reference(*(x.detach().double() for x in ours))
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)


def _on_own_rows(rank, shares):
    results = []
    for loss, _ in LOSSES:
        outputs = [x.split(shares)[rank].clone().requires_grad_() for x in _outputs()]
        value = loss(*outputs, reference_world_size=4).loss
        results.append((value.detach(), *torch.autograd.grad(value, outputs[:2])))
    return results


def test_two_processes_of_unequal_shares_compute_the_loss_of_one():
    on_each = run_gloo(_on_own_rows, 2, [7, 3])
    for index, (_, reference) in enumerate(LOSSES):
        outputs = [x.requires_grad_() for x in _outputs()]
        value = reference(*outputs)
        gradients = torch.autograd.grad(value, outputs[:2])
        for process in on_each:
            torch.testing.assert_close(process[index][0], value.detach(), rtol=EXACT, atol=EXACT)
        for view, gradient in enumerate(gradients, start=1):
            ours = torch.cat([process[index][view] for process in on_each]) / 2  # DDP's average
            torch.testing.assert_close(ours, gradient / 4, rtol=EXACT, atol=EXACT)
