"""Refuses what cannot work, before anything long starts.

Runs in the main process, where VISSL resolves its config, for every config with a `BARLOW` section.
Each refusal is one line: the key, its value, the remedy.
"""

import difflib
import sys

from vissl.utils import hydra_config

from vissl_barlow.paths import config_folder
from vissl_barlow.vissl_plugin.checks.evaluation import check_evaluation
from vissl_barlow.vissl_plugin.checks.model_and_loss import check_fit, check_model
from vissl_barlow.vissl_plugin.checks.pretraining import (
    check_batch,
    check_checkpoint_folder,
    check_checkpoints,
    check_data,
    check_devices,
    check_nodes,
    check_schedule,
)
from vissl_barlow.vissl_plugin.checks.task import check_task
from vissl_barlow.vissl_plugin.errors import ConfigError, RankFailed


def install() -> None:
    """Checks every config VISSL resolves from now on, and prints refusals as one line."""
    resolve = hydra_config.infer_and_assert_hydra_config

    def check_and_resolve(cfg, *engine_name):  # VISSL 0.1.6 does not pass the engine, main does
        if "BARLOW" in cfg:
            check(cfg, *engine_name)
        else:
            check_fit(cfg)
        resolved = resolve(cfg, *engine_name)
        if "BARLOW" in cfg:
            check_task(cfg)  # afterwards: VISSL may have put in another task
        return resolved

    hydra_config.infer_and_assert_hydra_config = check_and_resolve
    show_traceback = sys.excepthook

    def show_in_one_line(kind, error, traceback):
        line = _unknown_config(error) if kind.__name__ == "MissingConfigException" else None
        if isinstance(error, ConfigError | RankFailed):
            line = str(error)
        if line is None:
            show_traceback(kind, error, traceback)
        else:
            sys.stdout.flush()
            print(f"vissl_barlow: {line}", file=sys.stderr)

    sys.excepthook = show_in_one_line


def check(cfg, engine_name: str = "train") -> None:
    """Raises ConfigError for the first thing in `cfg` that cannot work."""
    check_devices(cfg)
    check_nodes(cfg)
    check_checkpoint_folder(cfg)
    splits = []
    if engine_name == "train" and not cfg.TEST_ONLY:
        check_batch(cfg)
        check_schedule(cfg)
        check_data(cfg, "TRAIN")
        splits.append("TRAIN")
    if cfg.TEST_MODEL or cfg.TEST_ONLY or engine_name != "train":
        check_data(cfg, "TEST")
        splits.append("TEST")
    check_model(cfg)
    check_evaluation(cfg, splits)
    check_checkpoints(cfg)


def _unknown_config(error) -> str | None:
    """The line for a config name hydra could not find, with the names that resemble it."""
    missing = str(getattr(error, "missing_cfg_file", None) or "")
    if not missing:
        return None
    wanted = missing.removeprefix("config/").removesuffix(".yaml")
    known = sorted(
        path.relative_to(folder / "config").with_suffix("").as_posix()
        for folder in (config_folder("configs"), config_folder("benchmark_configs"))
        for path in (folder / "config").rglob("*.yaml")
    )
    near = difflib.get_close_matches(wanted, known, n=4, cutoff=0.5) or known
    return f"config={wanted}: there is no such config; did you mean {', '.join(near)}?"
