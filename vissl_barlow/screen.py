"""What a run shows: its own lines on stdout, warnings and errors on stderr, above a progress bar.

A bar is one line that its process draws again and again. While it is there it takes the place of
`sys.stdout` and `sys.stderr`, so that the handlers below ask for these at each line; lines of other
processes on the same terminal begin by erasing it, and it is drawn again below them.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from vissl_barlow.paths import PACKAGE

# To the line's start, and erase it.
ERASE_LINE = "\r\x1b[2K"


class ScreenHandler(logging.StreamHandler):
    """Writes to what `sys.stdout` or `sys.stderr`, by name, is when a line comes."""

    def __init__(self, name: str, *, erases: bool = False) -> None:
        """`erases`: the line that is there, if it is a terminal's: another process's bar."""
        logging.Handler.__init__(self)
        self._name, self._erases = name, erases

    @property
    def stream(self):
        return getattr(sys, self._name)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return ERASE_LINE + text if self._erases and self.stream.isatty() else text


def show_own_lines(logger: logging.Logger, *, primary: bool) -> None:
    """What goes to the screen by `logger` from now on, instead of all of it by a handler of stdout.

    Of warnings and errors, whoever has them, the text with its level on stderr; of what is said by this
    package, or by the program that was started, the text on stdout, if this process is the `primary`.
    """
    _remove_handlers_of_stdout(logger)
    warnings = ScreenHandler("stderr", erases=not primary)
    warnings.setLevel(logging.WARNING)
    warnings.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(warnings)
    if primary:
        own = ScreenHandler("stdout")
        own.addFilter(_is_own)
        logger.addHandler(own)


def show_all_lines(logger: logging.Logger) -> None:
    """Leaves what a handler of stdout shows as it is, but above a bar."""
    for handler in _remove_handlers_of_stdout(logger):
        shown = ScreenHandler("stdout")
        shown.setLevel(handler.level)
        shown.setFormatter(handler.formatter)
        logger.addHandler(shown)


class LinesOfWorkers:
    """What loader workers write to their stderr, line by line as warnings of this process's log.

    The workers are processes of their own, which know of no bar and no log: their warnings, and those
    of the libraries that decode images for them, would go to the terminal alone, into the bar.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        """`say(line)` is called with each, in a thread."""
        reader, writer = os.pipe()
        self._writer = Connection(writer, readable=False)
        pass_lines_on(os.fdopen(reader, "rb"), say)

    def __getstate__(self) -> Connection:
        return self._writer

    def __setstate__(self, writer: Connection) -> None:
        self._writer = writer

    def take_stderr(self) -> None:
        """In a worker: what Python or C code writes to its stderr goes to who started it."""
        os.dup2(self._writer.fileno(), 2)
        logging.basicConfig(format="%(message)s", force=True)


def pass_lines_on(stream: IO[bytes], say: Callable[[str], object]) -> None:
    """Calls `say(line)`, in a thread, with each line from `stream` that is not empty, until its end."""

    def pass_on() -> None:
        with stream:
            for line in stream:
                if text := line.decode(errors="replace").rstrip():
                    say(text)

    threading.Thread(target=pass_on, daemon=True).start()


def _is_own(record: logging.LogRecord) -> bool:
    if record.levelno >= logging.WARNING:
        return False  # on stderr
    program = getattr(sys.modules["__main__"], "__file__", None)
    return Path(record.pathname).is_relative_to(PACKAGE) or record.pathname == program


def _remove_handlers_of_stdout(logger: logging.Logger) -> list[logging.Handler]:
    found = [h for h in logger.handlers if getattr(h, "stream", None) is sys.stdout]
    for handler in found:
        logger.removeHandler(handler)
    return found
