"""Images per second of one loader worker, from a JPEG on disk to a batch of two views.

VISSL's own config and ours run in VISSL's data loader, with its data set, transforms and collators;
the authors' transforms run in torch's. Rates are per second of the worker's processor time, which
other work on the machine disturbs little, and per second of wall-clock time.
"""

import importlib.util
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
import torch
from bench_common import arguments, markdown_table, median, write_results
from bench_views import AUTHORS, SIZES, authors_views, open_with_pil, write_jpegs
from torch.utils.data import DataLoader, Dataset

matplotlib.use("Agg")
import matplotlib.pyplot as plt

VISSL = "VISSL's config"
UINT8, FLOAT = "ours, uint8 views", "ours, float views"
TARGETS = {AUTHORS: 4.0, VISSL: 3.0}
# The worker starts, imports and fills its queue of two batches meanwhile.
WARMUP, AHEAD = 2, 2


class Files(Dataset):
    """The authors' two views of each image of a folder."""

    def __init__(self, folder: Path):
        self.paths, self.two_views = sorted(folder.rglob("*.jpg")), authors_views()

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.two_views(open_with_pil(self.paths[index]))


def vissl_loader(folder: Path, batch_size: int, config: str, *overrides: str) -> Iterable:
    """VISSL's loader of one worker over the images of `folder`, as `config` has it."""
    from vissl.data import build_dataloader, build_dataset
    from vissl.utils.hydra_config import compose_hydra_configuration, convert_to_attrdict

    composed = compose_hydra_configuration(
        [
            f"config={config}",
            f"config.DATA.TRAIN.DATA_PATHS=[{folder}]",
            f"config.DATA.TRAIN.LABEL_PATHS=[{folder}]",  # VISSL asks for them, and reads none
            f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={batch_size}",
            "config.DISTRIBUTED.NUM_NODES=1",
            "config.DISTRIBUTED.NUM_PROC_PER_NODE=1",
            "config.SLURM.USE_SLURM=true",  # VISSL then asks for no GPU here
            *overrides,
        ]
    )
    _, config = convert_to_attrdict(composed, dump_config=False)
    return build_dataloader(
        dataset=build_dataset(config, "TRAIN"),
        dataset_config=config.DATA.TRAIN,
        num_dataloader_workers=1,
        pin_memory=False,
        multi_processing_method=config.MULTI_PROCESSING_METHOD,
        device=torch.device("cpu"),
    )


def loaders(folder: Path, batch_size: int) -> dict[str, Callable[[], Iterable]]:
    candidates = {
        AUTHORS: lambda: DataLoader(
            Files(folder), batch_size, num_workers=1, multiprocessing_context="fork"
        )
    }
    if importlib.util.find_spec("vissl"):
        import vissl.data  # noqa: F401  the plugin registers where VISSL is imported already

        import vissl_barlow

        vissl_barlow.register()
        logging.disable(logging.WARNING)
        theirs = "pretrain/barlow_twins/barlow_twins_4node_resnet"
        ours = "pretrain/vissl_barlow/resnet50_in1k_1000ep"
        on_device = "config.DATA.TRAIN.TRANSFORMS.0.normalize_on_device"
        candidates |= {
            VISSL: lambda: vissl_loader(folder, batch_size, theirs),
            FLOAT: lambda: vissl_loader(folder, batch_size, ours, f"{on_device}=false"),
            UINT8: lambda: vissl_loader(folder, batch_size, ours),
        }
    return candidates


def processor_seconds(pid: int) -> float:
    """What a process has used so far, Linux only."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = after_name[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def rates(loader: Iterable, batch_size: int, batches: int) -> tuple[float, float]:
    """Images per processor second of the loader's worker, and per second."""
    others = {child.pid for child in multiprocessing.active_children()}
    iterator = iter(loader)
    (worker,) = {child.pid for child in multiprocessing.active_children()} - others
    for _ in range(WARMUP):
        next(iterator)
    clocks = (lambda: processor_seconds(worker), time.perf_counter)
    begin = [clock() for clock in clocks]
    for _ in range(batches):
        next(iterator)
    images = batches * batch_size
    per_core, per_second = (images / (clock() - t) for clock, t in zip(clocks, begin))
    return per_core, per_second


def measure(
    size: tuple[int, int], batch_size: int, batches: int, rounds: int
) -> dict[str, dict[str, float]]:
    """`per_core_second` and `per_second`, the rates of each loader over images of (width, height)."""
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "images")
        folder.mkdir()
        images = write_jpegs(folder, batch_size, size)
        for i in range(1, batches + WARMUP + AHEAD):
            for image in images:
                image.with_stem(f"{image.stem}_{i}").symlink_to(image)
        candidates = loaders(Path(name), batch_size)
        for _ in range(rounds):
            for label, loader in candidates.items():
                found.setdefault(label, []).append(rates(loader(), batch_size, batches))
    return {
        unit: {label: median([pair[kind] for pair in pairs]) for label, pairs in found.items()}
        for kind, unit in enumerate(("per_core_second", "per_second"))
    }


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    batch_size, batches, rounds = (16, 4, 1) if args.quick else (64, 4, 5)
    results = {name: measure(size, batch_size, batches, rounds) for name, size in SIZES.items()}
    figure, axes = plt.subplots(
        len(results), figsize=(7, 2.4 * len(results)), layout="constrained", squeeze=False
    )
    rows = []
    for (size, found), axis in zip(results.items(), axes[:, 0]):
        per_core, per_second = found["per_core_second"], found["per_second"]
        for label, rate in per_core.items():
            times = (rate / per_core[ref] if ref in per_core else None for ref in TARGETS)
            rows.append([size, label, rate, per_second[label], *times])
        names = list(per_core)[::-1]
        bars = axis.barh(names, [per_core[name] for name in names], color="#4878d0")
        axis.bar_label(
            bars, [f"{per_core[name] / per_core[AUTHORS]:.2f}x" for name in names], padding=3
        )
        axis.margins(x=0.12)
        axis.set_xlabel(f"{size}: images per second of one core, in the data loader")
    header = ["images", "one loader worker", "images per core second", "images/s"]
    write_results(
        args.out,
        "loader",
        table=markdown_table([*header, *(f"times {name}" for name in TARGETS)], rows),
        results={"targets": TARGETS, **results},
    )
    figure.savefig(args.out / "loader.png", dpi=120)


if __name__ == "__main__":
    main()
