"""Which parts of a checkpoint initialise a model."""

import pytest
import torch
from digits_on_disk import OVERLAY

from vissl_barlow.checkpoint import save_atomically


@pytest.fixture(scope="module")
def config():
    """imagenet1k_linear's, small; without the checks of data and weights, which are not there."""
    from omegaconf import OmegaConf
    from vissl.config import AttrDict
    from vissl.utils.hydra_config import compose_hydra_configuration

    name = "config=benchmark/vissl_barlow/imagenet1k_linear"
    composed = compose_hydra_configuration([name, OVERLAY])
    return AttrDict(OmegaConf.to_container(composed)).config


def build_model(config, seed: int):
    from vissl.models import build_model

    torch.manual_seed(seed)
    config.MODEL["_MODEL_INIT_SEED"] = seed
    return build_model(config.MODEL, config.OPTIMIZER)


@pytest.mark.parametrize(
    ("trunk_is_evaluated", "with_its_head", "head_is_loaded"),
    [(True, False, False), (True, True, True), (False, False, True)],
)
def test_an_evaluation_of_the_trunk_trains_a_head_of_its_own(
    trunk_is_evaluated, with_its_head, head_is_loaded, config, tmp_path
):
    """VISSL's rule. The saved head fits: an earlier evaluation's, say."""
    from vissl.trainer.trainer_main import build_task

    saved, model = build_model(config, 0), build_model(config, 1)
    initial = model.heads[0].linear.weight.clone()
    state = {"classy_state_dict": {"base_model": saved.get_classy_state()}}
    save_atomically(state, tmp_path / "saved.torch")
    config.MODEL.WEIGHTS_INIT.PARAMS_FILE = str(tmp_path / "saved.torch")
    task = build_task(config)
    settings = config.MODEL.FEATURE_EVAL_SETTINGS
    settings.EVAL_MODE_ON, settings.EVAL_TRUNK_AND_HEAD = trunk_is_evaluated, with_its_head
    try:
        restored = task._restore_model_weights(model)
    finally:
        settings.EVAL_MODE_ON, settings.EVAL_TRUNK_AND_HEAD = True, False
    expected = saved.heads[0].linear.weight if head_is_loaded else initial
    assert not torch.equal(initial, saved.heads[0].linear.weight)
    assert torch.equal(restored.heads[0].linear.weight, expected)
    trunks = restored.trunk.state_dict(), saved.trunk.state_dict()
    torch.testing.assert_close(*trunks, rtol=0, atol=0)
