"""What of a checkpoint is loaded into a model of VISSL's."""

import torch
from digits_on_disk import OVERLAY
from vissl_runs import compose

from vissl_barlow.checkpoint import read_checkpoint, save_atomically

GROUP = "benchmark/vissl_barlow"


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
