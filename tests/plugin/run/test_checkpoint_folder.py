"""The checkpoints of a run's folder, and how often a resume reads them."""

import os
import signal

import torch
from forked_runs import STEPS_PER_EPOCH, RunServer

from vissl_barlow.vissl_plugin.run.checkpoint_folder import Inspection, inspect

# Each name that torch.load reads, a line each.
COUNT_READS = """
import torch
load = torch.load
def counted(file, *args, **kwargs):
    with open("reads.txt", "a") as reads:
        reads.write(os.path.basename(file.name) + "\\n")
    return load(file, *args, **kwargs)
torch.load = counted
"""


def test_an_inspection_says_what_a_checkpoint_holds_and_reads_it_once(tmp_path, monkeypatch):
    model = {"trunk": {"conv1.weight": torch.zeros(4, 3)}, "heads": {"0.bias": torch.zeros(2)}}
    path = tmp_path / "model_phase1.torch"
    torch.save({"classy_state_dict": {"base_model": {"model": model}}, "iteration": 7}, path)
    expected = Inspection(7, {"conv1.weight": (4, 3)}, {"0.bias": (2,)})
    assert inspect(path) == expected
    monkeypatch.setattr(torch, "load", None)
    assert inspect(str(path)) == expected
    monkeypatch.undo()
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert inspect(path) is None  # another file, of the same size and time
    torch.save({"other": 1}, path)
    assert inspect(path) == Inspection(-1, {}, {})
    path.write_bytes(b"")
    assert inspect(path) is None
    assert inspect(tmp_path / "missing.torch") is None


def test_a_resume_reads_its_checkpoint_once_to_check_it_and_once_to_load_it(tmp_path):
    with RunServer() as server:
        run = server.start(tmp_path, "config.OPTIMIZER.num_epochs=2")
        run.wait_for_steps(STEPS_PER_EPOCH + 1)
        run.send(signal.SIGKILL)
        run.wait()
        server.finish(
            tmp_path, "config.OPTIMIZER.num_epochs=2", prepare="import os\n" + COUNT_READS
        )
    assert run.steps()[-1] == 2 * STEPS_PER_EPOCH
    assert (tmp_path / "reads.txt").read_text().split() == ["model_phase0.torch"] * 2
    assert os.path.exists(tmp_path / "model_final_checkpoint_phase1.torch")
