"""A run's life: alone in its folder, stopped by signals, ended when one of its processes is gone.

Mends of VISSL 0.1.6 for configs with a `BARLOW` section, one function each as in `compat`, which
applies them, and the hook that answers a request to stop.
"""

import errno
import fcntl
import functools
import json
import logging
import multiprocessing.util
import os
import signal
import socket
import sys
import threading
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from classy_vision.generic.distributed_util import barrier, get_world_size, is_primary
from classy_vision.hooks.classy_hook import ClassyHook
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from vissl.hooks.log_hooks import LogLossMetricsCheckpointHook
from vissl.utils.env import get_machine_local_and_dist_rank

from vissl_barlow.atomic_files import remove_leftovers
from vissl_barlow.vissl_plugin.compat import wrap

LOCK_FILE = "barlow_run.lock"
# SIGTERM is the usual request to stop; SLURM's `--signal` and submitit send the other two.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Config (`config.BARLOW`): after so long without an answer from another process a run fails.
TIMEOUT_MINUTES = 10
# Seconds that processes get to end by themselves when another one of their run is gone; then they
# are terminated and, after as long again, killed.
GRACE = 10
# Steps between a request to stop and its answer on several GPUs: reading it sooner would make every
# step wait for the device.
GPU_DELAY = 2
# How a process fails that was talking to one that is gone.
_LOST_CONNECTION = ("gloo", "nccl", "connection", "distbackenderror", "timed out", "pair closure")

_locks: dict[Path, int] = {}


class RankFailed(Exception):
    """One process of several is gone; the message names its rank."""


def alone_in_the_checkpoint_folder() -> None:
    """vissl/utils/distributed_launcher.py:105, nothing keeps two runs out of one folder.

    Always so: their checkpoints replace each other. The lock is the system's own (flock), so it ends
    with the process that holds it, however that ends, and holds wherever the file system has locks.
    The first node's launcher takes it, which its other processes and nodes need anyway.
    """
    from vissl.utils import distributed_launcher

    @wrap(distributed_launcher, "get_checkpoint_folder")
    def get_checkpoint_folder(original, cfg):
        folder = original(cfg)
        if "BARLOW" in cfg and get_machine_local_and_dist_rank()[1] == 0:
            _lock(Path(folder))
        return folder

    @wrap(distributed_launcher, "_cleanup_local_dir")
    def cleanup(original, cfg):
        original(cfg)
        if "BARLOW" in cfg:
            unlock()


def _lock(folder: Path) -> None:
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
    from vissl_barlow.vissl_plugin.validate import ConfigError

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


class StopSignals:
    """Takes down the request instead of ending the process, until `restore` or `leave`.

    SIGTERM is left to a handler that someone else has installed: submitit's ignores it, because the
    signal that asks for a new submission comes as well. That signal's handler runs in `leave`.
    """

    def __init__(self) -> None:
        self.received = 0
        self.forward_to: list = []
        self.previous: dict[int, object] = {}
        self.owner = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return  # where Python allows no handlers
        for number in STOP_SIGNALS:
            current = signal.getsignal(number)
            if number != signal.SIGTERM or current == signal.SIG_DFL:
                self.previous[number] = current
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        if os.getpid() != self.owner:  # a loader worker that was forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        self.forward(number)

    def forward(self, number: int) -> None:
        """Sends the signal to the processes in `forward_to`."""
        for process in self.forward_to:
            if process.is_alive():
                os.kill(process.pid, number)

    def restore(self) -> None:
        while self.previous:
            signal.signal(*self.previous.popitem())

    def leave(self, number: int) -> None:
        """Ends the process as the signal asked: by its own handler if it had one (submitit's submits
        the job anew and exits), else with the shell's status for that signal."""
        handler = self.previous.get(number)
        self.restore()
        if callable(handler):
            handler(number, None)
        raise SystemExit(128 + number)


class BarlowStop(ClassyHook):
    """Answers SIGTERM, SIGUSR1 and SIGUSR2: the step is finished, a checkpoint written, and every
    process of the run leaves after the same step."""

    on_phase_start = ClassyHook._noop
    on_forward = ClassyHook._noop
    on_loss_and_meter = ClassyHook._noop
    on_backward = ClassyHook._noop
    on_update = ClassyHook._noop
    on_phase_end = ClassyHook._noop

    def __init__(self, check_finite) -> None:
        """`check_finite(task)` raises for a state that is not worth saving."""
        super().__init__()
        self.check_finite = check_finite

    def on_start(self, task) -> None:
        (self.saver,) = (h for h in task.hooks if isinstance(h, LogLossMetricsCheckpointHook))
        self.signals = StopSignals()
        self.pending: deque = deque()

    def on_step(self, task) -> None:
        if not task.train:
            return
        number = self._agreed(task.device)
        if not number:
            return
        self.check_finite(task)
        self.saver._checkpoint_model(task, 1, task.iteration, mode="iteration")
        barrier()  # nobody leaves, and so ends the others, while the primary process saves
        if is_primary():
            saved = Path(task.checkpoint_folder, f"model_iteration{task.iteration}.torch").exists()
            sys.stdout.flush()
            print(
                f"vissl_barlow: stopped by {signal.Signals(number).name} after step "
                f"{task.iteration}, {'saved' if saved else 'NOT saved'}; the same command resumes",
                file=sys.stderr,
                flush=True,
            )
        self.signals.leave(number)

    def on_end(self, task) -> None:
        self.signals.restore()  # the final checkpoint is written: the default loses nothing

    def on_exception(self, task) -> None:
        self.signals.restore()

    def _agreed(self, device: torch.device) -> int:
        """The signal some process received, the same answer in all of them at the same step."""
        if get_world_size() == 1:
            return self.signals.received
        received = torch.full((), self.signals.received, dtype=torch.long, device=device)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        if device.type != "cuda":
            return int(received)
        answer = torch.empty((), dtype=torch.long, pin_memory=True)
        answer.copy_(received, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self.pending.append((arrived, answer))
        if len(self.pending) <= GPU_DELAY:
            return 0
        arrived, answer = self.pending.popleft()
        arrived.synchronize()
        return int(answer)


def leave_signals_to_the_run() -> None:
    """For a loader worker: SLURM signals it too, and without it the step cannot be finished."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_loader_workers_at_exit() -> None:
    """For a process with such workers: at its exit Python terminates them, in vain, and waits."""

    def kill() -> None:
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    multiprocessing.util.Finalize(None, kill, exitpriority=100)


def processes_end_together() -> None:
    """vissl/utils/distributed_launcher.py:134, `torch.multiprocessing.spawn`.

    Always so: a signal to the launcher ends it alone, and when a process dies the message is of
    another one's broken connection. Now signals reach all of them, and the message names the rank.
    """
    from vissl.utils import distributed_launcher

    spawn = torch.multiprocessing.spawn
    distributed_launcher.torch = SimpleNamespace(
        cuda=torch.cuda,
        backends=torch.backends,
        multiprocessing=SimpleNamespace(
            spawn=lambda fn, nprocs, args, daemon: (
                _spawn(fn, nprocs, args) if "BARLOW" in args[0] else spawn(fn, args, nprocs)
            )
        ),
    )


def _spawn(fn, nprocs: int, args: tuple) -> None:
    signals = StopSignals()
    context = torch.multiprocessing.spawn(fn, args=args, nprocs=nprocs, join=False)
    signals.forward_to = context.processes
    if signals.received:
        signals.forward(signals.received)
    try:
        while not context.join(grace_period=GRACE):
            pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        if signals.received:
            signals.leave(signals.received)
        status = context.processes[error.error_index].exitcode
        if status - 128 in STOP_SIGNALS:  # a process was asked to stop, not the launcher
            raise SystemExit(status) from None
        cfg, node_id = args[:2]
        first_rank = node_id * cfg.DISTRIBUTED.NUM_PROC_PER_NODE
        raise RankFailed(_account(context.processes, error, first_rank)) from None
    finally:
        signals.restore()


def _account(processes: list, error, first_rank: int) -> str:
    """Which rank failed first and how; a process that lost its connection to it is not the one."""
    fallen, text = error.error_index, str(error).strip()
    if any(sign in text.lower() for sign in _LOST_CONNECTION):
        killed = [
            i for i, p in enumerate(processes) if p.exitcode < 0 and p.exitcode != -signal.SIGTERM
        ]
        fallen = killed[0] if killed else fallen
    process = processes[fallen]
    how, trace = "failed", f"{text}\n"
    if process.exitcode < 0:
        how, trace = f"was ended by {signal.Signals(-process.exitcode).name}", ""
    return (
        f"{trace}rank {first_rank + fallen} (pid {process.pid}) {how}; the other processes of the "
        "run were ended too, and the same command resumes from the last checkpoint"
    )


def silence_has_a_limit() -> None:
    """vissl/trainer/trainer_main.py:126, `init_process_group` without a timeout.

    Always so: gloo waits half an hour for a process that hangs.
    """
    from vissl.trainer import SelfSupervisionTrainer

    @wrap(SelfSupervisionTrainer, "setup_distributed")
    def setup_distributed(original, trainer, use_gpu):
        if "BARLOW" not in trainer.cfg:
            return original(trainer, use_gpu)
        minutes = trainer.cfg.BARLOW.get("TIMEOUT_MINUTES", TIMEOUT_MINUTES)
        init = dist.init_process_group
        dist.init_process_group = functools.partial(init, timeout=timedelta(minutes=minutes))
        try:
            return original(trainer, use_gpu)
        finally:
            dist.init_process_group = init


RUNNING_MENDS = (alone_in_the_checkpoint_folder, processes_end_together, silence_has_a_limit)
