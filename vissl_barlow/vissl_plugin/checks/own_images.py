"""Settles what a config leaves open, `auto`, by the folder of images and the machine."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vissl.models.trunks import MODEL_TRUNKS_REGISTRY, get_model_trunk

from vissl_barlow.experiment import IRRELEVANT_KEYS
from vissl_barlow.images import UnreadableFolder
from vissl_barlow.own_images import FolderRefused, OwnFolder, read_folder
from vissl_barlow.own_images.choices import (
    AUTO,
    BASE_RATE,
    BATCH,
    DEPTH,
    DEVICE,
    EPOCHS,
    FEWEST_IMAGES,
    FOLDER,
    PROBE,
    RUN_FOLDER,
    VIEW_SIZE,
    Choice,
    Machine,
    agrees,
    choose,
    run_folder,
    this_machine,
)
from vissl_barlow.paths import is_within
from vissl_barlow.provenance import derived_values
from vissl_barlow.vissl_plugin.checks.common import Refusals, pasteable, typed_word
from vissl_barlow.vissl_plugin.checks.images import OWN_FOLDER
from vissl_barlow.vissl_plugin.checks.syntax import quoted
from vissl_barlow.vissl_plugin.errors import ConfigError

# Those that a user wants to know, and may want to change; the others are in the log.
_SHOWN = (
    *(DEVICE, VIEW_SIZE, DEPTH, "MODEL.HEAD.PARAMS.0.1.dims"),
    *(BATCH, BASE_RATE, EPOCHS, PROBE, RUN_FOLDER),
)
_TEST_FOLDER = "DATA.TEST.DATA_PATHS"
_SOURCES = "DATA.TRAIN.DATA_SOURCES"
# Pixels of the shorter side: of less nothing can be cut out and told again.
_SMALLEST_SIDE = 8
# Where the folder is refused, so that all else can be looked at.
_NO_FOLDER = OwnFolder("", ["none"] * 1000, [], [], None, None, "", "")
# Where the trunk cannot say, which others refuse.
_ANY_DIMENSION = 512


def choose_values(cfg) -> None:
    """Gives every value of `cfg` that is `auto`, and that can be chosen, in place, and prints them.

    `cfg.BARLOW.DERIVED` says which they are, and why. A run that is resumed keeps those that belong to
    its experiment. Does nothing to other configs.

    Raises:
        ConfigError: the folder cannot be trained on; values are given all the same.
    """
    values = dict(_values(cfg))
    opened = [key for key, value in values.items() if isinstance(value, str) and value == AUTO]
    sources = _as_list(values.get(_SOURCES))
    if not _has_sections(cfg) or (sources != [OWN_FOLDER] and EPOCHS not in opened):
        return
    refusals, folder = Refusals(), _NO_FOLDER
    with refusals:
        _check_source(sources)
    with refusals:
        folder = _folder(cfg)
    given = {key: value for key, value in values.items() if key not in opened}
    with refusals:
        _check(cfg, folder, opened)
    recorded, batch = _recorded(cfg, folder, opened, given)
    cluster = Machine(0, 0, bfloat16=False, cores=8, elsewhere=True)
    choices = choose(
        opened,
        given,
        folder,
        cluster if cfg.SLURM.USE_SLURM is True else this_machine(),
        lambda so_far: _representation_dim(cfg, so_far),
        recorded=recorded,
        recorded_batch=batch,
    )
    _put_in(cfg, choices)
    if choices:
        cfg.BARLOW["DERIVED"] = [{"key": key, **each._asdict()} for key, each in choices.items()]
    refusals.raise_all()
    hidden = () if "resnet" in cfg.MODEL.TRUNK.NAME else (DEPTH,)
    _print(folder, {key: each for key, each in choices.items() if key not in hidden})


def _has_sections(cfg) -> bool:
    """Whether those that are read here are sections; else other checks refuse them."""
    sections = (cfg.DATA, cfg.MODEL, cfg.SLURM, cfg.CHECKPOINT, cfg.BARLOW.PROBE)
    if not all(isinstance(section, Mapping) for section in sections):
        return False
    return isinstance(cfg.DATA.TRAIN, Mapping) and isinstance(cfg.MODEL.TRUNK, Mapping)


def _check_source(sources: list) -> None:
    if sources != [OWN_FOLDER]:
        raise ConfigError(
            _SOURCES,
            sources,
            f"values that are `auto` are chosen for one folder of images; type config.{_SOURCES}="
            f"{OWN_FOLDER}, or start from another config",
        )


def _folder(cfg) -> OwnFolder:
    paths = _as_list(cfg.DATA.TRAIN.DATA_PATHS)
    if not paths:
        raise ConfigError(FOLDER, "[]", f"say where your images are: type config.{FOLDER}=FOLDER")
    if len(paths) > 1:
        cfg.DATA.TRAIN.DATA_PATHS = paths[:1]  # which others take no offence at
        raise ConfigError(
            FOLDER,
            paths,
            f"one folder is trained on; type config.{FOLDER}=FOLDER, with one that has these, or links "
            "to them, in it",
        )
    if not _is_as_typed(cfg, paths[0]):
        word = typed_word(cfg, FOLDER) or f"config.{FOLDER}=[{paths[0]}]"
        cfg.DATA.TRAIN.DATA_PATHS = []  # which others take no offence at
        remedy = f"{paths[0]} is no text; quote what is meant: {quoted(word)}"
        raise ConfigError(FOLDER, paths, remedy)
    path = os.path.expanduser(str(paths[0]))
    cfg.DATA.TRAIN.DATA_PATHS = [path]
    try:
        return read_folder(path)
    except FolderRefused as refused:
        instead = (
            pasteable(FOLDER, refused.instead) if refused.instead else f"config.{FOLDER}=FOLDER"
        )
        where = "" if refused.instead else ", with your images' folder"
        raise ConfigError(FOLDER, f"[{path}]", f"{refused}; type {instead}{where}") from None
    except UnreadableFolder as error:
        remedy = f"{error}; its images would be missing: make it readable, or remove it"
        raise ConfigError(FOLDER, f"[{path}]", remedy) from None


def _is_as_typed(cfg, path: Any) -> bool:
    """Whether it is a text, or a number whose digits are those of the command line: of 2024_06 hydra
    makes 202406, of 1.10 1.1."""
    if isinstance(path, str):
        return True
    typed = (typed_word(cfg, FOLDER) or "").partition("=")[2]
    return type(path) is int and typed.strip("[]") == str(path)


def _check(cfg, folder: OwnFolder, opened: list[str]) -> None:
    refusals = Refusals()
    with refusals:
        if BATCH in opened and len(folder.train) < FEWEST_IMAGES:
            raise ConfigError(
                FOLDER,
                f"[{folder.root}]",
                f"{len(folder.train)} images to train on are too few for correlations over a batch, "
                f"expected {FEWEST_IMAGES} and rather thousands; type config.{FOLDER}=FOLDER, with a "
                "folder that has them in or below it",
            )
    with refusals:
        if VIEW_SIZE in opened and len(folder.sizes):
            side = int(np.median(folder.sizes.min(axis=1)))
            if side < _SMALLEST_SIDE:
                height, width = folder.sizes[0]
                raise ConfigError(
                    FOLDER,
                    f"[{folder.root}]",
                    f"half of the images have a side of at most {side} pixels ({height} x {width}, "
                    f"...), and no two views can be cut out; type config.{FOLDER}=FOLDER, with one "
                    f"of larger ones, or config.{VIEW_SIZE}=32 to enlarge these",
                )
    with refusals:
        given = folder is not _NO_FOLDER and RUN_FOLDER not in opened
        if given and is_within(str(cfg.CHECKPOINT.DIR), folder.root):
            raise ConfigError(
                RUN_FOLDER,
                cfg.CHECKPOINT.DIR,
                f"lies in the folder of the images, {folder.root}, which would have the run's "
                f"pictures among them; type {pasteable(RUN_FOLDER, run_folder(folder.root))}",
            )
    with refusals:
        kind = cfg.BARLOW.PROBE.KIND
        if kind not in ("", None, AUTO) and folder is not _NO_FOLDER and not folder.classes:
            raise ConfigError(
                PROBE,
                kind,
                f"{folder.root} has {folder.description}; leave it out, or type "
                f"config.{FOLDER}=FOLDER, with a folder that has one of images for each class",
            )
    with refusals:
        _check_test_folder(cfg, folder)
    refusals.raise_all()


def _check_test_folder(cfg, folder: OwnFolder) -> None:
    """The images held out are of the folder itself: of another one some would be tested, by the numbers
    of its own classes."""
    paths = _as_list(cfg.DATA.TEST.DATA_PATHS)
    if (
        folder is _NO_FOLDER
        or paths == [AUTO]
        or _as_list(cfg.DATA.TEST.DATA_SOURCES) != [OWN_FOLDER]
    ):
        return
    if len(paths) != 1 or os.path.realpath(str(paths[0])) != os.path.realpath(folder.root):
        cfg.DATA.TEST.DATA_PATHS = [folder.root]  # which others take no offence at
        raise ConfigError(
            _TEST_FOLDER,
            paths,
            "tested are images of the folder that is trained on; leave it out, and to test on others "
            f"put both as train/ and val/ into one folder: config.{FOLDER}=FOLDER",
        )


def _recorded(
    cfg, folder: OwnFolder, opened: list[str], given: Mapping[str, Any]
) -> tuple[dict[str, Any], int | None]:
    """What was chosen for the run to be resumed, and its global batch; nothing if there is none."""
    if folder is _NO_FOLDER or cfg.CHECKPOINT.AUTO_RESUME is not True:
        return {}, None
    place = run_folder(folder.root) if RUN_FOLDER in opened else str(cfg.CHECKPOINT.DIR)
    derived, processes = derived_values(Path(place).expanduser())
    kept = {key: value for key, value in derived.items() if key in (*opened, *given)}
    if not agrees(kept, {key: value for key, value in given.items() if not _is_free(key)}):
        return {}, None
    batch = derived.get(BATCH)
    known = isinstance(batch, int) and BATCH in opened
    return derived, int(batch or 0) * processes if known else None


def _is_free(key: str) -> bool:
    return bool(IRRELEVANT_KEYS.fullmatch(f"config.{key}"))


def _representation_dim(cfg, so_far: Mapping[str, Choice]) -> int:
    _put_in(cfg, so_far)
    name = cfg.MODEL.TRUNK.NAME
    trunk = MODEL_TRUNKS_REGISTRY.get(name)
    try:
        if hasattr(trunk, "representation_dim"):
            return trunk.representation_dim(cfg.MODEL.TRUNK[trunk.section])
        size = cfg.DATA.TRAIN.TRANSFORMS[0]["size"]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            built = get_model_trunk(name)(cfg.MODEL, name).eval()
            return built(torch.zeros(2, 3, size, size), [])[0].flatten(1).shape[1]
    except Exception:
        return _ANY_DIMENSION


def _put_in(cfg, choices: Mapping[str, Choice]) -> None:
    for key, choice in choices.items():
        *parents, last = (int(part) if part.isdigit() else part for part in key.split("."))
        section = cfg
        for part in parents:
            section = section[part]
        value = choice.value
        section[last] = list(value) if isinstance(value, list) else value


def _values(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below a section, and every list, by its dotted key."""
    items = section.items() if isinstance(section, Mapping) else enumerate(section)
    for name, value in items:
        key = f"{prefix}{name}"
        if not isinstance(value, Mapping):
            yield key, value
        if isinstance(value, Mapping | list):
            yield from _values(value, f"{key}.")


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _print(folder: OwnFolder, choices: Mapping[str, Choice]) -> None:
    print(f"vissl_barlow: {folder.root}: {folder.description}")
    for line in folder.warnings:
        print(f"vissl_barlow: warning: {line}")
    shown = {key: each for key, each in choices.items() if key in _SHOWN}
    if not shown:
        return
    print(
        "vissl_barlow: chosen by these images and this machine; to change one, type it with a value:"
    )
    for key, (value, reason) in shown.items():
        text = str(value).replace(" ", "") or "none"
        print(f"    config.{key}={text}  ({reason})")
