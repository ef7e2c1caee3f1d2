"""How the documented commands that train, evaluate or report are run, and what they leave."""

import csv
import json
import math
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from patience import finish
from pretend_runs import linear

from vissl_barlow.checkpoint import load_trunk
from vissl_barlow.datasets import imagenet_subsets, places205


class Place(SimpleNamespace):
    """A folder to run a command in, with what the docs' commands find there; and /data's stand-in."""

    folder: Path
    data: Path

    def words(self, command: str, replace: dict[str, str] | None = None) -> list[str]:
        """`command` as the shell would split it, with its paths and names here."""
        for name, value in (replace or {}).items():
            assert name in command, f"{name} is no longer in: {command}"
            command = command.replace(name, value)
        words = shlex.split(command.replace("/data/", f"{self.data}/"))
        return [sys.executable, *words[1:]] if words[0] == "python" else words

    def start(self, words: list[str], **env: str) -> subprocess.Popen:
        """Starts it as a user would, in the folder."""
        return subprocess.Popen(
            words,
            cwd=self.folder,
            env=environment() | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process: subprocess.Popen, status: int = 0) -> str:
        """What it printed; it must end with `status`."""
        done = finish(process)
        assert done.returncode == status, done.stdout[-8000:]
        return done.stdout

    def run(self, words: list[str], status: int = 0, **env: str) -> str:
        return self.finish(self.start(words, **env), status)


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def environment() -> dict[str, str]:
    # A test run inside this one must not take itself for a part of it.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return ours | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def runs(
    *append: str,
    replace: dict[str, str] | None = None,
    leaves: tuple[str, ...] = (),
    prints: str = "",
    prepare: Callable[[Place], None] = lambda place: None,
    then: Callable[[Place], None] = lambda place: None,
) -> Callable[[Place, str], None]:
    """Runs it with `append` behind it; it must succeed, leave these files and print this."""

    def run(place: Place, command: str) -> None:
        prepare(place)
        added = [word.replace("{data}", str(place.data)) for word in append]
        output = place.run([*place.words(command, replace), *added])
        assert prints in output, output[-8000:]
        missing = [name for name in leaves if not list(place.folder.glob(name))]
        assert not missing, f"{missing} not among {sorted(p.name for p in place.folder.rglob('*'))}"
        for name in leaves:
            if name.endswith("train_config.yaml"):
                in_force(place, command, replace, added, place.folder / name)
        then(place)

    return run


def in_force(place, command, replace, added, record: Path) -> None:
    """What was typed, and not replaced by a later override, is what the run was told."""
    config = yaml.safe_load(record.read_text())
    typed = [word for word in place.words(command, replace) if word.startswith("config.")]
    later = {word.split("=")[0] for word in added}
    for word in typed:
        key, _, value = word.partition("=")
        if key in later:
            continue
        found = config
        for part in key.split(".")[1:]:
            found = found[part]
        assert found == yaml.safe_load(value), f"{word}: the run had {found}"


def pretrains(
    folder: str, *append: str, then: Callable[[Place], None] = lambda place: None, **options
) -> Callable[[Place, str], None]:
    """A whole pretraining into `folder`, with everything that docs/pretraining.md says a run writes."""

    def check(place: Place) -> None:
        entries = read_lines(place.folder / folder / "barlow.jsonl")
        losses = [entry["loss"] for entry in entries]
        assert losses and all(math.isfinite(loss) for loss in losses)
        assert (place.folder / folder / "checkpoint.torch").is_symlink()
        trunk = load_trunk(place.folder / folder / "checkpoint.torch")
        assert all(tensor.isfinite().all() for tensor in trunk.values())
        then(place)

    written = ("log.txt", "stdout.json", "metrics.json", "train_config.yaml", "barlow_run.json")
    final = "model_final_checkpoint_phase0.torch"
    leaves = tuple(f"{folder}/{name}" for name in (*written, final))
    return runs(*append, leaves=leaves, then=check, **options)


def own_pretraining(place: Place, command: str) -> None:
    """On a folder with train/ and val/, a trunk an eighth of what would be chosen."""

    def check(place: Place) -> None:
        folder = place.folder / "own_images" / "imagenet"
        results = json.loads((folder / "barlow_probe.json").read_text())
        assert {"untrained trunk", "pixels", "pretrained trunk"} <= results.keys()
        (start,) = json.loads((folder / "barlow_run.json").read_text())
        assert "360 of them (val/) are held out" in start["data"]["train"]["found"]
        chosen = {each["key"]: each["value"] for each in start["derived"]}
        assert chosen["MODEL.HEAD.PARAMS.0.1.dims"] == [128] * 3
        assert chosen["DATA.TRAIN.TRANSFORMS.0.size"] == 32
        assert "'key': 'DATA.TRAIN.BATCHSIZE_PER_REPLICA'" in (folder / "log.txt").read_text()

    pretrains(
        "own_images/imagenet",
        "config.OPTIMIZER.num_epochs=1",
        "config.DATA.TRAIN.DATA_LIMIT=64",
        "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.0625",
        replace={"FOLDER": "/data/imagenet"},
        prints="1797 images in 10 classes",
        then=check,
    )(place, command)


def study(data: str, *append: str, **options) -> Callable[[Place, str], None]:
    """One experiment of Table 5, to its row in the table."""

    def check(place: Place) -> None:
        table = place.folder / "report" / ("digits" if data == "digits" else "") / "table5.csv"
        ours = {figure: value for label, figure, value in numbers(table) if "invariance" in label}
        assert ours.keys() == ({"probe"} if data == "digits" else {"top-1", "top-5"})
        assert all(value is not None and 0 < value <= 100 for value in ours.values())
        # What was not the study's protocol must not pass for it.
        assert "num_epochs=1" in table.with_suffix(".md").read_text().splitlines()[0]

    return runs("--only", "only inv", *append, then=check, **options)


def report(place: Place, command: str) -> None:
    """Of a run that has one number for Table 1, beside the paper's."""
    linear(place.folder / "RUNS_DIR" / "run", place.folder / "resnet50.pth", 72.5)
    place.run(place.words(command))
    page = (place.folder / "report" / "report.html").read_text()
    assert "72.5" in page and "73.2" in page
    found = numbers(place.folder / "report" / "table1.csv")
    (label,) = (label for label, figure, value in found if (figure, value) == ("top-1", 72.5))
    assert label.startswith("ImageNet linear (resnet50.pth, sha256 ")
    pictures = {path.stem for path in (place.folder / "report").glob("*.png")}
    assert {"table1", "table7", "figure2", "figure5"} <= pictures


def own_images(place: Place) -> None:
    """Every number has the untrained trunk's beside it."""
    with (place.folder / "report" / "own.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["figure"] for row in rows} == {"top-1", "top-5"}
    assert all(0 < float(row[each]) <= 100 for row in rows for each in ("ours", "untrained_trunk"))


def has_accuracy(folder: Path) -> None:
    """A classifier's test accuracy after every epoch, as docs/evaluation.md has it."""
    entries = read_lines(folder / "metrics.json")
    assert any("test_accuracy_list_meter" in entry for entry in entries)


def numbers(table: Path) -> list[tuple[str, str, float | None]]:
    """Label, figure and our number of each line of a table's CSV."""
    with table.open(newline="") as file:
        return [
            (row["label"], row["figure"], float(row["ours"]) if row["ours"] else None)
            for row in csv.DictReader(file)
        ]


def reproduces(name: str, rows: tuple[str, ...], *append: str, **options):
    """A table from a checkpoint: each row has a result, beside the paper's in the report."""

    def check(place: Place) -> None:
        found = numbers(place.folder / "report" / f"{name}.csv")
        assert {each.partition(" (")[0] for each, _, value in found if value is not None} == set(
            rows
        )
        assert all(0 < value <= 100 for _, _, value in found if value is not None)
        # What was not the paper's protocol must not pass for it.
        assert ", with " in (place.folder / "report" / f"{name}.md").read_text().splitlines()[0]

    return runs(*append, leaves=(f"report/{name}.md",), then=check, **options)


def on_nodes(count: int, *append: str) -> Callable[[Place, str], None]:
    """The same command once per node, here as one process each, which find each other by RUN_ID."""

    def run(place: Place, command: str) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        nodes = []
        for node in range(count):
            replace = {"ADDRESS_OF_NODE_0:29500": address, "node_id=0": f"node_id={node}"}
            nodes.append(place.start([*place.words(command, replace), *append]))
        for node in nodes:
            place.finish(node)
        folder = place.folder / "checkpoints" / "resnet50_in1k_1000ep"
        in_force(place, command, replace, append, folder / "train_config.yaml")
        # One job: the first step and the last are logged once, and each took the batches of all nodes.
        steps = [entry["iteration"] for entry in read_lines(folder / "barlow.jsonl")]
        assert steps == [1, 256 // (64 * count)]

    return run


def submits(hours: int) -> Callable[[Place, str], None]:
    """As far as SLURM's door, on as many GPUs as typed: stand-ins for its programs take the job."""

    def run(place: Place, command: str) -> None:
        programs = place.folder / "programs"
        programs.mkdir()
        for name, script in {"sbatch": "echo Submitted batch job 4711", "srun": "exit 1"}.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        half = "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=32"  # 1437 images are less than 2048
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        assert "SUBMITTED: 4711" in place.run([*place.words(command), half], PATH=path)
        job = (place.folder / "4711_submission.sh").read_text()
        asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", job, re.MULTILINE))
        assert asked["partition"] == "PARTITION"
        assert (asked["nodes"], asked["gpus-per-node"], asked["ntasks-per-node"]) == ("4", "8", "1")
        assert int(asked["time"]) == 60 * hours

    return run


def converts(place: Place, command: str) -> None:
    """Each of the formats that the command offers by `|`; all hold the same numbers."""
    before = load_trunk(place.folder / "IN")
    words = place.words(command)
    offered = words[words.index("--to") + 1]
    for name in offered.split("|"):
        output = f"{name}_{words[-1]}"
        place.run([name if word == offered else word for word in words[:-1]] + [output])
        after = load_trunk(place.folder / output)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def converts_the_other(place: Place, command: str) -> None:
    """Of a file of MoCo's, with the trunk that is not taken unless it is named."""
    momentum = load_trunk(place.trunk)
    query = {key: torch.zeros_like(value) for key, value in momentum.items()}
    both = {"encoder_q": query, "encoder_k": momentum}
    (place.folder / "IN").unlink()
    state = {f"module.{name}.{key}": v for name, trunk in both.items() for key, v in trunk.items()}
    torch.save({"state_dict": state}, place.folder / "IN")
    place.run(place.words(command))
    after = load_trunk(place.folder / "OUT")
    assert after.keys() == momentum.keys()
    assert all(torch.equal(after[key], momentum[key]) for key in momentum)


def subset_lists(place: Place) -> None:
    """Table 2's lists of a tenth of the digits: the command itself insists on ImageNet's counts."""
    for row in ("imagenet1k_semi_1pct", "imagenet1k_semi_10pct"):
        names, lists = place.data / "simclr/1percent.txt", place.folder / "report" / row / "lists"
        lists.parent.mkdir(parents=True)
        arguments = ["--names", names, "--imagenet", place.data / "imagenet", "--out", lists]
        assert imagenet_subsets.main([*map(str, arguments), "--allow-any-count"]) == 0


def places_lists(place: Place) -> None:
    """Places' lists of digits: the command itself insists on Places' counts."""
    source, lists = place.data / "places205", place.folder / "report" / "places205_linear" / "lists"
    lists.parent.mkdir(parents=True)
    arguments = ["--images", source / "images256", "--lists", source / "lists", "--out", lists]
    assert places205.main([*map(str, arguments), "--allow-any-count"]) == 0


def voc_lists(place: Place) -> None:
    """Lists of images and their attributes, as those of VOC07's script."""
    lists = place.folder / "lists"
    lists.mkdir()
    for split in ("train", "test"):
        for kind in ("images", "labels"):
            (lists / f"{split}_{kind}.npy").symlink_to(place.digits.lists / f"{split}_{kind}.npy")
