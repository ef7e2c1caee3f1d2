"""Keys of VISSL's that the run would not read: what the user set there would be without effect.

A key is set where its value is another than VISSL's default, or, of what one config leaves behind
for the next, where the command line names it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vissl.models import MODEL_REGISTRY
from vissl.models.heads import MODEL_HEADS_REGISTRY
from vissl.models.trunks import MODEL_TRUNKS_REGISTRY

from vissl_barlow.vissl_plugin.checks.common import (
    Refusals,
    named_heads,
    typed_keys,
    value_at,
    vissl_defaults,
)
from vissl_barlow.vissl_plugin.checks.unread_optimizer import of_optimizer, of_typed_optimizer
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.hooks import pretrains
from vissl_barlow.vissl_plugin.settings import all_keys

# Entries of SKIP_LAYERS that agree with how weights are loaded here.
_SKIPPED = {"num_batches_tracked", "heads"}
# What STATE_DICT_KEY_NAME says of a file that holds one model; any other name chooses among several.
_CONTAINERS = {"", "classy_state_dict", "state_dict", "model", "model_state_dict"}
# Of MODEL: a section, the key that switches it on, and keys without meaning until then.
_SWITCHED = (
    ("GRAD_CLIP", "USE_GRAD_CLIP", ("NORM_TYPE", "MAX_NORM")),
    ("SYNC_BN_CONFIG", "CONVERT_BN_TO_SYNC_BN", ("SYNC_BN_TYPE", "GROUP_SIZE")),
)


def check_unread(cfg, splits: list[str]) -> None:
    """Raises ConfigError for keys that the user set and that nothing in the run reads.

    `splits`: those of "TRAIN" and "TEST" that the run reads.
    """
    found = {}
    for key, remedy in _unread(cfg, splits):
        for name, value, default in _leaves(key, *_looked_up(cfg, key)):
            if value != default:
                found[name] = value, remedy
    # A base config may leave such behind: it is refused where the command line names it.
    typed = sorted(typed_keys(cfg))
    for key, remedy in (*of_typed_optimizer(cfg, typed), *_of_typed(cfg, typed)):
        found[key] = _looked_up(cfg, key)[0], remedy
    refusals = Refusals()
    for name, (value, remedy) in found.items():
        with refusals:
            raise ConfigError(name, value, f"would not be read: {remedy}")
    refusals.raise_all()


def _unread(cfg, splits: list[str]) -> Iterator[tuple[str, str]]:
    """Every key, or section, that nothing in this run reads, and what to do instead."""
    yield from _of_data(cfg, splits)
    yield from _of_model(cfg)
    yield from of_optimizer(cfg)
    for section in vissl_defaults()["LOSS"]:
        if section not in ("name", cfg.LOSS.name):
            yield f"LOSS.{section}", _remedy_of_loss(cfg)
    yield from _of_steps(cfg) if pretrains(cfg) else _of_plugin(cfg)


def _of_data(cfg, splits: list[str]) -> Iterator[tuple[str, str]]:
    for split in splits:
        if split == "TEST" or cfg.TRAINER.TASK_NAME == "barlow_task":
            for name in ("USE_STATEFUL_DISTRIBUTED_SAMPLER", "USE_DEBUGGING_SAMPLER"):
                yield (
                    f"DATA.{split}.{name}",
                    f"{cfg.TRAINER.TASK_NAME} has a sampler of its own, the same order on any number "
                    "of processes and after any interruption; remove it",
                )
        if cfg.TRAINER.TASK_NAME == "barlow_task":
            yield f"DATA.{split}.BASE_DATASET", "barlow_task has a data set of its own; remove it"
        if split == "TEST":
            yield "DATA.TEST.DROP_LAST", "each test image counts once; remove it"
        if cfg.DATA[split].DATA_LIMIT < 0:
            for name in ("IS_BALANCED", "SKIP_NUM_SAMPLES", "SEED"):
                yield (
                    f"DATA.{split}.DATA_LIMIT_SAMPLING.{name}",
                    f"all images are used; set config.DATA.{split}.DATA_LIMIT, or remove it",
                )


def _of_model(cfg) -> Iterator[tuple[str, str]]:
    name = cfg.MODEL.TRUNK.NAME
    trunk = MODEL_TRUNKS_REGISTRY.get(name)
    section, keys = getattr(trunk, "section", None), getattr(trunk, "keys", ())
    if section:
        remedy = f"{name} has {', '.join(sorted(keys))}; remove it, or name another trunk"
        for other, default in vissl_defaults()["MODEL"]["TRUNK"].items():
            if other == section:
                yield from ((f"MODEL.TRUNK.{other}.{key}", remedy) for key in {*default} - {*keys})
            elif other == "RESNETS":  # the shipped configs' own; what is typed is the user's
                typed = (key for key in typed_keys(cfg) if key.startswith("MODEL.TRUNK.RESNETS."))
                yield from ((key, remedy) for key in sorted(typed))
            elif isinstance(default, Mapping):
                yield f"MODEL.TRUNK.{other}", remedy
    heads = [MODEL_HEADS_REGISTRY.get(head) for head, _ in named_heads(cfg)]
    if heads and all(hasattr(head, "takes_representations") for head in heads):
        for key in ("BATCHNORM_EPS", "BATCHNORM_MOMENTUM", "PARAMS_MULTIPLIER"):
            yield f"MODEL.HEAD.{key}", "this plugin's heads have torch's defaults; remove it"
    evaluation = "MODEL.FEATURE_EVAL_SETTINGS"
    if not cfg.MODEL.FEATURE_EVAL_SETTINGS.EVAL_MODE_ON:
        remedy = f"set config.{evaluation}.EVAL_MODE_ON=true, or remove it"
        others = {"EVAL_MODE_ON"}
        if not pretrains(cfg):  # evaluations with and without it share what says where features are
            others.add("LINEAR_EVAL_FEAT_POOL_OPS_MAP")
        for key in set(vissl_defaults()["MODEL"]["FEATURE_EVAL_SETTINGS"]) - others:
            yield f"{evaluation}.{key}", f"nothing is evaluated; {remedy}"
    if cfg.TRAINER.TASK_NAME == "barlow_task":
        yield "MODEL.AMP_PARAMS.AMP_ARGS", "they are apex's, and barlow_task has torch's; remove it"
    if pretrains(cfg):
        for key in ("MULTI_INPUT_HEAD_MAPPING", "SINGLE_PASS_EVERY_CROP"):
            name = cfg.MODEL.BASE_MODEL_NAME
            yield f"MODEL.{key}", f"{name} passes two views, each on its own; remove it"
    weights = cfg.MODEL.WEIGHTS_INIT
    if not weights.PARAMS_FILE:
        remedy = "set config.MODEL.WEIGHTS_INIT.PARAMS_FILE, or remove it"
        yield "BARLOW.WEIGHTS_TRUNK", f"no checkpoint is named; {remedy}"
    elif weights.STATE_DICT_KEY_NAME not in _CONTAINERS:
        remedy = f"to choose a trunk, config.BARLOW.WEIGHTS_TRUNK={weights.STATE_DICT_KEY_NAME}"
        yield "MODEL.WEIGHTS_INIT.STATE_DICT_KEY_NAME", f"{remedy}; else remove it"
    skipped = weights.SKIP_LAYERS
    if set(skipped) - _SKIPPED:
        yield "MODEL.WEIGHTS_INIT.SKIP_LAYERS", "all of the trunk is loaded; remove it"


def _of_typed(cfg, typed: list[str]) -> Iterator[tuple[str, str]]:
    model, name = cfg.MODEL, cfg.MODEL.BASE_MODEL_NAME
    ours = cfg.TRAINER.TASK_NAME == "barlow_task"
    remedies = {}
    if ours and model.AMP_PARAMS.AMP_TYPE != "pytorch":
        remedies["MODEL.AMP_PARAMS.AMP_TYPE"] = "barlow_task has torch's alone; set it to pytorch"
    if ours and not model.AMP_PARAMS.USE_AMP:
        remedies["BARLOW.AMP_DTYPE"] = _switched_by("MODEL.AMP_PARAMS.USE_AMP")
    for section, switch, keys in _SWITCHED:
        if not model[section][switch]:
            remedy = _switched_by(f"MODEL.{section}.{switch}")
            remedies |= {f"MODEL.{section}.{key}": remedy for key in keys}
    of_model: frozenset[str] = getattr(MODEL_REGISTRY.get(name), "keys", frozenset())
    for key in _of_models() - of_model:
        remedies[f"MODEL.{key}"] = f"{name} has none; remove it, or name another model"
    yield from ((key, remedies[key]) for key in typed if key in remedies)
    yield from _of_loss(cfg, typed)


def _switched_by(key: str) -> str:
    return f"set config.{key}=true, or remove it"


def _of_models() -> frozenset[str]:
    """Keys of MODEL that one or the other of the plugin's models has."""
    return frozenset().union(*(getattr(model, "keys", ()) for model in MODEL_REGISTRY.values()))


def _of_loss(cfg, typed: list[str]) -> Iterator[tuple[str, str]]:
    for word in typed:
        section = word.removeprefix("LOSS.").partition(".")[0]
        # `embedding_dim` is only compared with the projector's.
        compared = word.endswith(".embedding_dim")
        if word.startswith("LOSS.") and section not in ("name", cfg.LOSS.name) and not compared:
            yield word, _remedy_of_loss(cfg)


def _remedy_of_loss(cfg) -> str:
    return f"config.LOSS.name={cfg.LOSS.name}; set config.LOSS.{cfg.LOSS.name}, or the name"


def _of_steps(cfg) -> Iterator[tuple[str, str]]:
    """What VISSL's own train step would read in a pretraining."""
    if cfg.TRAINER.TRAIN_STEP_NAME != "barlow_train_step":
        return
    for key in ("METERS.name", "METERS.names"):
        yield key, "a pretraining has no labels to measure with; remove it"
    yield (
        "DISTRIBUTED.MANUAL_GRADIENT_REDUCTION",
        "barlow_train_step leaves the gradients to torch; remove it",
    )


def _of_plugin(cfg) -> Iterator[tuple[str, str]]:
    yield "BARLOW.PROBE.KIND", "this is no pretraining; remove it"
    if cfg.TRAINER.TASK_NAME == "barlow_evaluation_task":
        for key in ("AMP_DTYPE", "CHANNELS_LAST", "COMPILE", "CHUNK_SIZE", "CHUNK_BATCH_NORM"):
            yield f"BARLOW.{key}", "barlow_evaluation_task has none; remove it"


def _looked_up(cfg, key: str) -> tuple[Any, Any]:
    """Value and default of a key; the default of a section's keys by their names."""
    defaults = {**vissl_defaults(), "BARLOW": _defaults_of_plugin()}
    return value_at(cfg, key), value_at(defaults, key)


def _defaults_of_plugin() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in all_keys():
        *parents, name = key.name.split(".")
        section = found
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = key.default
    return found


def _leaves(key: str, value: Any, default: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and default of what is below `key`; of what has no default, itself."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            known = isinstance(default, Mapping) and name in default
            yield from _leaves(f"{key}.{name}", inner, default[name] if known else inner)
    else:
        yield key, value, default
