"""A SLURM of two nodes on this machine, in namespaces and a folder of its own.

Needs Debian's `slurm-wlm` and `munge`, and root. It touches nothing of a cluster that the machine may
belong to: key, sockets, ports and spool folders are its own, and only its own daemons and jobs know
its nodes by name. Each node is a PID namespace: what ends its first process ends all of them, as a
machine that loses its power.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from patience import slowdown, wait_until

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "scontrol",
    "scancel",
    "unshare",
    "setpriv",
)
NODES = ("node1", "node2")
# SLURM wants a device file for each GPU that a node pretends to have; nobody opens it.
DEVICES = ("/dev/tty0", "/dev/tty1")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def programs_missing() -> list[str]:
    """Those programs that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


class Cluster:
    """A running cluster with the partition `main`.

    Attributes:
        environment: of every command that is to reach it.
    """

    def __init__(self, folder: Path, gpus: int) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen] = {}
        self._configure(gpus)

    def run(self, *command: str, check: bool = True) -> str:
        """What `command` prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        assert not (check and done.returncode), f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ..."""
        return self._of_job(job, "JobState")

    def restarts(self, job: str) -> int:
        """How often a job was requeued."""
        return int(self._of_job(job, "Restarts"))

    def wait(self, job: str, *states: str) -> None:
        """Returns when the job's state is one of `states`."""
        shown = f"job {job} is not {' or '.join(states)}"
        wait_until(lambda: self.state(job) in states, lambda: f"{shown} but {self.state(job)}")

    def start_now(self, job: str) -> None:
        """Starts a requeued job, which SLURM would leave in the queue for two minutes."""
        self.wait(job, "PENDING")
        # Credentials have whole seconds: a node refuses a job again ("already killed, do not launch")
        # in the second in which it ended that job.
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+3seconds")

    def start_node(self, node: str) -> None:
        """Starts it, again too; returns when it takes jobs."""
        self._start(node, "slurmd", "-D", "-N", node)
        shown = ("sinfo", "--noheader", "-n", node, "-o", "%t")
        self._wait_for(node, lambda: self.run(*shown, check=False).strip() == "idle")
        # A node that has just come back is idle before the controller gives it steps of a job: those
        # of several nodes would all be placed on the others.
        on_node = ("srun", "--quiet", "-w", node, "-N1", "-n1", "printenv", "SLURMD_NODENAME")
        self._wait_for(node, lambda: self.run(*on_node, check=False).strip() == node)

    def kill_node(self, node: str) -> None:
        """Ends all of its processes at once."""
        daemon = self._daemons.pop(node)
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()

    def stop(self) -> None:
        """Ends everything."""
        for name in list(self._daemons):
            self.kill_node(name)

    def start(self) -> None:
        """Starts everything; returns when both nodes take jobs."""
        munge = ("--socket", self.folder / "munge.sock", "--key-file", self.folder / "munge.key")
        files = ("--pid-file", self.folder / "munge.pid", "--seed-file", self.folder / "munge.seed")
        log = ("--log-file", self.folder / "munge.log")
        self._start("munged", "munged", "--foreground", "--force", *munge, *files, *log)
        self._wait_for("munged", (self.folder / "munge.sock").exists)
        self._start("slurmctld", "slurmctld", "-D", "-c")
        self._wait_for("slurmctld", lambda: "is UP" in self.run("scontrol", "ping", check=False))
        for node in NODES:
            self.start_node(node)

    def _of_job(self, job: str, key: str) -> str:
        words = self.run("scontrol", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))

    def _wait_for(self, name: str, is_ready: Callable[[], bool]) -> None:
        def said() -> str:
            return f"{name}: {(self.folder / f'{name}.out').read_text()[-2000:]}"

        def ready() -> bool:
            assert self._daemons[name].poll() is None, said()
            return is_ready()

        wait_until(ready, said)

    def _start(self, name: str, *command: object) -> None:
        # The bind mount and the processes are in namespaces that end with their first process.
        names = f'mount --bind {self.folder}/hosts /etc/hosts && exec "$@"'
        with (self.folder / f"{name}.out").open("a") as output:
            self._daemons[name] = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),  # nothing outlives a killed test
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                    *("sh", "-c", names, "sh", *map(str, command)),
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _configure(self, gpus: int) -> None:
        host = socket.gethostname()
        with ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in ("ctld", *NODES)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in sockets]
        gres = f" Gres=gpu:{gpus}" if gpus else ""
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=64 "
            f"RealMemory=500000{gres}"
            for node, port in zip(NODES, ports[1:])
        ]
        files = {
            "munge.key": os.urandom(128),
            "hosts": Path("/etc/hosts").read_bytes()
            + "".join(f"\n127.0.0.1 {node}" for node in NODES).encode()
            + b"\n",
            "gres.conf": "".join(
                f"NodeName={node} Name=gpu File={device}\n"
                for node in NODES
                for device in DEVICES[:gpus]
            ).encode(),
            "slurm.conf": "\n".join(
                [
                    "ClusterName=test",
                    f"SlurmctldHost={host}(127.0.0.1)",
                    f"SlurmctldPort={ports[0]}",
                    "SlurmUser=root",
                    "SlurmdUser=root",
                    f"AuthInfo=socket={self.folder}/munge.sock",
                    f"StateSaveLocation={self.folder}/state",
                    f"SlurmdSpoolDir={self.folder}/spool_%n",
                    f"SlurmctldPidFile={self.folder}/slurmctld.pid",
                    f"SlurmdPidFile={self.folder}/slurmd_%n.pid",
                    "ProctrackType=proctrack/linuxproc",
                    "TaskPlugin=task/none",
                    *(["GresTypes=gpu"] if gpus else []),
                    "SelectType=select/cons_tres",
                    "SelectTypeParameters=CR_CPU",
                    "JobRequeue=1",
                    "ReturnToService=2",
                    "MpiDefault=none",
                    "AccountingStorageType=accounting_storage/none",
                    "JobAcctGatherType=jobacct_gather/none",
                    "SlurmdParameters=config_overrides",
                    f"SlurmdTimeout={round(10 * slowdown())}",
                    "KillWait=2",
                    "SchedulerParameters=bf_interval=1,sched_interval=1",
                    *nodes,
                    f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP",
                    "",
                ]
            ).encode(),
        }
        for folder in ("state", *(f"spool_{node}" for node in NODES)):
            (self.folder / folder).mkdir()
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
            (self.folder / name).chmod(0o600)


@contextmanager
def cluster(folder: Path, gpus: int = 0) -> Iterator[Cluster]:
    """A cluster whose nodes pretend to have so many GPUs each; it ends with the context."""
    made = Cluster(folder, gpus)
    try:
        made.start()
        yield made
    finally:
        made.stop()
