"""The checkpoints of a run's folder, and how often a resume reads them."""

import math
import os
import signal

import pytest
import torch
from forked_runs import STEPS_PER_EPOCH, RunServer
from saved_states import state_after, write_state

from vissl_barlow.checkpoint import read_checkpoint
from vissl_barlow.vissl_plugin.run.checkpoint_folder import Inspection, inspect
from vissl_barlow.vissl_plugin.run.saved_state import BATCH, EPOCHS

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
    path = write_state(tmp_path, "phase1", 7)
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
    assert inspect(path) is None
    path.write_bytes(b"")
    assert inspect(path) is None
    assert inspect(tmp_path / "missing.torch") is None


def change(*keys, to):
    """What replaces the part of a state that the keys lead to."""

    def changed(state: dict) -> dict:
        *above, last = keys
        part = state
        for key in above:
            part = part[key]
        part[last] = to
        return state

    changed.__name__ = f"{keys[-1]}={to!r:.20}"
    return changed


def without(*keys):
    def changed(state: dict) -> dict:
        *above, last = keys
        part = state
        for key in above:
            part = part[key]
        del part[last]
        return state

    changed.__name__ = f"no {keys[-1]}"
    return changed


STATE = "classy_state_dict"
TRUNK = (STATE, "base_model", "model", "trunk")
WEIGHT = (*TRUNK, "conv1.weight")
OPTIMIZER = (STATE, "optimizer", "optim")
EXPERIMENT = {EPOCHS: 3, BATCH: 8, "images in DATA.TRAIN": 60}

# Whole files that a run has not written, and what the line about them says.
NOT_A_RUNS = [
    (lambda state: {}, "no classy_state_dict"),
    (lambda state: [state], "no classy_state_dict"),
    (without(STATE), "no classy_state_dict"),
    (change(STATE, to="text"), "no classy_state_dict"),
    (change("iteration", to="12"), "its iteration is '12', and no count"),
    (change("iteration", to=12.0), "its iteration is 12.0, and no count"),
    (change("iteration", to=True), "its iteration is True, and no count"),
    (change("iteration", to=-1), "its iteration is -1, and no count"),
    (without("iteration"), "its iteration is None, and no count"),
    (change("iteration", to=10**6), "its iteration is 1000000, and its name says 12"),
    (change("phase_idx", to="0"), "its phase_idx is '0', and no count"),
    (change("iteration_num", to=None), "its iteration_num is None, and no count"),
    (without(*TRUNK), "no weights of the trunk"),
    (change(STATE, "base_model", to=[1]), "no weights of the trunk"),
    (change(STATE, "base_model", "model", "heads", to="text"), "no weights of the heads"),
    (change(*WEIGHT, to="text"), "trunk.conv1.weight is no tensor"),
    (change(*WEIGHT, to=torch.full((4, 3), math.nan)), "trunk.conv1.weight is not finite"),
    (change(*WEIGHT, to=torch.full((4, 3), math.inf)), "trunk.conv1.weight is not finite"),
    (change(*WEIGHT, to=torch.zeros(4, 3).half()), "conv1.weight is in torch.float16"),
    (change(*WEIGHT, to=torch.zeros(4, 3).bfloat16()), "conv1.weight is in torch.bfloat16"),
    (without(*OPTIMIZER), "no state of the optimizer"),
    (change(STATE, "optimizer", to={"optim": {}}), "no state of the optimizer"),
    (change(*OPTIMIZER, "state", 1, "momentum_buffer", to="text"), "holds 'text', and no tensor"),
    (change(STATE, "experiment", to="text"), "does not say of how many epochs"),
    (change(STATE, "experiment", to={EPOCHS: "3", BATCH: 8}), "does not say of how many epochs"),
    (change(STATE, "experiment", to=EXPERIMENT | {EPOCHS: 1}), "and its schedule ends at 8"),
    (
        change(STATE, "experiment", to=EXPERIMENT | {"DATA.TRAIN.DATA_LIMIT": 24}),
        "is 12, and its schedule ends at 9",
    ),
]


@pytest.mark.parametrize(("changed", "reason"), NOT_A_RUNS)
def test_a_whole_file_that_no_run_has_written_is_passed_over(changed, reason, tmp_path, caplog):
    path = tmp_path / "model_iteration12.torch"
    torch.save(state_after(12, 1), path)
    assert inspect(path) == Inspection(12, {"conv1.weight": (4, 3)}, {"0.bias": (2,)})
    torch.save(changed(state_after(12, 1)), path)
    assert inspect(path) is None
    (line,) = caplog.messages
    assert line.startswith(f"checkpoint passed over: {path}: ") and reason in line


def test_what_runs_do_write_is_used(tmp_path):
    state = change(STATE, "experiment", to=EXPERIMENT)(state_after(24, 3))
    state[STATE]["optimizer"]["optim"]["state"][0] |= {"step": 24, "none yet": None}
    for name in ("model_phase2.torch", "model_final_checkpoint_phase2.torch", "any_name.torch"):
        torch.save(state, tmp_path / name)
        assert inspect(tmp_path / name).experiment == EXPERIMENT
    torch.save(state, tmp_path / "model_phase1.torch")
    assert inspect(tmp_path / "model_phase1.torch") is None
    torch.save(state_after(3, 0), tmp_path / "model_iteration3.torch")  # in the first epoch
    assert inspect(tmp_path / "model_iteration3.torch").iteration == 3


def test_a_resume_reads_its_checkpoint_once_to_check_it_and_once_to_load_it(tmp_path):
    """And once what it passes over."""
    with RunServer() as server:
        run = server.start(tmp_path, "config.OPTIMIZER.num_epochs=2")
        run.wait_for_steps(STEPS_PER_EPOCH + 1)
        run.send(signal.SIGKILL)
        run.wait()
        stranger = tmp_path / f"model_iteration{STEPS_PER_EPOCH + 1}.torch"
        whole = read_checkpoint(tmp_path / "model_phase0.torch")
        torch.save(whole | {"iteration": 10**6}, stranger)
        server.finish(
            tmp_path, "config.OPTIMIZER.num_epochs=2", prepare="import os\n" + COUNT_READS
        )
    assert run.steps()[-1] == 2 * STEPS_PER_EPOCH
    assert f"checkpoint passed over: {stranger}: its iteration is 1000000" in run.output
    assert sorted((tmp_path / "reads.txt").read_text().split()) == [
        stranger.name,
        *["model_phase0.torch"] * 2,
    ]
    assert os.path.exists(tmp_path / "model_final_checkpoint_phase1.torch")
