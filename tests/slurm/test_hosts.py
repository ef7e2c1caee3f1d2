"""Several hosts without SLURM: a command on each, and the link between them that is cut.

make test-slurm
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from interrupted_runs import assert_same_end
from patience import slowdown, wait_for, wait_until
from two_hosts import HOSTS, Hosts, programs_missing, two_hosts
from two_nodes import CONFIG, EPOCHS, STEPS_PER_EPOCH, TWO_NODES, steps

pytestmark = pytest.mark.slurm

# One epoch less, as nothing here is waited for in a queue.
SHORT = (f"config.OPTIMIZER.num_epochs={EPOCHS - 1}", "config.BARLOW.GRACE_SECONDS=1")
STEPS = (EPOCHS - 1) * STEPS_PER_EPOCH


@pytest.fixture
def hosts(tmp_path):
    assert programs_missing() == [], "make test-slurm installs them"
    with two_hosts(tmp_path) as made:
        yield made


def start(hosts: Hosts, folder: Path, *overrides: str) -> dict[str, subprocess.Popen]:
    """The documented command on each host, with its `node_id`; they share the folder."""
    folder.mkdir(exist_ok=True)
    first = next(iter(HOSTS))
    runner = (sys.executable, "-m", "tools.run_distributed_engines", *CONFIG, *TWO_NODES)
    runner += (*SHORT, f"config.DISTRIBUTED.RUN_ID={first}:29500", *overrides)
    started = {}
    for number, host in enumerate(HOSTS):
        with (folder / host).open("w") as output:
            started[host] = subprocess.Popen(
                hosts.command(host, folder, *runner, f"node_id={number}"),
                env=hosts.environment | {"OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=output,
            )
    return started


def finish(run: dict[str, subprocess.Popen], folder: Path, status: int) -> dict[str, str]:
    """What it said on each host; it must end with `status` there."""
    output = {}
    for host, process in run.items():
        ended = wait_for(process)
        output[host] = (folder / host).read_text()
        assert ended == status, output[host][-5000:]
    return output


def test_a_cut_link_ends_the_run_on_both_sides_and_it_resumes_to_the_same_bits(hosts, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(hosts, whole), whole, 0)
    assert steps(whole) == list(range(1, STEPS + 1))
    [begun] = json.loads((whole / "run" / "barlow_run.json").read_text())
    assert begun["processes"] == len(HOSTS)

    run = start(hosts, cut, f"config.BARLOW.TIMEOUT_MINUTES={0.05 * slowdown():.3f}")

    def begun_or_ended() -> bool:
        return 5 in steps(cut) or any(process.poll() is not None for process in run.values())

    wait_until(begun_or_ended, lambda: f"step 5: {steps(cut)}")
    hosts.cut()
    said = finish(run, cut, 1)
    for host, rank in zip(said, (1, 0)):
        lost = f"lost its connection to a process of another node, one of rank {rank}; "
        assert lost in said[host], said[host][-3000:]
    assert steps(cut)[-1] < STEPS

    hosts.mend()
    finish(start(hosts, cut), cut, 0)
    assert_same_end(cut / "run", whole / "run")
