"""Refuses trunk, model, heads, loss and optimizer that do not fit, as an overlay on a wrong base."""

import torch
from classy_vision.losses import LOSS_REGISTRY, build_loss
from classy_vision.optim import build_optimizer
from vissl.data.ssl_transforms import get_transform
from vissl.models.heads import MODEL_HEADS_REGISTRY
from vissl.models.trunks import MODEL_TRUNKS_REGISTRY

from vissl_barlow.vissl_plugin.checks.common import (
    Refusals,
    named_heads,
    value_at,
    world_size,
)
from vissl_barlow.vissl_plugin.errors import ConfigError


def check_fit(cfg) -> None:
    """Raises ConfigError unless model, heads and loss of `cfg` belong together.

    Only for the plugin's losses: others pass.
    """
    models = getattr(LOSS_REGISTRY.get(cfg.LOSS.name), "models", None)
    if models is None:
        return
    model = cfg.MODEL.BASE_MODEL_NAME
    if model not in models:
        raise ConfigError(
            "MODEL.BASE_MODEL_NAME",
            model,
            f"config.LOSS.name={cfg.LOSS.name} takes the outputs of {' or '.join(models)}; "
            "set one of these, or start from a config whose loss fits this model",
        )
    _check_heads(cfg, model)
    if model == "barlow_byol_model" and not 0 <= cfg.MODEL.get("TARGET_MOMENTUM", -1) <= 1:
        raise ConfigError(
            "MODEL.TARGET_MOMENTUM",
            cfg.MODEL.get("TARGET_MOMENTUM"),
            "set the share in [0, 1] of itself that the target keeps each step, such as 0.99",
        )
    if cfg.LOSS.name == "barlow_objective" and cfg.LOSS.barlow_objective.objective == "w_mse":
        _check_sub_batches(cfg)


def _check_heads(cfg, model: str) -> None:
    key, value = "MODEL.HEAD.PARAMS", cfg.MODEL.HEAD.PARAMS
    names = [head[0] for head in value]
    if model == "barlow_twins_model":
        if "barlow_predictor" in names:
            raise ConfigError(
                key,
                value,
                "barlow_twins_model has no predictor; drop the barlow_predictor, or set "
                "config.MODEL.BASE_MODEL_NAME=barlow_asymmetric_twins_model",
            )
        return
    stops = False
    if model == "barlow_asymmetric_twins_model":
        stops = cfg.MODEL.get("STOP_GRADIENT")
        if not isinstance(stops, bool):
            raise ConfigError("MODEL.STOP_GRADIENT", stops, "set it to true or false")
    if names[1:] != ["barlow_predictor"] and not (stops and len(names) == 1):
        raise ConfigError(key, value, f"{model} takes a projector, then one barlow_predictor")
    if len(names) > 1:
        embedding, predictor = value[0][1]["dims"][-1], value[1][1]
        if (predictor["in_dim"], predictor["dims"][-1]) != (embedding, embedding):
            raise ConfigError(
                key,
                value,
                f"the projector's embeddings have {embedding} dimensions; set barlow_predictor's "
                f"in_dim and the last of its dims to {embedding}",
            )


def _check_sub_batches(cfg) -> None:
    options = cfg.LOSS.barlow_objective
    batch = cfg.DATA.TRAIN.BATCHSIZE_PER_REPLICA * world_size(cfg)
    rows = options.get("sub_batch_size") or batch
    dim = cfg.MODEL.HEAD.PARAMS[0][1]["dims"][-1]
    if batch % rows or (rows <= dim and not options.get("eps", 0) > 0):
        raise ConfigError(
            "LOSS.barlow_objective.sub_batch_size",
            options.get("sub_batch_size"),
            f"W-MSE whitens sub-batches with more rows than the embedding has dimensions ({dim}) and "
            f"cuts the global batch ({batch}) into them without rest; set a divisor of {batch} above "
            f"{dim}, or a projector with fewer outputs",
        )


def check_model(cfg) -> None:
    """Raises ConfigError unless trunk, heads and loss fit, and those of a pretraining can be built."""
    check_fit(cfg)
    heads = _heads_on_the_trunk(cfg)
    _check_in_dim(cfg, heads)
    if heads and "dims" in heads[0][1]:  # a projector
        _check_embedding_dim(cfg, heads[0][1]["dims"][-1])
        _check_components(cfg)


def _heads_on_the_trunk(cfg) -> list[tuple[str, dict]]:
    """Name and options of the heads that say they take the trunk's representations."""
    pooling = cfg.MODEL.FEATURE_EVAL_SETTINGS.LINEAR_EVAL_FEAT_POOL_OPS_MAP
    if any(layer != "res5avg" for layer, _ in pooling):
        return []  # heads then take another layer's features (`check_features`)
    return [
        (name, options)
        for name, options in named_heads(cfg)
        if getattr(MODEL_HEADS_REGISTRY.get(name), "takes_representations", False)
    ]


def _check_in_dim(cfg, heads: list[tuple[str, dict]]) -> None:
    trunk = MODEL_TRUNKS_REGISTRY.get(cfg.MODEL.TRUNK.NAME)
    if not hasattr(trunk, "representation_dim"):
        return
    representation = trunk.representation_dim(cfg.MODEL.TRUNK[trunk.section])
    for name, options in heads:
        if options["in_dim"] != representation:
            raise ConfigError(
                "MODEL.HEAD.PARAMS",
                cfg.MODEL.HEAD.PARAMS,
                f"the trunk's representations have {representation} dimensions; set {name}'s in_dim "
                f"to {representation}",
            )


def _check_embedding_dim(cfg, outputs: int) -> None:
    loss = cfg.LOSS.get(cfg.LOSS.name) or {}
    embedding_dim = loss.get("embedding_dim")
    if embedding_dim is not None and embedding_dim != outputs:
        raise ConfigError(
            f"LOSS.{cfg.LOSS.name}.embedding_dim",
            embedding_dim,
            f"the projector's last layer has {outputs} outputs; make the two equal",
        )


def _check_components(cfg) -> None:
    """Builds what is cheap to build, so that its own checks speak before training."""

    name = cfg.LOSS.name

    def compute_loss():
        loss = build_loss({"name": name, **cfg.LOSS[name]})
        # The functions check their options when called.
        loss(getattr(loss, "example", [torch.eye(4), torch.eye(4).flip(0)]), None)

    refusals = Refusals()
    for key, build in (
        (f"LOSS.{name}", compute_loss),
        ("OPTIMIZER", lambda: build_optimizer(cfg.OPTIMIZER).prepare([torch.zeros(1)])),
        ("DATA.TRAIN.TRANSFORMS", lambda: get_transform(cfg.DATA.TRAIN.TRANSFORMS)),
    ):
        with refusals:
            try:
                build()
            except (ValueError, TypeError, AssertionError) as error:  # the last are VISSL's
                section = value_at(cfg, key)
                value = section.to_dict() if hasattr(section, "to_dict") else section
                raise ConfigError(key, value, str(error)) from None
    refusals.raise_all()
