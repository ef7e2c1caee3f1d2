"""Files that somebody else has put there: read only where reading them comes to an end."""

import errno
import os
import stat
from typing import BinaryIO

# A list of images as text; that of Places-205 has 100 MB.
MAX_LIST_BYTES = 1 << 30


def regular_size(path: str | os.PathLike) -> int:
    """The bytes of a regular file; nothing is opened, since to open a device can do something.

    Raises:
        OSError: missing, or a pipe, a device, a socket or a folder; names `path`.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return status.st_size


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A regular file, open for reading bytes.

    Raises:
        OSError: as `regular_size`, or it cannot be opened.
    """
    regular_size(path)
    # Without waiting: what has become a pipe in the meantime has nobody at its other end.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_regular(path: str | os.PathLike, max_bytes: int) -> bytes:
    """What is in a regular file of at most `max_bytes`.

    A file that states no length is empty: some of those below /proc have no end.

    Raises:
        OSError: as `open_regular`, or it is larger.
    """
    size = regular_size(path)
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"{size} bytes, more than {max_bytes}", os.fspath(path))
    if size == 0:
        return b""
    with open_regular(path) as file:
        return file.read(size)
