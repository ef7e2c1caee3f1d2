"""The plugin's losses: one parser, whose keys and defaults are those of the core's functions."""

import inspect

import pytest
import torch
from classy_vision.losses import LOSS_REGISTRY, build_loss

import vissl_barlow
from vissl_barlow.loss import OBJECTIVES, barlow_twins_loss, byol_loss, simsiam_loss
from vissl_barlow.vissl_plugin.components.loss import TermsLoss

vissl_barlow.register()

SECTIONS = [
    ({"name": "barlow_loss"}, barlow_twins_loss),
    ({"name": "barlow_byol_loss"}, byol_loss),
    ({"name": "barlow_simsiam_loss"}, simsiam_loss),
    *(({"name": "barlow_objective", "objective": name}, f) for name, f in OBJECTIVES.items()),
]


@pytest.mark.parametrize(("section", "function"), SECTIONS)
def test_keys_and_defaults_are_the_functions(section, function):
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    del defaults["group"]
    assert build_loss(section).options == defaults
    # As a config has it: the checks read embedding_dim, the loss does not.
    given = build_loss({**section, "embedding_dim": 8, "reference_world_size": 3})
    assert given.options == {**defaults, "reference_world_size": 3}
    for key in ("lambd", "group"):
        with pytest.raises(ValueError, match=f"{function.__name__} has no {key}; "):
            build_loss({**section, key: 1})


def test_options_reach_the_function():
    z_a, z_b = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    loss = build_loss({"name": "barlow_loss", "lambda_": 0.5, "eps": 0.1})
    expected = barlow_twins_loss(z_a, z_b, lambda_=0.5, eps=0.1)
    assert torch.equal(loss([z_a, z_b], None), expected.loss)
    assert torch.equal(torch.stack(list(loss.terms)), torch.stack(list(expected)))


def test_only_equation_1_has_the_eps_of_equation_2():
    assert build_loss({"name": "barlow_loss"}).correlation_eps == 1e-5
    assert build_loss({"name": "barlow_loss", "eps": 0.25}).correlation_eps == 0.25
    imax = build_loss({"name": "barlow_objective", "objective": "imax", "eps": 0.001})
    assert imax.correlation_eps is None
    assert build_loss({"name": "barlow_byol_loss"}).correlation_eps is None


def test_each_loss_says_whose_outputs_it_takes():
    models = {
        name: loss.models for name, loss in LOSS_REGISTRY.items() if issubclass(loss, TermsLoss)
    }
    embeddings = ("barlow_twins_model", "barlow_asymmetric_twins_model")
    predictions = ("barlow_byol_model", "barlow_simsiam_model")
    assert models == {
        "barlow_loss": embeddings,
        "barlow_objective": embeddings,
        "barlow_byol_loss": predictions,
        "barlow_simsiam_loss": predictions,
    }
