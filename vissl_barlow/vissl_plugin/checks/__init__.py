"""Refuses what cannot work, before anything long starts.

Runs in the main process, where VISSL resolves its config, for every config with a `BARLOW` section.
Each refusal is one line: the key, its value, the remedy.
"""

import sys
from urllib.error import URLError

from vissl.utils import hydra_config
from vissl.utils.io import is_url

from vissl_barlow.patient_files import FolderGone
from vissl_barlow.stop_signals import stopped_by_ctrl_c
from vissl_barlow.vissl_plugin.checks.common import Refusals
from vissl_barlow.vissl_plugin.checks.data import check_data_keys, name_digits
from vissl_barlow.vissl_plugin.checks.dry_run import (
    check_batch_norm,
    check_last_batch,
    check_passes,
)
from vissl_barlow.vissl_plugin.checks.evaluation import (
    check_classifier,
    check_normalization,
    check_weights,
    classifier_outputs,
)
from vissl_barlow.vissl_plugin.checks.experiment import check_experiment
from vissl_barlow.vissl_plugin.checks.images import check_images, check_number
from vissl_barlow.vissl_plugin.checks.labels import check_labels
from vissl_barlow.vissl_plugin.checks.machine import (
    check_checkpoint_folder,
    check_devices,
    check_nodes,
    check_starter,
    check_wandb,
    remove_new_checkpoint_folder,
)
from vissl_barlow.vissl_plugin.checks.meters import check_meters
from vissl_barlow.vissl_plugin.checks.model_and_loss import check_fit, check_model
from vissl_barlow.vissl_plugin.checks.own_images import choose_values
from vissl_barlow.vissl_plugin.checks.parameter_names import check_parameter_names
from vissl_barlow.vissl_plugin.checks.pieces import (
    check_activation_checkpointing,
    check_pieces,
    check_stages_of_model,
)
from vissl_barlow.vissl_plugin.checks.pretraining import (
    check_batch,
    check_checkpoints,
    check_clipping,
    check_test_views,
)
from vissl_barlow.vissl_plugin.checks.probe import settle_probe
from vissl_barlow.vissl_plugin.checks.ranges import check_ranges
from vissl_barlow.vissl_plugin.checks.rates import check_rates
from vissl_barlow.vissl_plugin.checks.schema import check_keys, check_settings
from vissl_barlow.vissl_plugin.checks.syntax import unreadable_words
from vissl_barlow.vissl_plugin.checks.task import check_task
from vissl_barlow.vissl_plugin.checks.tools import check_tool
from vissl_barlow.vissl_plugin.checks.unknown_names import unknown_config, unknown_key
from vissl_barlow.vissl_plugin.checks.unread import check_unread
from vissl_barlow.vissl_plugin.checks.value_types import check_types, complete_values
from vissl_barlow.vissl_plugin.checks.views import check_views
from vissl_barlow.vissl_plugin.errors import ConfigError, ConfigErrors, RankFailed
from vissl_barlow.vissl_plugin.hooks import probes
from vissl_barlow.vissl_plugin.settings import complete
from vissl_barlow.vissl_plugin.wrap import in_barlow_run


def install() -> None:
    """Completes and checks every config VISSL resolves from now on; prints refusals as lines."""
    resolve = hydra_config.infer_and_assert_hydra_config

    def check_and_resolve(cfg, *engine_name):  # VISSL 0.1.6 does not pass the engine, main does
        try:
            return resolved(cfg, *engine_name)
        except Exception:
            remove_new_checkpoint_folder()
            raise

    def resolved(cfg, *engine_name):
        if "BARLOW" in cfg:
            complete(cfg.BARLOW)
            refusals = Refusals()
            with refusals:
                choose_values(cfg)
            complete_values(cfg)
            check(cfg, *engine_name, refusals=refusals)
        else:
            check_fit(cfg)
        address = cfg.MODEL.WEIGHTS_INIT.PARAMS_FILE
        address = address if "BARLOW" in cfg and is_url(address) else ""
        try:
            result = resolve(cfg, *engine_name)
        except (URLError, ConnectionError, TimeoutError) as error:
            if not address:
                raise
            remedy = f"cannot be downloaded ({error}); download it yourself, and name the file"
            raise ConfigError("MODEL.WEIGHTS_INIT.PARAMS_FILE", address, remedy) from None
        if address:
            check_weights(cfg)
        if "BARLOW" in cfg:
            check_task(cfg)  # afterwards: VISSL may have put in another task
            check_experiment(cfg)  # of the config as it is recorded
        return result

    hydra_config.infer_and_assert_hydra_config = check_and_resolve
    show_traceback = sys.excepthook

    def show_in_lines(kind, error, traceback):
        if kind is KeyboardInterrupt and in_barlow_run():
            sys.stdout.flush()
            raise stopped_by_ctrl_c()  # Python exits with its status
        lines = _lines(error)
        if not lines:
            show_traceback(kind, error, traceback)
            return
        sys.stdout.flush()
        for line in lines:
            print(f"vissl_barlow: {line}", file=sys.stderr)

    sys.excepthook = show_in_lines


def check(cfg, engine_name: str = "train", *, refusals: Refusals) -> None:
    """Raises ConfigError for what cannot work in `cfg`: all of it, but for what hangs on another thing.

    `cfg.BARLOW` is complete; `refusals` has what is known to be wrong.
    """
    check_starter(cfg)
    known = len(refusals.errors)
    for check_one in (
        check_types,
        check_ranges,
        check_settings,
        check_keys,
        check_checkpoint_folder,
    ):
        with refusals:
            check_one(cfg)
    if len(refusals.errors) > known:
        refusals.raise_all()  # the rest reads what these have checked
    name_digits(cfg)
    for check_one in (check_devices, check_nodes, check_wandb):
        with refusals:
            check_one(cfg)
    splits = []
    trains = engine_name == "train" and not cfg.TEST_ONLY
    if trains:
        splits.append("TRAIN")
        for check_one in (
            check_batch,
            check_rates,
            check_clipping,
            check_pieces,
            check_activation_checkpointing,
            settle_probe,
            check_views,
        ):
            with refusals:
                check_one(cfg)
    if cfg.TEST_MODEL or probes(cfg) or cfg.TEST_ONLY or engine_name != "train":
        splits.append("TEST")
    classes = classifier_outputs(cfg)
    with refusals:
        for split in splits:
            check_data_keys(cfg, split)
            check_images(cfg, split)
        check_labels(cfg, splits, classes)
        check_meters(cfg, splits)
        check_tool(cfg)
    with refusals:
        check_unread(cfg, splits)
    with refusals:
        check_model(cfg)
        check_passes(cfg, splits)
        if trains:
            for check_one in (check_batch_norm, check_stages_of_model, check_parameter_names):
                with refusals:
                    check_one(cfg)
        if classes is not None:
            check_classifier(cfg)
        check_weights(cfg)
        check_normalization(cfg)
    refusals.raise_all()
    for split in splits:  # of images that are there, and can be read
        with refusals:
            check_number(cfg, split)
    with refusals:
        check_test_views(cfg)
    if trains:
        with refusals:
            check_last_batch(cfg)
    refusals.raise_all()
    check_checkpoints(cfg)


def _lines(error: BaseException) -> list[str]:
    """What to print of an error that is the user's to mend; empty for any other."""
    if isinstance(error, ConfigErrors):
        return [str(single) for single in error.errors]
    if isinstance(error, ConfigError | RankFailed | FolderGone):
        return [str(error)]
    name = type(error).__name__  # hydra need not be imported to get here
    line = unknown_config(error) if name == "MissingConfigException" else None
    line = unknown_key(error) if name == "ConfigCompositionException" else line
    return [line] if line else unreadable_words(error)
