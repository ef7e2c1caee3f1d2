"""What the speed benchmarks share: interleaved timing, peak memory, tables, files out."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

SAMPLE_SECONDS = 0.1


def arguments(description: str, **flags: str) -> argparse.Namespace:
    """Command line of every benchmark: `--quick`, `--out DIR` and its own flags with their help."""
    parser = argparse.ArgumentParser(description=description)
    for flag, meaning in flags.items():
        parser.add_argument(f"--{flag}", action="store_true", help=meaning)
    parser.add_argument("--quick", action="store_true", help="few sizes, few repeats")
    parser.add_argument(
        "--out", type=Path, default=Path("bench_out"), help="folder for the results"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def machine() -> str:
    """One line that names the hardware and the libraries a measurement holds for."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [ln for ln in cpuinfo.read_text().splitlines() if ln.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    return f"{model}, {threads} threads{device}, torch {torch.__version__}"


def interleaved_times(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    seconds: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of each candidate, called in turn so that all meet the same machine load.

    Each round has an order of its own: what one leaves in caches and memory falls on no other alone.
    One unmeasured call each, then `repeats` rounds, fewer once `seconds` have passed (never less
    than two). A round's time is the mean of as many calls as fit into `SAMPLE_SECONDS`, so that a
    short call does not pay for the caches and the memory that a long one before it took. Summarise
    with `median_ratio`. `clock=time.process_time` leaves out what the processor spends on other
    work, but counts threads that spin: for single-threaded calls.
    """
    counts = {}
    for name, call in candidates.items():
        start = clock()
        call()
        counts[name] = max(1, int(SAMPLE_SECONDS / max(clock() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    shuffle = random.Random(0).sample
    begin = time.perf_counter()
    for done in range(repeats):
        if done >= 2 and time.perf_counter() - begin > seconds:
            break
        for name in shuffle(list(candidates), len(candidates)):
            start = clock()
            for _ in range(counts[name]):
                candidates[name]()
            times[name].append((clock() - start) / counts[name])
    return times


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def median_ratio(reference: Sequence[float], ours: Sequence[float]) -> float:
    """How many times faster `ours` is: the ratio of the medians."""
    return median(reference) / median(ours)


def _resident_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


class CallCost(NamedTuple):
    """MiB of resident memory that a call adds at its peak; seconds of processor time."""

    mib: float
    seconds: float


def _measure_call(queue, setup: Callable, args: tuple) -> None:
    call = setup(*args)
    # Forget the peak that imports and setup reached.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_kib("VmRSS")
    start = time.process_time()
    call()
    seconds = time.process_time() - start
    queue.put(CallCost((_resident_kib("VmHWM") - before) / 1024, seconds))


def cost_of_one_call(setup: Callable[..., Callable[[], Any]], *args: Any) -> CallCost:
    """What one call costs in a fresh process.

    `setup(*args)`, a module-level function, makes the inputs and returns the call to measure; what
    it allocates itself is not counted. Linux only.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_measure_call, args=(queue, setup, args))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"measurement of {setup.__name__}{args} ended {process.exitcode}")
    return queue.get()


def peak_extra_mib(setup: Callable[..., Callable[[], Any]], *args: Any) -> float:
    """`CallCost.mib` of `cost_of_one_call`."""
    return cost_of_one_call(setup, *args).mib


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; floats get three significant digits, None is a dash."""

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
        return str(value)

    lines = [header, ["---"] * len(header), *([cell(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_results(folder: Path, name: str, *, table: str, results: Any) -> None:
    """Prints `table`; writes it to `name`.md and `results` to `name`.json, with the machine."""
    text = f"{machine()}\n\n{table}\n"
    print(text)
    (folder / f"{name}.md").write_text(text)
    document = {"machine": machine(), "results": results}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
