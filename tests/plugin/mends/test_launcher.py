"""vissl_plugin/mends/launcher.py where no run is needed to show it."""

import pytest
from vissl.config import AttrDict
from vissl.utils import distributed_launcher

import vissl_barlow


@pytest.fixture
def run_id(monkeypatch):
    """Where a job of VISSL's launcher meets, by its number and `SLURM.PORT_ID`."""
    vissl_barlow.register()
    monkeypatch.delenv("MASTER_PORT", raising=False)
    in_job = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_NODELIST": "node7", "SLURM_NTASKS": "1"}
    in_job |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NUM_NODES": "1"}
    for name, value in in_job.items():
        monkeypatch.setenv(name, value)

    def meet(job: int, port: int) -> str:
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        monkeypatch.setattr(distributed_launcher, "launch_distributed", launch)
        slurm = {"USE_SLURM": True, "PORT_ID": port}
        distributed = {"NUM_NODES": 1, "INIT_METHOD": "tcp", "RUN_ID": "auto"}
        cfg = AttrDict({"BARLOW": {}, "SLURM": slurm, "DISTRIBUTED": distributed})
        distributed_launcher._ResumableSlurmJob("train", cfg)()
        return met.pop()

    met: list[str] = []

    def launch(cfg, **others) -> None:
        met.append(distributed_launcher.get_dist_run_id(cfg, cfg.DISTRIBUTED.NUM_NODES))

    return meet


def test_two_jobs_of_one_node_meet_at_two_ports(run_id):
    addresses = [run_id(job, 40050) for job in (17, 18, 17)]
    assert addresses[0] == addresses[2] != addresses[1]
    for address in addresses:
        name, _, port = address.partition(":")
        assert name == "node7" and 1024 < int(port) < 65536


def test_a_port_that_is_named_stays(run_id):
    assert run_id(17, 40051) == "node7:40051"
