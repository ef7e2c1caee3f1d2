"""What a run writes besides its checkpoints: a full disk delays it, and ends nothing.

What cannot be written is reported, kept in memory and tried again with whatever is written next; a file
that is read back here is what it is to hold. A file that is damaged is set aside. One process of a run
writes, and what a forked child would have inherited is its parent's to write.
"""

import itertools
import json
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vissl_barlow.atomic_files import atomic_file

# Bytes kept of a log that cannot be written, and read of a small file: a thousand times what they have.
LIMIT = 16 * 2**20

_to_replace: dict[Path, bytes] = {}
_to_append: dict[Path, bytearray] = {}
_appended: set[Path] = set()  # by this process
_reported: set[Path] = set()
_busy = False
_lock = threading.RLock()  # any thread may log


class FolderGone(Exception):
    """The folder that a run writes to is no longer there; the message is one line for the user."""

    def __init__(self, folder: str | os.PathLike) -> None:
        super().__init__(
            f"{folder}: removed while the run was writing there, so nothing that it does can be kept; "
            "the run ends here, and the same command starts it anew"
        )


def replace(path: str | os.PathLike, content: str | bytes) -> bool:
    """Makes `content` (text in UTF-8) all that `path` holds, as `atomic_file` does, when possible.

    Returns:
        Whether it is there, and need not wait.

    Raises:
        FolderGone: its folder has been removed.
    """
    path = Path(path).absolute()
    with _lock:
        _to_replace[path] = content.encode() if isinstance(content, str) else content
        _write_what_can_be(path)
        return path not in _to_replace


def append(path: str | os.PathLike, text: str) -> None:
    """Adds `text`, whole lines in UTF-8, to the end of `path` when possible, in order.

    A line that a kill cut short ends there. Of what has to wait, the last 16 MiB are kept.

    Raises:
        FolderGone: its folder has been removed.
    """
    path = Path(path).absolute()
    with _lock:
        waiting = _to_append.setdefault(path, bytearray())
        waiting += text.encode()
        if len(waiting) > LIMIT:
            del waiting[: waiting.index(b"\n", -LIMIT) + 1]
        _write_what_can_be(path)


def read_bytes(path: str | os.PathLike, *, bounded: bool = True) -> bytes | None:
    """What `path` holds or is to hold; None where there is nothing.

    So it is where it is no file or, `bounded`, one of more than 16 MiB, which is then set aside.
    """
    path = Path(path).absolute()
    if path in _to_replace:
        return _to_replace[path]
    if not os.path.lexists(path):
        return None
    try:
        if not path.is_file() or (bounded and path.stat().st_size > LIMIT):
            raise ValueError("no file, or too large for what a run writes there")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        set_aside(path, error)
        return None


def read_json(path: str | os.PathLike, is_right: Callable[[Any], bool]) -> Any:
    """What `path` holds or is to hold, from JSON; None where there is nothing.

    So it is where the file is damaged or `is_right` says no of its content; the file is set aside.
    """
    content = read_bytes(path)
    if content is None:
        return None
    try:
        value = json.loads(content)
        if not is_right(value):
            raise ValueError("it holds something else")
    except (ValueError, RecursionError) as error:
        set_aside(path, error)
        return None
    return value


def set_aside(path: str | os.PathLike, reason: Exception) -> None:
    """Renames what is at `path`, to a name that nothing has, and says so."""
    path = Path(path).absolute()
    _to_replace.pop(path, None)
    names = (path.with_name(f"{path.name}.damaged{number}") for number in itertools.count(1))
    aside = next(name for name in names if not os.path.lexists(name))
    try:
        path.rename(aside)
        logging.warning("%s is damaged (%s): set aside as %s", path, reason, aside.name)
    except OSError as error:
        logging.warning("%s is damaged (%s), and cannot be renamed (%s)", path, reason, error)


def _write_what_can_be(wanted: Path) -> None:
    """Raises FolderGone for the folder of `wanted`; what else was to go where no folder is, is lost."""
    global _busy
    if _busy:
        return  # a report of what failed, on its way to a log that may fail too
    _busy = True
    try:
        for path in [*_to_replace, *_to_append]:
            _write(path)
        if not wanted.parent.is_dir():
            raise FolderGone(wanted.parent)
    finally:
        _busy = False


def _write(path: Path) -> None:
    try:
        if path.is_dir():
            set_aside(path, IsADirectoryError("a folder"))
        if path in _to_replace:
            with atomic_file(path) as file:
                file.write(_to_replace[path])
            del _to_replace[path]
        if path in _to_append:
            _append(path, _to_append[path])
            del _to_append[path]
    except OSError as error:
        if not path.parent.is_dir():
            _to_replace.pop(path, None)
            _to_append.pop(path, None)
        elif path not in _reported:
            _reported.add(path)
            what = "metrics" if path in _to_append else path.name
            logging.error(
                "%s not written (%s): the run goes on, and tries again with whatever it writes next",
                what,
                f"{path}: {error.strerror or error}",
            )
        return
    if path in _reported:
        _reported.discard(path)
        logging.info("%s: written, with all that had to wait", path)


def _append(path: Path, waiting: bytearray) -> None:
    # Opened for each write: the file may be replaced in between. A pipe must not be waited for.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o644)
    try:
        if path not in _appended and _ends_within_a_line(path, descriptor):
            waiting[:0] = b"\n"
        _appended.add(path)
        while waiting:
            del waiting[: os.write(descriptor, waiting)]
    finally:
        os.close(descriptor)


def _ends_within_a_line(path: Path, descriptor: int) -> bool:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _leave_to_the_parent() -> None:
    global _busy, _lock
    _to_replace.clear()
    _to_append.clear()
    _busy, _lock = False, threading.RLock()


os.register_at_fork(after_in_child=_leave_to_the_parent)
