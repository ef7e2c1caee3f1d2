"""vissl/utils/logger.py, io.py and hooks/log_hooks.py: what goes to the screen and what to logs, and
logs and configs on disks that are full."""

import contextlib
import json
import logging
import sys

import yaml
from classy_vision.generic.distributed_util import is_primary
from classy_vision.hooks.classy_hook import ClassyHook
from vissl.hooks import log_hooks
from vissl.utils import checkpoint as vissl_checkpoint
from vissl.utils import distributed_launcher, hydra_config, logger
from vissl.utils.env import get_machine_local_and_dist_rank

from vissl_barlow.patient_files import FolderGone, append, replace
from vissl_barlow.screen import show_all_lines, show_own_lines
from vissl_barlow.vissl_plugin.wrap import in_barlow_run, is_verbose, of_barlow_config, wrap

# VISSL's, of its log.
_FORMAT = "%(levelname)s %(asctime)s %(filename)s:%(lineno)4d: %(message)s"


class _Log:
    """What VISSL takes for the open file of a log; each line is on its way when it is written."""

    def __init__(self, path: str) -> None:
        self.path = path

    def write(self, text: str) -> None:
        with contextlib.suppress(FolderGone):  # the monitor and the checkpoints tell
            append(self.path, text)

    def flush(self) -> None:
        """There is nothing to flush."""

    def close(self) -> None:
        """Nor to close."""


def write_logs_when_possible() -> None:
    """vissl/utils/logger.py:67, io.py:73 and 81, hooks/log_hooks.py:187: `open(filename, ...)`.

    A fault of VISSL 0.1.6: a full disk, or a folder where a log would go, ends the run at its start or
    at an epoch's end, loses lines, and leaves an empty `train_config.yaml`. Logs and configs are now
    written as `patient_files` does.
    """

    @wrap(logger, "_cached_log_stream", applies=in_barlow_run)
    def log_stream(original, filename):
        return _Log(filename)

    @wrap(log_hooks.LogLossLrEtaHook, "__init__", applies=in_barlow_run)
    def init(original, hook, checkpoint_folder, btime_freq=None):
        ClassyHook.__init__(hook)
        hook.btime_freq = btime_freq
        hook.json_stdout_logger = _Log(f"{checkpoint_folder}/stdout.json") if is_primary() else None

    @wrap(log_hooks, "save_file", applies=in_barlow_run)
    def save_metrics(original, data, filename, append_to_json=True, verbose=True):
        append(filename, json.dumps(data, sort_keys=True) + "\n")

    @wrap(hydra_config, "save_file", applies=in_barlow_run)
    def save_config(original, data, filename, append_to_json=True, verbose=True):
        replace(filename, yaml.dump(data))


def leave_the_screen_to_people() -> None:
    """vissl/utils/logger.py:40: `logging.StreamHandler(sys.stdout)`, of DEBUG, in each process.

    VISSL 0.1.6 shows the environment, the config, the libraries and the network, 730 lines, before the
    first step, once per process, and writes over a progress bar. Now they go to log.txt, as ever, and
    the screen gets what `vissl_barlow.screen` says; with config.VERBOSE=true, VISSL's lines too. What
    VISSL's launcher says is in log.txt as well, where it had no place.
    """
    theirs = logger.setup_logging
    # The engines and the tools have imported it by its name.
    modules = [m for m in sys.modules.values() if _names(m).get("setup_logging") is theirs]
    for module in modules:

        @wrap(module, "setup_logging", applies=in_barlow_run)
        def setup_logging(original, name, output_dir=None, rank=0):
            original(name, output_dir, rank)
            if is_verbose():
                show_all_lines(logging.root)
            else:
                show_own_lines(logging.root, primary=int(rank) == 0)

    @wrap(distributed_launcher, "is_training_finished", applies=of_barlow_config)
    def is_training_finished(original, cfg, checkpoint_folder):
        if vissl_checkpoint.is_training_finished(cfg, checkpoint_folder):
            logging.info(
                "Training already succeeded in %s: nothing is left to do. For another one, name "
                "another config.CHECKPOINT.DIR; for more epochs, set config.BARLOW.EXTEND=true "
                "config.OPTIMIZER.num_epochs=EPOCHS",
                checkpoint_folder,
            )
            return True
        if get_machine_local_and_dist_rank()[1] == 0:
            log = logging.StreamHandler(_Log(f"{checkpoint_folder}/log.txt"))
            log.setFormatter(logging.Formatter(_FORMAT))
            logging.root.addHandler(log)
        return False


def _names(module) -> dict:
    return getattr(module, "__dict__", {})  # not all that is there for a module is one
