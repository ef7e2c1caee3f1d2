"""The plugin's tasks: what they start from, and what is refused beside them."""

from types import SimpleNamespace

import pytest
import torch
from vissl_runs import resolve

import vissl_barlow
from vissl_barlow.vissl_plugin.errors import ConfigError

vissl_barlow.register()

from vissl.models import build_model  # noqa: E402

from vissl_barlow.vissl_plugin.components.weights import initialise_from  # noqa: E402

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
TINY = (
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.0625",
    "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:32,dims:[8,8]}]]",
    "config.LOSS.barlow_loss.embedding_dim=8",
)


def model(config, seed: int):
    config.MODEL["_MODEL_INIT_SEED"] = seed
    return build_model(config.MODEL, config.OPTIMIZER)


@pytest.mark.parametrize(
    ("evaluates", "head_too", "heads_loaded"),
    [(False, False, True), (True, False, False), (True, True, True)],
)
def test_an_evaluation_of_the_trunk_trains_heads_of_its_own(
    tmp_path, monkeypatch, evaluates, head_too, heads_loaded
):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "0")
    config = resolve(tmp_path, DIGITS, *TINY)
    pretrained, fresh, untouched = (model(config, seed) for seed in (1, 2, 2))
    state = {"base_model": {"model": pretrained.get_classy_state()["model"]}}
    torch.save({"classy_state_dict": state}, tmp_path / "weights.torch")
    settings = SimpleNamespace(EVAL_MODE_ON=evaluates, EVAL_TRUNK_AND_HEAD=head_too)
    initialise_from(fresh, str(tmp_path / "weights.torch"), settings)
    for part, source in (
        ("trunk", pretrained),
        ("heads", pretrained if heads_loaded else untouched),
    ):
        expected = source.get_submodule(part).state_dict()
        torch.testing.assert_close(fresh.get_submodule(part).state_dict(), expected, rtol=0, atol=0)
    # Else none of the above could tell them apart.
    weight = "0.projector.0.weight"
    assert not torch.equal(
        pretrained.heads.state_dict()[weight], untouched.heads.state_dict()[weight]
    )


@pytest.mark.parametrize(
    ("override", "task"),
    [
        ("config.TRAINER.TASK_NAME=self_supervision_task", "self_supervision_task"),
        ("config.TRAINER.TASK_NAME=no_such_task", "no_such_task"),
        ("config.MODEL.SHARDED_DDP_SETUP.USE_SDP=true", "self_supervision_sdp_task"),
    ],
)
def test_a_barlow_section_under_another_task_is_refused(tmp_path, override, task):
    with pytest.raises(
        ConfigError, match=f"^config.TRAINER.TASK_NAME={task}: .* barlow_evaluation_task"
    ):
        resolve(tmp_path, DIGITS, override)
