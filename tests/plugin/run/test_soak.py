"""A long run does not grow. `make soak` has 10,000 steps; the suite has 400."""

import json
import math
from pathlib import Path
from statistics import median

from forked_runs import Run, is_gone
from interrupted_runs import SOAK_STEPS

# Megabytes by which the peak of resident memory may grow over three quarters of a soak run; 0.1
# were measured. One batch kept at each of 300 steps would be 59.
SOAK_GROWTH_MB = 4
# From here on memory is worth looking at: before, allocators and caches still fill.
LONG = 5000
BATCH = 8
# Twenty epochs, or as many as the digits need: two are done before the first sample that counts.
STEPS_PER_EPOCH = min(SOAK_STEPS // 20, 1437 // BATCH)
SAMPLES = 100


def processes(session: int) -> list[int]:
    """Ids of all processes of a session but its first: the loader workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session != int(path.name) and fields[0] != "Z":
            found.append(int(path.name))
    return found


def usage(pid: int) -> tuple[float, int]:
    """Resident megabytes and open descriptors of a process, zeros if it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0, 0
    resident = status.partition("VmRSS:")[2].split()
    return int(resident[0]) / 1024 if resident else 0, descriptors


def sample(run: Run) -> dict[str, float]:
    steps = len(run.steps())
    memory, descriptors = usage(run.pid)
    workers = processes(run.pid)
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    logs = [path for path in files if path.suffix in (".txt", ".json", ".jsonl")]
    of_workers = [usage(pid) for pid in workers] or [(0, 0)]
    return {
        "step": steps,
        "resident MB": memory,
        "descriptors": descriptors,
        "processes": len(workers),
        "resident MB of a worker": max(of_workers)[0],
        "descriptors of a worker": max(count for _, count in of_workers),
        "files": len(files),
        "bytes of logs": sum(path.stat().st_size for path in logs),
    }


def sampled(run: Run) -> list[dict[str, float]]:
    """About `SAMPLES` samples of the run, all from within an epoch, where its workers are at work."""
    samples: list[dict[str, float]] = []
    due = 1
    while not is_gone(run.pid):
        run.wait_until(lambda due=due: len(run.steps()) >= due or is_gone(run.pid))
        taken = sample(run)
        epoch, step = divmod(taken["step"], STEPS_PER_EPOCH)
        if 0 < step and len(run.steps()) < (epoch + 1) * STEPS_PER_EPOCH - 1:
            samples.append(taken)
        due = len(run.steps()) + max(1, SOAK_STEPS // SAMPLES)
    return samples


def test_a_long_run_does_not_grow(server, tmp_path):
    run = server.start(
        tmp_path,
        f"config.OPTIMIZER.num_epochs={math.ceil(SOAK_STEPS / STEPS_PER_EPOCH)}",
        f"config.DATA.TRAIN.DATA_LIMIT={STEPS_PER_EPOCH * BATCH}",
        "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
        "config.BARLOW.KEEP_EVERY_EPOCHS=0",
        "config.DATA.NUM_DATALOADER_WORKERS=2",
        "config.MULTI_PROCESSING_METHOD=fork",
    )
    samples = sampled(run)
    assert run.wait() == 0, run.output[-3000:]
    assert len(run.steps()) >= SOAK_STEPS

    # From a tenth of the way on, in tenths.
    tenths = [[s for s in samples if s["step"] * 10 // SOAK_STEPS == tenth] for tenth in range(10)]
    first, last = (
        {name: median(s[name] for s in tenth) for name in tenth[0]}
        for tenth in (tenths[1], tenths[9])
    )
    middle = {name: median(s[name] for s in tenths[5]) for name in first}
    rates = [
        (b["bytes of logs"] - a["bytes of logs"]) / (b["step"] - a["step"])
        for a, b in ((first, middle), (middle, last))
    ]
    print(f"{first}\n{last}\nbytes of logs per step: {rates[0]:.0f}, then {rates[1]:.0f}")
    # A worker has what was open when it was forked, the last epoch's pipes among it or not: a few more
    # or less. What an epoch leaves behind is one more for each.
    epochs = (last["step"] - first["step"]) / STEPS_PER_EPOCH
    for name in ("descriptors", "processes", "descriptors of a worker", "files"):
        assert last[name] - first[name] < epochs / 2, name
    assert rates[1] < 1.25 * rates[0]
    if SOAK_STEPS >= LONG:
        for name in ("resident MB", "resident MB of a worker"):
            assert last[name] - first[name] < SOAK_GROWTH_MB, name

    entries = [json.loads(line) for line in (tmp_path / "barlow.jsonl").read_text().splitlines()]
    memory = [entry["memory_gib"] * 1024 for entry in entries]
    assert memory[-1] - memory[len(memory) // 4] < SOAK_GROWTH_MB
