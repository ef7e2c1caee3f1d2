"""A long run does not grow. FAULTS_SOAK_STEPS in the environment makes it as long as one likes."""

import json
import math

from interrupted_runs import SOAK_STEPS

# Megabytes by which the peak of resident memory may grow over three quarters of a soak run; 0.1
# were measured. One batch kept at each of 300 steps would be 59.
SOAK_GROWTH_MB = 4
STEPS_OF_ALL_DIGITS = 1437 // 8


def test_memory_stays_flat(server, tmp_path):
    server.finish(
        tmp_path,
        "config.DATA.TRAIN.DATA_LIMIT=-1",
        f"config.OPTIMIZER.num_epochs={math.ceil(SOAK_STEPS / STEPS_OF_ALL_DIGITS)}",
        f"config.LOG_FREQUENCY={SOAK_STEPS // 50}",
        "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
    )
    entries = [json.loads(line) for line in (tmp_path / "barlow.jsonl").read_text().splitlines()]
    assert entries[-1]["iteration"] >= SOAK_STEPS
    memory = [entry["memory_gib"] * 1024 for entry in entries]
    assert memory[-1] - memory[len(memory) // 4] < SOAK_GROWTH_MB
