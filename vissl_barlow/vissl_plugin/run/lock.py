"""One run at a time in a checkpoint folder.

The lock is flock's, without the package filelock: that would replace two of the calls below and
leave the rest. Version 3 empties the file when it opens it, before it knows whether somebody holds
the lock, and the holder's name is gone; version 4 keeps it, but refuses a lock file that another user
of a shared folder has made.
"""

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

# Open descriptors of the lock files that this process holds: closing one gives its lock back.
_locks: dict[Path, int] = {}


def lock(folder: Path) -> None:
    """Takes the folder for this process, until `unlock` or its end; does nothing if it has it already.

    Unfinished checkpoints that a killed run has left there are removed. The lock file names the holder
    (host, pid, start) and stays when the lock is gone. Where the file system has no locks, says so and
    goes on.

    Raises:
        ConfigError: another process has it; the message names that process. Or it has no lock file.
    """
    path = (folder / LOCK_FILE).resolve()
    if path in _locks:
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise ConfigError(
            "CHECKPOINT.DIR",
            folder,
            f"{path.name} there, the lock of its run, cannot be opened ({error.strerror}); mend "
            "that, or name another folder",
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        content = os.read(descriptor, 1000).decode(errors="replace")
        os.close(descriptor)
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            logging.warning("%s: the file system has no locks; start no other run there", folder)
            return
        if not isinstance(error, BlockingIOError):
            raise
        raise ConfigError(
            "CHECKPOINT.DIR",
            folder,
            f"another run is writing there ({_holder(content)}); wait for it, stop it, or name "
            "another folder",
        ) from None
    _locks[path] = descriptor
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
    except OSError as error:  # the lock is there, and others are refused without a name
        logging.warning("%s: the name of this run is not written (%s)", path, error)
    leftovers = remove_leftovers(folder)
    if leftovers:
        logging.info("%d unfinished checkpoints of a killed run removed", leftovers)


def _holder(content: str) -> str:
    """Who wrote the lock file; a run that has just taken the lock may not have written it yet."""
    try:
        holder = json.loads(content)
        return f"pid {holder['pid']} on {holder['host']}, started {holder['started']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "which has only just started"


def unlock() -> None:
    """Gives back every folder that this process has taken."""
    while _locks:
        os.close(_locks.popitem()[1])
