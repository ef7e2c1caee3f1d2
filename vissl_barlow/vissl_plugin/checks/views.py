"""Refuses transforms that do not make the two views of an image that a pretraining is of."""

from collections.abc import Mapping, Sequence

from vissl.data.collators import COLLATOR_REGISTRY

from vissl_barlow.vissl_plugin.checks.common import Refusals
from vissl_barlow.vissl_plugin.checks.dry_run import views_of
from vissl_barlow.vissl_plugin.components.views import normalization
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.hooks import pretrains, probes

_KEY = "DATA.TRAIN.TRANSFORMS"


def check_views(cfg) -> None:
    """Raises ConfigError for a pretraining of other than two views, or of views normalised twice."""
    if not pretrains(cfg):
        return
    refusals = Refusals()
    for check in (_check_collator, _check_number, _check_normalised_once, _check_probe):
        with refusals:
            check(cfg)
    refusals.raise_all()


def _check_collator(cfg) -> None:
    collator = cfg.DATA.TRAIN.COLLATE_FUNCTION
    # torch's own is in no registry; one of a user's may stack the views as well.
    module = getattr(COLLATOR_REGISTRY.get(collator), "__module__", "vissl.")
    if module.startswith("vissl."):
        raise ConfigError(
            "DATA.TRAIN.COLLATE_FUNCTION",
            collator,
            f"{cfg.MODEL.BASE_MODEL_NAME} takes the two views as barlow_collator stacks them; set that",
        )


def _check_number(cfg) -> None:
    views = views_of(cfg)
    if views not in (None, 2):
        raise ConfigError(
            _KEY,
            cfg.DATA.TRAIN.TRANSFORMS,
            f"they make {views} of an image, and {cfg.MODEL.BASE_MODEL_NAME} takes two views; begin "
            "with BarlowTwoViews, or with ImgReplicatePil and num_times 2",
        )


def _check_normalised_once(cfg) -> None:
    transforms = cfg.DATA.TRAIN.TRANSFORMS
    names = [transform["name"] for transform in transforms]
    if "BarlowTwoViews" in names and "Normalize" in names:
        raise ConfigError(
            _KEY,
            transforms,
            "BarlowTwoViews normalises its views itself (mean, std); remove Normalize",
        )


def _check_probe(cfg) -> None:
    """Raises ConfigError where the probe's images are normalised otherwise than the trunk's views."""
    if not probes(cfg):
        return
    try:
        views = [list(numbers) for numbers in normalization(cfg.DATA.TRAIN.TRANSFORMS)]
    except (ValueError, TypeError):
        return  # there is no BarlowTwoViews, or `check_model` says what is wrong with it
    probe = _normalized_by(cfg.DATA.TEST.TRANSFORMS)
    if probe is not None and probe != views:
        mean, std = views
        raise ConfigError(
            "DATA.TEST.TRANSFORMS",
            cfg.DATA.TEST.TRANSFORMS,
            f"the probe's images would be normalised otherwise than the views that the trunk learns "
            f"from; give them {{name: Normalize, mean: {mean}, std: {std}}}, or set "
            "config.BARLOW.PROBE.KIND=none",
        )


def _normalized_by(transforms: Sequence[Mapping]) -> list[list[float]] | None:
    """Mean and standard deviation of a list's only Normalize; None where nothing can be said."""
    found = [transform for transform in transforms if transform["name"] == "Normalize"]
    if len(found) == 1:
        return [list(found[0].get("mean", [])), list(found[0].get("std", []))]
    plain = not found and any(transform["name"] == "ToTensor" for transform in transforms)
    return [[0.0] * 3, [1.0] * 3] if plain else None
