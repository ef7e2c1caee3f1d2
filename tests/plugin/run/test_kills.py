"""Kills at any moment: a run loses no more than the steps since its last checkpoint.

FAULTS_KILLS in the environment makes the test as long as one likes.
"""

import os
import random
import signal

from forked_runs import logged_steps
from interrupted_runs import EPOCHS, EVERY_STEPS, SHORT, assert_same_end

from vissl_barlow.checkpoint import read_checkpoint

KILLS = int(os.environ.get("FAULTS_KILLS", "8"))


DIE = "import os, signal\ndie = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
COUNT = """
calls = 0
def on_call(owner, name, number, before=lambda *a: None):
    original = getattr(owner, name)
    def counted(*args, **kwargs):
        global calls
        calls += 1
        if calls == number:
            before(*args)
            die()
        return original(*args, **kwargs)
    setattr(owner, name, counted)
"""
# Each dies at the NUMBERth time it passes there.
PLACES = {
    "backward": "import torch; on_call(torch.Tensor, 'backward', NUMBER)",
    "update": "from vissl_barlow.lars import LARS; on_call(LARS, 'step', NUMBER)",
    "halfway through a checkpoint": (
        "import torch; on_call(torch, 'save', NUMBER, lambda state, file: (file.write(b'PK'), "
        "file.flush()))"
    ),
    # Four calls before it: the config, the record of the start, and their folder after each.
    "checkpoint on its way to the disk": "on_call(os, 'fsync', 4 + NUMBER)",
    "checkpoint about to get its name": "on_call(os, 'replace', NUMBER)",
    "link about to be made": "on_call(os, 'symlink', NUMBER)",
    "old checkpoint about to go": "import pathlib; on_call(pathlib.Path, 'unlink', NUMBER)",
    "between two epochs": (
        "from vissl.trainer.train_task import SelfSupervisionTask as T; "
        "on_call(T, 'recreate_data_iterator', NUMBER)"
    ),
    "any moment": "",
}


def test_a_run_killed_anywhere_any_number_of_times_ends_the_same(server, tmp_path):
    rng = random.Random(0)
    epochs = KILLS + EPOCHS
    overrides = (SHORT[1], f"config.OPTIMIZER.num_epochs={epochs}")
    server.finish(tmp_path / "whole", *overrides)
    folder = tmp_path / "killed"
    kills = 0
    places = list(PLACES)
    while kills < KILLS:
        place = places[kills % len(places)] if kills < len(places) else rng.choice(places)
        # Between epochs it passes twice before the first step of a resumed run.
        number = rng.randint(3, 4) if place == "between two epochs" else rng.randint(1, 3)
        prepare = DIE + COUNT + PLACES[place].replace("NUMBER", str(number))
        known = logged_steps(folder)
        run = server.start(folder, *overrides, prepare=prepare)
        if place == "any moment":
            run.wait_for_steps(len(known) + rng.randint(0, 4))
            run.send(signal.SIGKILL)
        status = run.wait()
        assert status == -signal.SIGKILL, f"{place} {number}: {status} {run.output[-3000:]}"
        kills += 1
        for path in folder.glob("model_*.torch"):
            read_checkpoint(path)  # whole, whatever was under way
        steps = logged_steps(folder)[len(known) :]
        if known and steps:
            # The last logged step may have been killed before its checkpoint.
            saved = (known[-1] - 1) // EVERY_STEPS * EVERY_STEPS
            assert saved < steps[0] <= known[-1] + 1, f"{place}: {known[-1]} then {steps[0]}"
    server.finish(folder, *overrides)
    assert_same_end(folder, tmp_path / "whole")
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
