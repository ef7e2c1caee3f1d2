"""Jobs of a real SLURM of two nodes: what interrupts them, and that nothing is lost.

make test-slurm
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from digits_on_disk import OVERLAY
from interrupted_runs import assert_same_end
from patience import wait_until
from slurm_cluster import Cluster, cluster, programs_missing
from two_nodes import CONFIG, EPOCHS, STEPS_PER_EPOCH, TWO_NODES, steps
from vissl_runs import run_engines, run_module, succeeded

pytestmark = pytest.mark.slurm

STEPS = EPOCHS * STEPS_PER_EPOCH
SUBMIT = (
    "config.SLURM.USE_SLURM=true",
    "config.SLURM.PARTITION=main",
    "config.SLURM.LOG_FOLDER=logs",
    # So short a limit that submitit takes each request to stop for the time limit's.
    "config.SLURM.TIME_HOURS=0",
    "config.SLURM.TIME_MINUTES=9",
)

TIME_LIMITS_LEFT = """
import sys
from submitit.core.utils import DelayedSubmission
print(DelayedSubmission.load(sys.argv[1])._timeout_countdown)
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Cluster]:
    assert programs_missing() == [], "make test-slurm installs them"
    with cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


def submit(slurm: Cluster, folder: Path, *overrides: str) -> str:
    """VISSL's runner on a login node; the job's number."""
    done = succeeded(run_engines(folder, *CONFIG, *SUBMIT, *overrides, env=slurm.environment))
    return done.stdout.rpartition("SUBMITTED: ")[2].split()[0]


def wait_for_steps(slurm: Cluster, folder: Path, job: str, last: int) -> None:
    def reached() -> bool:
        assert slurm.state(job) in ("PENDING", "RUNNING", "COMPLETING"), output(folder)
        return last in steps(folder)

    wait_until(reached, lambda: f"step {last}: {output(folder)}")


def output(folder: Path) -> str:
    """The end of what its jobs printed."""
    logs = [*folder.glob("logs/*_log.*"), *folder.glob("*.out")]
    return "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in logs)


def finish(slurm: Cluster, folder: Path, job: str) -> None:
    slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
    assert slurm.state(job) == "COMPLETED", output(folder)


@pytest.fixture(scope="module")
def uninterrupted(slurm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish(slurm, folder, submit(slurm, folder, *TWO_NODES))
    return folder / "run"


def test_two_nodes_train_as_one_job(uninterrupted):
    assert steps(uninterrupted.parent) == list(range(1, STEPS + 1))
    [start] = json.loads((uninterrupted / "barlow_run.json").read_text())
    assert start["processes"] == 2


def test_a_requeued_job_ends_as_an_uninterrupted_one(slurm, uninterrupted, tmp_path):
    job = submit(slurm, tmp_path, *TWO_NODES)
    wait_for_steps(slurm, tmp_path, job, 5)
    slurm.run("scontrol", "requeue", job)
    slurm.start_now(job)
    finish(slurm, tmp_path, job)
    assert slurm.restarts(job) == 1
    assert_same_end(tmp_path / "run", uninterrupted)


def test_the_time_limits_signal_saves_and_requeues(slurm, uninterrupted, tmp_path):
    job = submit(slurm, tmp_path, *TWO_NODES)
    wait_for_steps(slurm, tmp_path, job, 5)
    slurm.run("scancel", "--signal=USR2", job)
    wait_until(lambda: slurm.restarts(job) == 1, lambda: output(tmp_path))
    before = steps(tmp_path)
    assert (tmp_path / "run" / f"model_iteration{before[-1]}.torch").exists(), output(tmp_path)
    slurm.start_now(job)
    finish(slurm, tmp_path, job)
    # VISSL's own would be 2: too few for weeks on a partition of a day. Read from what the job left for
    # its next start: SLURM may end it before it has told.
    [pickled] = tmp_path.glob("logs/*_submitted.pkl")
    assert slurm.run(sys.executable, "-c", TIME_LIMITS_LEFT, str(pickled)).split()[-1] == "99"
    assert steps(tmp_path) == list(range(1, STEPS + 1))
    assert_same_end(tmp_path / "run", uninterrupted)


def test_a_node_that_dies_costs_the_steps_since_the_checkpoint(slurm, uninterrupted, tmp_path):
    job = submit(slurm, tmp_path, *TWO_NODES)
    wait_for_steps(slurm, tmp_path, job, 5)
    slurm.kill_node("node2")
    wait_until(lambda: slurm.restarts(job) == 1, lambda: output(tmp_path))
    slurm.run("scancel", job)
    slurm.start_node("node2")
    finish(slurm, tmp_path, submit(slurm, tmp_path, *TWO_NODES))
    assert_same_end(tmp_path / "run", uninterrupted)


def test_a_cancelled_job_leaves_a_folder_that_another_resumes(slurm, uninterrupted, tmp_path):
    job = submit(slurm, tmp_path, *TWO_NODES)
    wait_for_steps(slurm, tmp_path, job, 5)
    slurm.run("scancel", job)
    slurm.wait(job, "CANCELLED")
    finish(slurm, tmp_path, submit(slurm, tmp_path, *TWO_NODES))
    assert_same_end(tmp_path / "run", uninterrupted)


def test_a_script_of_ones_own_stops_and_is_requeued(slurm, tmp_path):
    """As docs/robustness.md has it."""
    command = [sys.executable, "-m", "tools.run_distributed_engines", *CONFIG]
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/sh\n#SBATCH --signal=USR1@120 --open-mode=append --requeue\n"
        f"srun {shlex.join(command)}\n"
        "status=$?; [ $status -eq 138 ] && scontrol requeue $SLURM_JOB_ID; exit $status\n"
    )
    sbatch = ("sbatch", "--parsable", f"--chdir={tmp_path}", f"--output={tmp_path}/job.out")
    job = slurm.run(*sbatch, str(script)).strip()
    wait_for_steps(slurm, tmp_path, job, 5)
    slurm.run("scancel", "--signal=USR1", job)
    wait_until(lambda: slurm.restarts(job) == 1, lambda: output(tmp_path))
    slurm.start_now(job)
    finish(slurm, tmp_path, job)
    assert list((tmp_path / "run").glob("model_final_checkpoint_phase*.torch")), output(tmp_path)
    assert steps(tmp_path)[-1] == len(steps(tmp_path))


def test_what_slurm_refuses_is_told_in_one_line(slurm, tmp_path):
    refused = run_engines(
        tmp_path, *CONFIG, *SUBMIT, "config.SLURM.PARTITION=none", env=slurm.environment
    )
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "invalid partition specified: none" in refused.stderr.splitlines()[-1]
    assert refused.stderr.splitlines()[-1].startswith("vissl_barlow: config.SLURM={PARTITION: none")


def test_one_command_submits_pretraining_and_evaluation(slurm, digits_on_disk, tmp_path):
    """The evaluation is a job that waits for its pretraining's; the same command then has the table."""
    small = (
        "config.MACHINE.DEVICE=cpu",
        "config.DISTRIBUTED.BACKEND=gloo",
        "config.DISTRIBUTED.NUM_NODES=1",
        "config.DISTRIBUTED.NUM_PROC_PER_NODE=1",
        "config.OPTIMIZER.num_epochs=1",
        "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
        "config.DATA.TRAIN.TRANSFORMS.0.size=32",
        "config.DATA.TRAIN.DATA_LIMIT=64",
        "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=32",
        "config.DATA.NUM_DATALOADER_WORKERS=0",
        "config.BARLOW.CHECK_IMAGES=0",
        "config.MODEL.TRUNK.RESNETS.DEPTH=18",
        "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
        "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:64,dims:[64,64]}]]",
        "config.MODEL.AMP_PARAMS.USE_AMP=false",
        "config.SLURM.PARTITION=main",
    )
    linear = (
        OVERLAY,
        "config.OPTIMIZER.num_epochs=1",
        "config.BARLOW.CHECK_IMAGES=0",
        "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
        "config.MODEL.HEAD.PARAMS=[[barlow_linear,{in_dim:64,num_classes:10}]]",
    )
    command = ("table5", "--imagenet", str(digits_on_disk.imagenet), "--only", "only inv")
    words = (*command, "--slurm", *small, *(f"--linear={word}" for word in linear))
    reproduce = "vissl_barlow.reproduce"
    first = succeeded(run_module(tmp_path, reproduce, *words, env=slurm.environment))
    jobs = re.findall(r"submitted as job (\d+)", first.stdout)
    assert len(jobs) == 2
    again = succeeded(run_module(tmp_path, reproduce, *words, env=slurm.environment))
    if slurm.state(jobs[1]) == "PENDING":
        assert f"job {jobs[1]} is in the queue" in again.stdout
    for job in jobs:
        finish(slurm, tmp_path, job)
    succeeded(run_module(tmp_path, reproduce, *words, env=slurm.environment))
    table = (tmp_path / "report" / "table5.md").read_text()
    [row] = [
        line for line in table.splitlines() if line.startswith("| Only inv") and "top-1" in line
    ]
    assert any(re.fullmatch(r" \d+\.\d+ ", cell) for cell in row.split("|")), table
