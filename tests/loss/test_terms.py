"""The registry of objectives."""

import pytest
import torch

from vissl_barlow.loss import OBJECTIVES, LossTerms, objective, terms

# Names that configs give.
CONFIGURED = {
    "weighted_terms",
    "feature_normalised",
    "cross_covariance",
    "auto_correlation",
    "cross_entropy",
    "hsic",
    "info_nce",
    "cosine",
    "w_mse",
    "imax",
    "vicreg",
}


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(terms, "OBJECTIVES", dict(OBJECTIVES))
    return terms.OBJECTIVES


def named(name):
    def compute(z_a, z_b, *, group=None, reference_world_size=1):
        zero = z_a.sum() * 0
        return LossTerms(zero, zero, zero)

    compute.__name__ = compute.__qualname__ = name
    return compute


def test_the_papers_variants_are_registered_before_the_baselines():
    rooms = [compute.__module__.rpartition(".")[2] for compute in OBJECTIVES.values()]
    assert rooms == sorted(rooms, reverse=True) and set(rooms) == {"variants", "baselines"}
    assert set(OBJECTIVES) >= CONFIGURED
    assert all(compute.__name__ == f"{name}_loss" for name, compute in OBJECTIVES.items())


def test_a_decorated_function_is_found_by_its_name_and_left_as_it_is(registry):
    compute = named("nothing_loss")
    assert objective(compute) is compute
    assert registry["nothing"] is compute
    assert registry["nothing"](torch.ones(2, 2), torch.ones(2, 2)).loss == 0


def test_a_name_is_taken_once(registry):
    with pytest.raises(
        ValueError, match=r"hsic is vissl_barlow\.loss\.baselines\.hsic_loss already"
    ):
        objective(named("hsic_loss"))
    assert registry == OBJECTIVES


def test_a_function_that_is_not_called_a_loss_is_refused(registry):
    with pytest.raises(ValueError, match="must be called nothing_loss"):
        objective(named("nothing"))
    assert registry == OBJECTIVES
