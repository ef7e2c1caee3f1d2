"""vissl/utils/logger.py, io.py and hooks/log_hooks.py: logs and configs on disks that are full."""

import contextlib
import json

import yaml
from classy_vision.generic.distributed_util import is_primary
from classy_vision.hooks.classy_hook import ClassyHook
from vissl.hooks import log_hooks
from vissl.utils import hydra_config, logger

from vissl_barlow.patient_files import FolderGone, append, replace
from vissl_barlow.vissl_plugin.wrap import in_barlow_run, wrap


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
