"""A probe tests what is trained on, or there is none: the labels of two data sets do not agree."""

import logging

from vissl_barlow.messages import listed
from vissl_barlow.vissl_plugin.checks.common import data_path, is_typed
from vissl_barlow.vissl_plugin.checks.labels import class_folders
from vissl_barlow.vissl_plugin.errors import ConfigError
from vissl_barlow.vissl_plugin.hooks import probes

_KEY = "BARLOW.PROBE.KIND"
_FOLDERS = ("barlow_folder", "disk_folder")


def settle_probe(cfg) -> None:
    """Turns the probe of a config off, in place, where DATA.TEST is not of DATA.TRAIN's classes.

    It says so. Lists are compared when they are read, class folders here.

    Raises:
        ConfigError: the command line asks for the probe.
    """
    if not probes(cfg):
        return
    reason = _reason(cfg)
    if reason is None:
        return
    kind = cfg.BARLOW.PROBE.KIND
    remedy = (
        f"{reason}; name labelled images of the same classes in config.DATA.TEST.DATA_SOURCES and "
        f"DATA_PATHS, or set config.{_KEY}=none"
    )
    if is_typed(cfg, _KEY):
        raise ConfigError(_KEY, kind, remedy)
    logging.warning("config.%s=%s: there is no probe: %s", _KEY, kind, remedy)
    cfg.BARLOW.PROBE.KIND = ""


def _reason(cfg) -> str | None:
    """Why DATA.TEST cannot test what is learned from DATA.TRAIN; None if it can."""
    train, test = cfg.DATA.TRAIN, cfg.DATA.TEST
    if train.DATA_SOURCES != test.DATA_SOURCES:
        return (
            f"config.DATA.TRAIN.DATA_SOURCES={train.DATA_SOURCES} is trained on, and "
            f"config.DATA.TEST.DATA_SOURCES={test.DATA_SOURCES} would be tested"
        )
    if not test.LABEL_SOURCES:
        return "config.DATA.TEST.LABEL_SOURCES=[] names no labels"
    if test.DATA_SOURCES[0] not in _FOLDERS:
        return None
    folders = [data_path(cfg, split, "DATA_PATHS", 0) for split in ("TRAIN", "TEST")]
    if None in folders:
        return "nothing says where the images of both are"
    theirs, ours = (class_folders(folder) for folder in folders if folder)
    if theirs == ours and len(ours) > 1:
        return None
    return (
        f"{folders[0]} has the classes {listed(theirs) or '-'}, {folders[1]} {listed(ours) or '-'}"
    )
