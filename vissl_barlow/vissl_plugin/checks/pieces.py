"""Refuses steps in pieces that cannot be, or would not be what they are asked for."""

from collections.abc import Iterator

from classy_vision.losses import LOSS_REGISTRY
from vissl.models import MODEL_REGISTRY

from vissl_barlow.chunked import check_stages
from vissl_barlow.experiment import in_pieces
from vissl_barlow.vissl_plugin.checks.common import Refusals, model_on_meta, world_size
from vissl_barlow.vissl_plugin.components.loss import TermsLoss
from vissl_barlow.vissl_plugin.components.pieces import OneView
from vissl_barlow.vissl_plugin.components.twins_model import BarlowTwinsModel
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.hooks import pretrains

_SIZE, _MODE = "BARLOW.CHUNK_SIZE", "BARLOW.CHUNK_BATCH_NORM"
_TO_ORDINARY = "or take ordinary steps, config.BARLOW.CHUNK_SIZE=0 and CHUNK_BATCH_NORM=per_piece"


def check_pieces(cfg) -> None:
    """Raises ConfigError for what cannot be in a step in pieces; ordinary steps pass."""
    size, mode = cfg.BARLOW.CHUNK_SIZE, cfg.BARLOW.CHUNK_BATCH_NORM
    if not in_pieces(size, mode):
        return
    refusals = Refusals()
    refusals.add(*_of_settings(cfg, size, mode), *_of_components(cfg))
    if mode == "exact":
        refusals.add(*_of_exact(cfg))
    refusals.raise_all()


def check_activation_checkpointing(cfg) -> None:
    """Raises ConfigError where torch would find gradients ready twice, in the first step.

    VISSL's checkpointing runs a backward pass of its own for each pass of a view, and several processes
    average the gradients when the first of the two is done. In pieces, one pass has the averaging.
    """
    key = "MODEL.ACTIVATION_CHECKPOINTING.USE_ACTIVATION_CHECKPOINTING"
    uses = cfg.MODEL.ACTIVATION_CHECKPOINTING.USE_ACTIVATION_CHECKPOINTING
    if not (uses and pretrains(cfg) and world_size(cfg) > 1):
        return
    size, section = cfg.BARLOW.CHUNK_SIZE, cfg.DATA.TRAIN
    # The last batch of an epoch may be of one piece, and a step in one piece is an ordinary one.
    in_two = 0 < size < section.BATCHSIZE_PER_REPLICA and section.DROP_LAST
    if not in_two and cfg.BARLOW.CHUNK_BATCH_NORM != "per_view":
        raise ConfigError(
            key,
            True,
            "on several processes it takes steps in pieces; set "
            f"config.{_MODE}=per_view with config.{_SIZE}=0, which computes the same, or it to false",
        )


def check_stages_of_model(cfg) -> None:
    """Raises ConfigError for a model that CHUNK_BATCH_NORM=exact cannot take in stages.

    Of a config that has passed `check_pieces`, and whose model can be built.
    """
    settings = cfg.BARLOW
    if settings.CHUNK_BATCH_NORM != "exact" or not in_pieces(settings.CHUNK_SIZE, "exact"):
        return
    model = model_on_meta(cfg)
    if not isinstance(model, BarlowTwinsModel):
        return
    try:
        check_stages(OneView(model), model.stages())
    except ValueError as error:
        raise ConfigError(_MODE, "exact", f"{error}; or set it to per_piece or per_view") from None


def _of_settings(cfg, size: int, mode: str) -> Iterator[ConfigError]:
    batch = cfg.DATA.TRAIN.BATCHSIZE_PER_REPLICA
    if mode == "per_view" and size:
        yield ConfigError(
            _SIZE,
            size,
            f"has no effect with config.{_MODE}=per_view, whose pieces are the two views; set it to 0, "
            f"or config.{_MODE}=exact",
        )
    elif size > batch:
        yield ConfigError(
            _SIZE,
            size,
            f"a process has {batch} images of each view (config.DATA.TRAIN.BATCHSIZE_PER_REPLICA); set "
            "fewer, or 0 for all at once",
        )


def _of_components(cfg) -> Iterator[ConfigError]:
    for key, value, expected in (
        ("TRAINER.TASK_NAME", cfg.TRAINER.TASK_NAME, "barlow_task"),
        ("TRAINER.TRAIN_STEP_NAME", cfg.TRAINER.TRAIN_STEP_NAME, "barlow_train_step"),
    ):
        if value != expected:
            yield ConfigError(
                key, value, f"takes no steps in pieces; set it to {expected}, {_TO_ORDINARY}"
            )
    loss = LOSS_REGISTRY.get(cfg.LOSS.name)
    model = MODEL_REGISTRY.get(cfg.MODEL.BASE_MODEL_NAME)
    if loss is None or not issubclass(loss, TermsLoss):
        yield ConfigError(
            "LOSS.name",
            cfg.LOSS.name,
            "not known to be a function of the embeddings alone, which a step in pieces needs; set one "
            f"of this plugin's, such as barlow_loss, {_TO_ORDINARY}",
        )
    elif model is None or not issubclass(model, BarlowTwinsModel):
        yield ConfigError(
            "MODEL.BASE_MODEL_NAME",
            cfg.MODEL.BASE_MODEL_NAME,
            f"does not embed one view at a time, which a step in pieces needs; set barlow_twins_model, "
            f"{_TO_ORDINARY}",
        )


def _of_exact(cfg) -> Iterator[ConfigError]:
    if cfg.MODEL.BASE_MODEL_NAME == "barlow_byol_model":
        yield ConfigError(
            _MODE,
            "exact",
            "BYOL's target embeds the images once more, beside the stages that this mode goes through; "
            "set it to per_piece, or to per_view with config.BARLOW.CHUNK_SIZE=0",
        )
    if cfg.BARLOW.COMPILE:
        yield ConfigError(
            "BARLOW.COMPILE",
            True,
            f"config.{_MODE}=exact runs batch norm layers one by one, out of compiled code; set it to "
            f"false, or config.{_MODE} to per_piece or per_view",
        )
    if cfg.MODEL.ACTIVATION_CHECKPOINTING.USE_ACTIVATION_CHECKPOINTING:
        yield ConfigError(
            "MODEL.ACTIVATION_CHECKPOINTING.USE_ACTIVATION_CHECKPOINTING",
            True,
            f"config.{_MODE}=exact keeps no more activations than that, and computes them in stages of "
            f"its own; set it to false, or config.{_MODE} to per_piece or per_view",
        )
