"""Runs a command on a terminal of its own, and shows what a person would see there."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

# A control sequence of a terminal, a control character, or text between them.
_TOKENS = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


def on_a_terminal(
    command: list[str], folder: Path, *, columns: int = 80, env: dict[str, str] | None = None
) -> tuple[int, list[str]]:
    """Exit status of `command`, in `folder`, and the lines that stand on its terminal at the end.

    `columns`: the width of the terminal, which is as high as it needs to be.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", **(env or {})},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = bytearray()
    while True:
        try:
            written += os.read(ours, 65536)
        except OSError:  # how Linux says that nobody has the terminal open any more
            break
    os.close(ours)
    return process.wait(), seen(written.decode(errors="replace"))


def seen(written: str) -> list[str]:
    """The lines of a terminal, the lost ones above it too, after `written`."""
    lines, row, column = [""], 0, 0
    for token in _TOKENS.finditer(written):
        numbers, final, control, text = token.groups()
        if control == "\r":
            column = 0
        elif control == "\n":
            row, column = row + 1, 0
            if row == len(lines):
                lines.append("")
        elif text:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + text + line[column + len(text) :]
            column += len(text)
        elif final == "K" and numbers == "2":
            lines[row] = ""
        elif final == "A":
            row = max(row - int(numbers or 1), 0)
    return lines
