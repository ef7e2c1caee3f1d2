"""What of a checkpoint is loaded into a model of VISSL's."""

import pytest
import torch
from digits_on_disk import OVERLAY
from vissl_runs import compose

from vissl_barlow.checkpoint import read_checkpoint, save_atomically

GROUP = "benchmark/vissl_barlow"


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


def test_fine_tuning_begins_with_a_new_classifier(tmp_path):
    """One that was trained on all labels would know what 1% of them does not tell."""
    from vissl.trainer.trainer_main import build_task

    semi = compose(f"{GROUP}/imagenet1k_semi_1pct", OVERLAY)
    saved, model = build_model(semi, 0), build_model(semi, 1)
    initial = model.heads[0].linear.weight.clone()
    state = {"classy_state_dict": {"base_model": saved.get_classy_state()}}
    save_atomically(state, tmp_path / "saved.torch")
    semi.MODEL.WEIGHTS_INIT.PARAMS_FILE = str(tmp_path / "saved.torch")
    restored = build_task(semi)._restore_model_weights(model)
    assert torch.equal(restored.heads[0].linear.weight, initial)
    torch.testing.assert_close(
        restored.trunk.state_dict(), saved.trunk.state_dict(), rtol=0, atol=0
    )
    semi.TEST_ONLY = True  # which tests the checkpoint's
    restored = build_task(semi)._restore_model_weights(model)
    assert torch.equal(restored.heads[0].linear.weight, saved.heads[0].linear.weight)


def test_heads_are_loaded_where_they_fit_and_left_alone_where_not(checkpoints, tmp_path):
    from vissl.models import build_model

    from vissl_barlow.vissl_plugin.components.weights import model_weights

    config = compose(f"{GROUP}/imagenet1k_semi_1pct", OVERLAY)
    config.MODEL["_MODEL_INIT_SEED"] = 0
    model = build_model(config.MODEL, config.OPTIMIZER)
    # The pretraining's projector is no classifier.
    trunk, heads = model_weights(model, str(checkpoints["pretrained"]))
    assert heads == {}
    saved = read_checkpoint(checkpoints["pretrained"])["classy_state_dict"]["base_model"]["model"]
    assert trunk.keys() == saved["trunk"].keys()
    fine_tuned = {"classy_state_dict": {"base_model": {"model": model.get_classy_state()["model"]}}}
    save_atomically(fine_tuned, tmp_path / "fine_tuned.torch")
    _, heads = model_weights(model, str(tmp_path / "fine_tuned.torch"))
    assert torch.equal(heads["0.linear.weight"], model.heads[0].linear.weight)


def test_checkpoints_of_vissls_own_trunk_fit_ours(tmp_path):
    from vissl.models import build_model

    from vissl_barlow.vissl_plugin.components.weights import model_weights

    def built(trunk: str):
        config = compose(f"{GROUP}/imagenet1k_linear", f"config.MODEL.TRUNK.NAME={trunk}")
        config.MODEL["_MODEL_INIT_SEED"] = 0
        return build_model(config.MODEL, config.OPTIMIZER)

    vissls, ours = built("resnet"), built("barlow_resnet")
    # A trunk that was frozen for an evaluation has one more prefix than a pretrained one.
    state = {"classy_state_dict": {"base_model": vissls.get_classy_state()}}
    save_atomically(state, tmp_path / "vissl.torch")
    trunk, _ = model_weights(ours, str(tmp_path / "vissl.torch"))
    ours.trunk.base_model.load_state_dict(trunk)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        outputs = [model.eval().trunk(images, ["res5avg"])[0] for model in (vissls, ours)]
    assert torch.equal(*outputs)
