"""Refuses another experiment in the folder of a run, finished or not."""

from vissl.data import build_dataset

from vissl_barlow.vissl_plugin.run.experiment import images_identity, refuse_other_experiment


def check_experiment(cfg) -> None:
    """Raises ConfigError unless the run in the folder is of the experiment that `cfg` describes.

    Settings, global batch, seed, the content of the initial weights, the number of images and of
    classes: all that differs is in the message. Where a run finds and leaves things, and how it goes
    about it, may change.
    """

    def images() -> dict:
        found: dict = {}
        for split in _splits(cfg):
            found |= images_identity(split, build_dataset(cfg, split))
        return found

    refuse_other_experiment(cfg, images)


def _splits(cfg) -> list[str]:
    return [*(["TEST"] if cfg.TEST_MODEL else []), *([] if cfg.TEST_ONLY else ["TRAIN"])]
