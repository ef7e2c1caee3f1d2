"""`python -m MODULE ARGUMENT...` many times without importing torch and VISSL for each.

A server imports what other people wrote, once, and forks: each run is a process of its own that finds
these modules imported, and imports the plugin itself, as hydra finds it. Its ranks are forked too,
where VISSL would spawn them. What is tested of starting, spawning and importing is run without this.

Run as a script it is the server: requests and answers are lines of JSON.
"""

import contextlib
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from patience import LIMIT, Patience, wait_for

MODULES = (
    "vissl.engines",
    "vissl.utils.distributed_launcher",
    "vissl.utils.hydra_config",
    "scipy.optimize",
    "sklearn.linear_model",
    "sklearn.neighbors",
    "sklearn.svm",
    "matplotlib.figure",
    "cv2",
    "rich.progress",
)


class Server:
    """A process of `script` that answers each line of JSON with one, as long as the block lasts."""

    def __init__(self, script: str, *arguments: str) -> None:
        self.command = [sys.executable, script, *arguments]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self.command,
            # Read when numpy and torch are imported: the forked ones have as many threads.
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *error) -> None:
        self.process.stdin.close()
        wait_for(self.process)

    def ask(self, request: dict) -> Any:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Preloaded(Server):
    """`with Preloaded() as python: python.run(["-m", "MODULE", ...], cwd=folder, env=environment)`."""

    def __init__(self) -> None:
        super().__init__(__file__)

    def run(
        self, arguments: Sequence[str], *, cwd: str | os.PathLike, env: dict[str, str]
    ) -> subprocess.CompletedProcess:
        """As `patience.run([sys.executable, *arguments], cwd=cwd, env=env)`, of a module or script."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("stdout", "stderr")]
            request = {
                "arguments": list(arguments),
                "cwd": str(cwd),
                "env": env,
                "files": [str(path) for path in files],
            }
            status = self.ask(request)
            output = [path.read_text() for path in files]
            return subprocess.CompletedProcess(list(arguments), status, *output)


@functools.cache
def preloaded() -> Preloaded:
    """That of this process; it ends with it, as its standard input does."""
    return Preloaded().__enter__()


def rank(rank: int, fn, *args) -> None:
    """A forked rank: with signals as a spawned process has them, and a name that tells it."""
    Path("/proc/self/comm").write_text("rank")
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fn(rank, *args)


def fork_ranks() -> None:
    """From now on what VISSL would spawn is forked."""
    import torch.multiprocessing

    def forked(fn, args, nprocs, join):
        return torch.multiprocessing.start_processes(
            rank, (fn, *args), nprocs, join=join, start_method="fork"
        )

    torch.multiprocessing.spawn = forked


def wait_for_fork(pid: int, limit: float) -> int:
    """Its exit status, negative for a signal: its session is killed when `limit` seconds of `patience`
    are over."""
    patience = Patience(limit)
    while (done := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if patience.is_over():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(done[1])


def _become(request: dict) -> None:
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(request["files"], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    fork_ranks()
    sys.orig_argv = [sys.executable, *request["arguments"]]
    first, *rest = request["arguments"]
    if first == "-m":
        module, *arguments = rest
        sys.argv, sys.path[0] = [module, *arguments], os.getcwd()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


def _serve() -> None:
    for module in MODULES:
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    # One at a time, so no run has another's end to answer.
    while line := sys.stdin.readline():
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            answers.close()
            _become(request)
            return
        print(json.dumps(wait_for_fork(pid, LIMIT)), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
