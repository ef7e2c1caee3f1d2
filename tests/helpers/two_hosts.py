"""Two machines on this one, with names and addresses of their own, and a cable between them.

Needs Debian's `iproute2`, and root. Each machine is a network namespace that nothing but its own
processes hold: it is gone with them, and they with the test, however that ends.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("ip", "nsenter", "setpriv", "unshare")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
HOSTS = {"node0": "10.87.0.1", "node1": "10.87.0.2"}
PLUG = "cable"
DIES_WITH_THE_TEST = ("setpriv", "--pdeathsig", "KILL")


def programs_missing() -> list[str]:
    """Those programs that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


class Hosts:
    """The two machines, by their names in `HOSTS`."""

    def __init__(self, folder: Path) -> None:
        self.environment = {**os.environ, "PATH": PATH}
        self._holders: dict[str, subprocess.Popen] = {}
        names = "".join(f"{address} {name}\n" for name, address in HOSTS.items())
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        for name in HOSTS:
            begin = f"hostname {name} && mount --bind {folder}/hosts /etc/hosts && echo up && cat"
            self._holders[name] = subprocess.Popen(
                [*DIES_WITH_THE_TEST, "unshare", "--net", "--uts", "--mount", "sh", "-c", begin],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        for holder in self._holders.values():
            assert holder.stdout.readline() == b"up\n"

    def command(self, host: str, folder: Path, *words: str) -> list[str]:
        """`words` as a command that runs on `host`, in `folder`."""
        target = f"--target={self._holders[host].pid}"
        enter = ("nsenter", target, "--net", "--uts", "--mount", "env", f"--chdir={folder}")
        return [*DIES_WITH_THE_TEST, *enter, *words]

    def plug_in(self) -> None:
        """Lays the cable."""
        ends = [("netns", str(holder.pid)) for holder in self._holders.values()]
        peer = ("type", "veth", "peer", "name", PLUG)
        self._run("ip", "link", "add", PLUG, *ends[0], *peer, *ends[1])
        for host, address in HOSTS.items():
            self._on(host, "ip", "address", "add", f"{address}/24", "dev", PLUG)
            for device in ("lo", PLUG):
                self._on(host, "ip", "link", "set", device, "up")

    def cut(self) -> None:
        """Nothing comes through the cable any more."""
        self._on("node1", "ip", "link", "set", PLUG, "down")

    def mend(self) -> None:
        """Everything does again."""
        self._on("node1", "ip", "link", "set", PLUG, "up")

    def end(self) -> None:
        for holder in self._holders.values():
            holder.kill()
            holder.wait()

    def _on(self, host: str, *words: str) -> None:
        self._run(*self.command(host, Path("/"), *words))

    def _run(self, *words: str) -> None:
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Both, joined; they end with the context, and with them what runs there."""
    hosts = Hosts(folder)
    try:
        hosts.plug_in()
        yield hosts
    finally:
        hosts.end()
