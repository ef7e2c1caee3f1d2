"""Refuses trunk, model, heads, loss and optimizer that do not fit, as an overlay on a wrong base."""

import torch
from classy_vision.losses import build_loss
from classy_vision.optim import build_optimizer
from vissl.data.ssl_transforms import get_transform

from vissl_barlow.resnet import representation_dim
from vissl_barlow.vissl_plugin.errors import ConfigError

# What each loss takes: the two embeddings, or two predictions and two targets.
_MODELS_FOR = {
    "barlow_loss": ("barlow_twins_model", "barlow_asymmetric_twins_model"),
    "barlow_objective": ("barlow_twins_model", "barlow_asymmetric_twins_model"),
    "barlow_byol_loss": ("barlow_byol_model", "barlow_simsiam_model"),
    "barlow_simsiam_loss": ("barlow_byol_model", "barlow_simsiam_model"),
}


def check_fit(cfg) -> None:
    """Raises ConfigError unless model, heads and loss of `cfg` belong together.

    Only for the plugin's losses: others pass.
    """
    models = _MODELS_FOR.get(cfg.LOSS.name)
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
    processes = cfg.DISTRIBUTED.NUM_NODES * cfg.DISTRIBUTED.NUM_PROC_PER_NODE
    batch = cfg.DATA.TRAIN.BATCHSIZE_PER_REPLICA * processes
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
    check_fit(cfg)
    projectors = ("barlow_projector", "barlow_normalised_projector")
    heads = [head for head in cfg.MODEL.HEAD.PARAMS if head and head[0] in projectors]
    if not heads:
        return
    options = heads[0][1]
    key = "MODEL.HEAD.PARAMS"
    if cfg.MODEL.TRUNK.NAME == "barlow_resnet":
        trunk = cfg.MODEL.TRUNK.RESNETS
        try:
            representation = representation_dim(trunk.DEPTH, trunk.WIDTH_MULTIPLIER)
        except ValueError as error:
            raise ConfigError("MODEL.TRUNK.RESNETS.DEPTH", trunk.DEPTH, str(error)) from None
        if options["in_dim"] != representation:
            raise ConfigError(
                key,
                cfg.MODEL.HEAD.PARAMS,
                f"the trunk's representations have {representation} dimensions; set "
                f"{heads[0][0]}'s in_dim to {representation}",
            )
    loss = cfg.LOSS.get(cfg.LOSS.name) or {}
    embedding_dim = loss.get("embedding_dim")
    if embedding_dim is not None and embedding_dim != options["dims"][-1]:
        raise ConfigError(
            f"LOSS.{cfg.LOSS.name}.embedding_dim",
            embedding_dim,
            f"the projector's last layer has {options['dims'][-1]} outputs; make the two equal",
        )
    _check_components(cfg)


def _check_components(cfg) -> None:
    """Builds what is cheap to build, so that its own checks speak before training."""

    name = cfg.LOSS.name

    def compute_loss():
        loss = build_loss({"name": name, **cfg.LOSS[name]})
        # The functions check their options when called.
        loss(getattr(loss, "example", [torch.eye(4), torch.eye(4).flip(0)]), None)

    for key, build in (
        (f"LOSS.{name}", compute_loss),
        ("OPTIMIZER", lambda: build_optimizer(cfg.OPTIMIZER).prepare([torch.zeros(1)])),
        ("DATA.TRAIN.TRANSFORMS", lambda: get_transform(cfg.DATA.TRAIN.TRANSFORMS)),
    ):
        try:
            build()
        except (ValueError, TypeError) as error:
            section = cfg
            for part in key.split("."):
                section = section[part]
            value = section.to_dict() if hasattr(section, "to_dict") else section
            raise ConfigError(key, value, str(error)) from None
