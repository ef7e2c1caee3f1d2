"""VISSL's log of the loss, and its metrics: a full disk leaves gaps in them and ends no training."""

import contextlib
import logging
from collections.abc import Iterator

from vissl.hooks.log_hooks import DumpMemoryOnException, LogLossLrEtaHook

from vissl_barlow.vissl_plugin.hooks.base import BarlowHook


@contextlib.contextmanager
def tolerate_failed_logs() -> Iterator[None]:
    """Reports a log that cannot be written, instead of ending the training that it is about."""
    try:
        yield
    except OSError as error:
        logging.error("metrics not written (%s): training goes on", error)


class BarlowLogHook(BarlowHook):
    """VISSL's `LogLossLrEtaHook`, whose file is already open (vissl/hooks/log_hooks.py:278)."""

    def __init__(self, hook: LogLossLrEtaHook) -> None:
        super().__init__()
        self.hook = hook

    def on_start(self, task) -> None:
        self.hook.on_start(task)

    def on_update(self, task) -> None:
        with tolerate_failed_logs():
            self.hook.on_update(task)


class BarlowMemoryDump(DumpMemoryOnException):
    """VISSL's, which hides the failure that it is about where it fails itself (log_hooks.py:99): on a
    full disk, or without a GPU."""

    def on_exception(self, task) -> None:
        try:
            super().on_exception(task)
        except Exception as error:
            logging.error("no whole dump of the memory (%s)", error)
