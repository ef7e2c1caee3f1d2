"""Many short runs of VISSL's launcher without importing VISSL for each.

A server imports it once and forks: each run is a process of its own, in a session of its own, that
can be sent any signal. Its ranks are forked too, where VISSL would spawn them.

Run as a script it is the server: requests and answers are lines of JSON.
"""

import json
import multiprocessing.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

from patience import LIMIT, wait_until
from preloaded import Server, fork_ranks, wait_for_fork

CONFIG = "config=pretrain/vissl_barlow/digits_quickstart"
# A network so small that a step takes milliseconds; 8 steps an epoch.
STEPS_PER_EPOCH = 8
TINY = (
    CONFIG,
    "config.BARLOW.PROBE.KIND=",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8",
    f"config.DATA.TRAIN.DATA_LIMIT={8 * STEPS_PER_EPOCH}",
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.0625",
    "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:32,dims:[32,32,32]}]]",
    "config.LOSS.barlow_loss.embedding_dim=32",
    # What that computes is tested elsewhere (plugin/components/test_batch_norm.py).
    "config.MODEL.SYNC_BN_CONFIG.CONVERT_BN_TO_SYNC_BN=false",
    "config.LOG_FREQUENCY=1",
    "config.CHECKPOINT.CHECKPOINT_FREQUENCY=1",
)
TWO_PROCESSES = (
    "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
)


class Run:
    """A run under way."""

    def __init__(self, server: "RunServer", pid: int, folder: Path) -> None:
        self.server, self.pid, self.folder = server, pid, folder

    def send(self, number: int, to: int | None = None) -> None:
        os.kill(self.pid if to is None else to, number)

    def send_to_all(self, number: int) -> None:
        """To every process of the run, as SLURM does."""
        os.killpg(self.pid, number)

    def ranks(self) -> list[int]:
        """Process ids of the ranks of a run of several processes, in order."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in children}
        return sorted(int(pid) for pid, name in names.items() if name == "rank")

    def wait(self) -> int:
        """The exit status, negative for a signal; the output is in `output` then."""
        return self.server.ask({"wait": self.pid})["status"]

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")

    def steps(self) -> list[int]:
        """Steps logged so far, in the order of the file, over all starts of the run."""
        return logged_steps(self.folder)

    def wait_for_steps(self, count: int) -> None:
        """Until the file has `count` logged steps."""
        self.wait_until(lambda: len(self.steps()) >= count)

    def wait_until(self, happened: Callable[[], bool]) -> None:
        wait_until(happened, lambda: self.output[-5000:])


def is_gone(pid: int) -> bool:
    """Whether a process has ended; its parent may not have asked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def logged_steps(folder: Path) -> list[int]:
    path = folder / "barlow.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["iteration"] for line in lines]


class RunServer(Server):
    """`with RunServer() as server: server.start(folder, *overrides).wait()`.

    A run that lasts for more than `limit` seconds of `patience` is killed.
    """

    def __init__(self, limit: float = LIMIT) -> None:
        super().__init__(__file__, str(limit))

    def start(self, folder: Path, *overrides: str, prepare: str = "", **environment: str) -> Run:
        """Starts a run with its checkpoints in `folder`; its output goes to output.txt there.

        `prepare` is Python to execute in the new process before anything else.
        """
        folder.mkdir(parents=True, exist_ok=True)
        overrides = (*TINY, f"config.CHECKPOINT.DIR={folder}", *overrides)
        request = {
            "folder": str(folder),
            "overrides": overrides,
            "prepare": prepare,
            "environment": environment,
        }
        return Run(self, self.ask(request)["pid"], folder)

    def finish(self, folder: Path, *overrides: str, **options: str) -> Run:
        """A run that must succeed."""
        run = self.start(folder, *overrides, **options)
        status = run.wait()
        assert status == 0, run.output[-5000:]
        return run


def _run(request: dict) -> None:
    os.setsid()
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)

    from vissl.hooks import default_hook_generator
    from vissl.utils import distributed_launcher
    from vissl.utils.hydra_config import compose_hydra_configuration, convert_to_attrdict

    fork_ranks()
    try:
        exec(request["prepare"], {})
        _, config = convert_to_attrdict(compose_hydra_configuration(request["overrides"]))
        if config.SLURM.USE_SLURM:
            distributed_launcher.launch_distributed_on_slurm(config, "train")
        else:
            distributed_launcher.launch_distributed(config, 0, "train", default_hook_generator)
        status = 0
    except SystemExit as exit_:
        status = exit_.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    multiprocessing.util._exit_function()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _serve(limit: float) -> None:
    import vissl.engines.train  # noqa: F401

    import vissl_barlow

    vissl_barlow.register()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"status": wait_for_fork(request["wait"], limit)}
        else:
            pid = os.fork()
            if pid == 0:
                _run(request)
            answer = {"pid": pid}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
