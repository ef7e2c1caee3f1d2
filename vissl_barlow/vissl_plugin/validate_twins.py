"""Refuses combinations of model, heads and loss that do not fit, such as an overlay on a wrong base."""

from vissl_barlow.vissl_plugin.validate import ConfigError

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
