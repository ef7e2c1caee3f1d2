"""One run at a time in a checkpoint folder."""

import errno
import fcntl
import json
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from vissl_barlow.atomic_files import remove_leftovers
from vissl_barlow.vissl_plugin.errors import ConfigError

LOCK_FILE = "barlow_run.lock"


_locks: dict[Path, int] = {}


def lock(folder: Path) -> None:
    path = (folder / LOCK_FILE).resolve()
    if path in _locks:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 1000).decode(errors="replace")
        os.close(descriptor)
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            logging.warning("%s: the file system has no locks; start no other run there", folder)
            return
        if not isinstance(error, BlockingIOError):
            raise
        raise _occupied(folder, holder) from None
    _locks[path] = descriptor
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())
    leftovers = remove_leftovers(folder)
    if leftovers:
        logging.info("%d unfinished checkpoints of a killed run removed", leftovers)


def _occupied(folder: Path, holder: str) -> Exception:
    try:
        told = json.loads(holder)
        first = f"pid {told['pid']} on {told['host']}, started {told['started']}"
    except (ValueError, KeyError):
        first = "which has only just started"
    return ConfigError(
        "CHECKPOINT.DIR",
        folder,
        f"another run is writing there ({first}); wait for it, stop it, or name another folder",
    )


def unlock() -> None:
    """Gives the folders back that this process holds."""
    while _locks:
        os.close(_locks.popitem()[1])
