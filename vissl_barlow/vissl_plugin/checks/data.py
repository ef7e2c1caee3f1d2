"""Lists of data sets, as VISSL reads them; and the keys that a data source would not read."""

from vissl.data import DATASET_SOURCE_MAP

from vissl_barlow.vissl_plugin.checks.common import Refusals, is_typed, vissl_defaults
from vissl_barlow.vissl_plugin.errors import ConfigError

# The source and its only data set.
_DIGITS = ["barlow_digits"]
# What VISSL's own sources read; the plugin's say so themselves (`keys`).
_QUEUE = {"DATA_PATHS", "ENABLE_QUEUE_DATASET"}
_KEYS_OF_VISSL = {
    "disk_folder": _QUEUE,
    "disk_filelist": {*_QUEUE, "REMOVE_IMG_PATH_PREFIX", "NEW_IMG_PATH_PREFIX"},
    "torchvision_dataset": {"DATA_PATHS"},
    "synthetic": {"RANDOM_SYNTHETIC_IMAGES"},
}
_SOURCE_KEYS = (
    "DATA_PATHS",
    "ENABLE_QUEUE_DATASET",
    "REMOVE_IMG_PATH_PREFIX",
    "NEW_IMG_PATH_PREFIX",
    "RANDOM_SYNTHETIC_IMAGES",
)


def name_digits(cfg) -> None:
    """Gives the digits their name in `cfg`, in place, where VISSL's default names another data set."""
    for split in ("TRAIN", "TEST"):
        section, key = cfg.DATA[split], "DATASET_NAMES"
        default = vissl_defaults()["DATA"][split][key]
        typed = is_typed(cfg, f"DATA.{split}.{key}")
        if section.DATA_SOURCES == _DIGITS and section[key] == default and not typed:
            section[key] = list(_DIGITS)


def check_data_keys(cfg, split: str) -> None:
    """Raises ConfigError for lists that do not fit one another and for keys that nothing reads."""
    refusals = Refusals()
    section = cfg.DATA[split]
    for key, expected in (("DATASET_NAMES", "DATA_SOURCES"), ("DATA_PATHS", "DATA_SOURCES")):
        with refusals:
            _check_length(section, split, key, expected)
    with refusals:
        _check_labels(section, split)
    refusals.raise_all()
    with refusals:
        _check_one_source(cfg, split)
    for source in section.DATA_SOURCES:
        read = getattr(DATASET_SOURCE_MAP.get(source), "keys", _KEYS_OF_VISSL.get(source))
        for key in _SOURCE_KEYS:
            if read is not None and section[key] and key not in read:
                with refusals:
                    raise ConfigError(
                        f"DATA.{split}.{key}", section[key], _remedy(split, key, source)
                    )
    refusals.raise_all()


def _check_length(section, split: str, key: str, expected: str) -> None:
    given, wanted = section[key], section[expected]
    if len(given) != len(wanted) and (given or key == "DATASET_NAMES"):
        raise ConfigError(
            f"DATA.{split}.{key}",
            given,
            f"{len(given)} for the {len(wanted)} of config.DATA.{split}.{expected}={wanted}; "
            "give one for each",
        )


def _check_one_source(cfg, split: str) -> None:
    """VISSL's train step, and this plugin's, read one source's images, whatever others there are."""
    section = cfg.DATA[split]
    key, sources = f"DATA.{split}.DATA_SOURCES", section.DATA_SOURCES
    if len(sources) != 1:
        raise ConfigError(
            key,
            sources,
            "a run is of the images of one source; name one, and of several folders the one that has "
            "them, or links to them, in it",
        )
    names = section.DATASET_NAMES
    if sources == _DIGITS and names != _DIGITS:
        raise ConfigError(
            f"DATA.{split}.DATASET_NAMES",
            names,
            f"would not be read, with config.{key}={sources}; set config.{key}=[barlow_folder], or "
            "remove it",
        )


def _check_labels(section, split: str) -> None:
    paths, sources = section.LABEL_PATHS, section.LABEL_SOURCES
    # The same as DATA_PATHS is VISSL 0.1.6's own way to say that there are none.
    if not paths or paths == section.DATA_PATHS:
        return
    if "disk_filelist" not in sources:
        raise ConfigError(
            f"DATA.{split}.LABEL_PATHS",
            paths,
            f"would not be read, with config.DATA.{split}.LABEL_SOURCES={sources}; remove it, or set "
            f"config.DATA.{split}.LABEL_SOURCES=[disk_filelist]",
        )
    _check_length(section, split, "LABEL_PATHS", "LABEL_SOURCES")


def _remedy(split: str, key: str, source: str) -> str:
    other = "barlow_folder" if key == "DATA_PATHS" else None
    if other is None:
        other = next(name for name, keys in _KEYS_OF_VISSL.items() if key in keys)
    return (
        f"would not be read by config.DATA.{split}.DATA_SOURCES=[{source}]; set "
        f"config.DATA.{split}.DATA_SOURCES=[{other}], or remove it"
    )
