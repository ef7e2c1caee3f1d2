"""Files that are whole or not there: how this project writes what somebody may read after a kill."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PREFIX = ".unfinished-"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new file, open for writing bytes, that gets the name `path` when the block ends.

    The bytes go to a temporary file in the same folder, to the disk, and only then to the name: a
    kill, a crash or a full disk at any moment leaves `path` as it was before, and so does an
    exception in the block. A symbolic link at `path` is replaced, not followed. A kill leaves the
    temporary behind: see `remove_leftovers`.

    Raises:
        OSError: the folder is missing or not writable, the disk is full; names `path`. One raised in
            the block is taken for a failed write.
    """
    path = Path(path)
    temporary = temporary_path(path.parent)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # numpy's own has no number and a text of its own where the disk is full.
            reason = error.strerror or str(error)
            raise OSError(error.errno or errno.EIO, reason, str(path)) from error
        raise


def write_text_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes `text` in UTF-8, after which `path` holds all of it or is what it was before.

    Raises:
        OSError: as `atomic_file`.
    """
    with atomic_file(path) as file:
        file.write(text.encode())


def temporary_path(folder: str | os.PathLike) -> Path:
    """A name in `folder` that no other call, process or machine uses and `remove_leftovers` knows.

    It holds nothing of the final name: VISSL resumes from any file with "model_final" in its name.
    """
    return Path(folder) / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}.tmp"


def remove_leftovers(folder: str | os.PathLike) -> int:
    """Removes the temporary files that killed writers left in `folder`; returns their number.

    To be called while no other process writes there.

    Raises:
        OSError: one cannot be removed.
    """
    leftovers = list(Path(folder).glob(f"{_PREFIX}*.tmp"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def file_state(path: str | os.PathLike) -> tuple[int, ...]:
    """Numbers that differ once the file at `path` is replaced or written to, whatever clocks say.

    Raises:
        OSError: there is no file.
    """
    status = os.stat(path)
    # The time of the last write is what anybody sets it to, and the clock's; a new file has its own
    # number, and a written one another time of change.
    return (
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have nothing to flush for a folder and say so.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
