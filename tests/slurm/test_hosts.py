"""Several hosts without SLURM: a command on each, and the link between them that is cut.

make test-slurm
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from interrupted_runs import assert_same_end
from patience import finish, slowdown, wait_until
from two_hosts import HOSTS, Hosts, programs_missing, two_hosts
from vissl_runs import succeeded

pytestmark = pytest.mark.slurm

# 2 processes of 8 images: 24 steps an epoch, of which the first few are waited for.
CONFIG = (
    "config=pretrain/vissl_barlow/digits_quickstart",
    "config.OPTIMIZER.num_epochs=2",
    "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=1",
    "config.DATA.TRAIN.DATA_LIMIT=384",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8",
    "config.DATA.NUM_DATALOADER_WORKERS=0",
    "config.BARLOW.PROBE.KIND=none",
    "config.BARLOW.GRACE_SECONDS=1",
    "config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY=3",
    "config.LOG_FREQUENCY=1",
    "config.CHECKPOINT.DIR=run",
    "config.DISTRIBUTED.NUM_NODES=2",
    "config.DISTRIBUTED.NUM_PROC_PER_NODE=1",
)
STEPS = 48


@pytest.fixture
def hosts(tmp_path):
    assert programs_missing() == [], "make test-slurm installs them"
    with two_hosts(tmp_path) as made:
        yield made


def start(hosts: Hosts, folder: Path, *overrides: str) -> list[subprocess.Popen]:
    """The documented command on each host, with its `node_id`; they share the folder."""
    folder.mkdir(exist_ok=True)
    first = next(iter(HOSTS))
    runner = (sys.executable, "-m", "tools.run_distributed_engines", *CONFIG, *overrides)
    runner += (f"config.DISTRIBUTED.RUN_ID={first}:29500",)
    return [
        subprocess.Popen(
            hosts.command(host, folder, *runner, f"node_id={number}"),
            env=hosts.environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, host in enumerate(HOSTS)
    ]


def steps(folder: Path) -> list[int]:
    """Those logged, in the order of the log."""
    log = folder / "run" / "barlow.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line)["iteration"] for line in lines]


def test_a_cut_link_ends_the_run_on_both_sides_and_it_resumes_to_the_same_bits(hosts, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for done in map(finish, start(hosts, whole)):
        succeeded(done)
    assert steps(whole) == list(range(1, STEPS + 1))
    [begun] = json.loads((whole / "run" / "barlow_run.json").read_text())
    assert begun["processes"] == len(HOSTS)

    timeout = f"config.BARLOW.TIMEOUT_MINUTES={0.05 * slowdown():.3f}"
    run = start(hosts, cut, timeout)
    ended = lambda: any(process.poll() is not None for process in run)  # noqa: E731
    wait_until(lambda: 5 in steps(cut) or ended(), lambda: f"step 5: {steps(cut)}")
    hosts.cut()
    for other, done in zip((1, 0), map(finish, run)):
        assert done.returncode == 1, done.stderr[-3000:]
        said = f"lost its connection to a process of another node, one of rank {other}; "
        assert said in done.stderr.splitlines()[-1], done.stderr[-3000:]
    assert steps(cut)[-1] < STEPS

    hosts.mend()
    for done in map(finish, start(hosts, cut)):
        succeeded(done)
    assert_same_end(cut / "run", whole / "run")
