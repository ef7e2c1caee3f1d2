"""Every command of README and docs is run, as typed.

`COMMANDS` says of each how: a new or changed command, and an entry for none, fail the first test. To
document a command, add its line here. What differs from the documented command is in that line:
`/data` becomes a folder of digits laid out like the data sets, `replace` puts in what the docs leave
to the reader, and `append` adds overrides that make it small enough for one CPU. What was typed stays
in force: the run's own record of its config is compared with it.
"""

import csv
import importlib.util
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

import numpy as np
import pytest
import torch
import yaml
from detection_datasets import draw_voc
from digits_on_disk import ATTRIBUTES, OVERLAY
from documented import PAGES, ROOT, documented, lay_out_data
from makefile import make, recipe
from pretend_runs import linear

from vissl_barlow.checkpoint import load_trunk, save_atomically
from vissl_barlow.datasets import imagenet_subsets, places205
from vissl_barlow.resnet import build_trunk

TIME_LIMIT = 300  # seconds; ten times what the slowest takes, to end one that hangs
WEIGHTS = "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=resnet50.pth"
CPU = ("config.MACHINE.DEVICE=cpu", "config.DISTRIBUTED.BACKEND=gloo")
VOC07_12 = "voc0712_faster_rcnn_R50_C4_24k"
ONE_PROCESS = "config.DISTRIBUTED.NUM_PROC_PER_NODE=1"
# ResNet-18, an eighth as wide, on 32-pixel views, for one epoch.
SMALL = (
    *CPU,
    "config.OPTIMIZER.num_epochs=1",
    "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
    "config.DATA.TRAIN.TRANSFORMS.0.size=32",
    "config.DATA.NUM_DATALOADER_WORKERS=0",
    "config.DATA.PIN_MEMORY=false",
    "config.BARLOW.CHECK_IMAGES=10",
    "config.MODEL.TRUNK.RESNETS.DEPTH=18",
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
    "config.MODEL.HEAD.PARAMS=[[barlow_projector,{in_dim:64,dims:[64,64]}]]",
    "config.LOSS.barlow_loss.embedding_dim=64",
    "config.MODEL.AMP_PARAMS.USE_AMP=false",
)
LIMITED = ("config.DATA.TRAIN.DATA_LIMIT=64", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=32")
# The digits' own config is small already, but for its length.
SHORT_WITH_PROBE = (
    "config.OPTIMIZER.num_epochs=1",
    "config.OPTIMIZER.param_schedulers.lr.warmup_epochs=0",
    "config.DATA.TRAIN.DATA_LIMIT=256",
)
SHORT = (*SHORT_WITH_PROBE, "config.BARLOW.PROBE.KIND=''")
ONE_EPOCH = (OVERLAY, "config.OPTIMIZER.num_epochs=1", "config.BARLOW.CHECK_IMAGES=10")
# The classes of VOC's stand-in; its labels come in the order of the names.
FEW_SVMS = (
    f"config.SVM.class_names=[{','.join(sorted(ATTRIBUTES))}]",
    "config.SVM.costs.costs_list=[1.0]",
)


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
        try:
            output, _ = process.communicate(timeout=TIME_LIMIT)
        finally:
            process.kill()
        assert process.returncode == status, output[-8000:]
        return output

    def run(self, words: list[str], status: int = 0, **env: str) -> str:
        return self.finish(self.start(words, **env), status)


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def environment() -> dict[str, str]:
    # A test run inside this one must not take itself for a part of it.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return ours | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory, digits_on_disk) -> Path:
    folder = tmp_path_factory.mktemp("documented") / "data"
    lay_out_data(folder, digits_on_disk)
    return folder


@pytest.fixture(scope="module")
def trunk(tmp_path_factory) -> Path:
    """A ResNet of the digits overlay's shape, as the authors publish theirs."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trunk") / "resnet50.pth"
    save_atomically(build_trunk(18, width_multiplier=0.5).state_dict(), path)
    return path


@pytest.fixture
def place(tmp_path, data, trunk, digits_on_disk) -> Place:
    for name in ("resnet50.pth", "checkpoint.torch", "IN"):
        (tmp_path / name).symlink_to(trunk)
    return Place(folder=tmp_path, data=data, digits=digits_on_disk, trunk=trunk)


# How a command is run.


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


def pretrains(folder: str, *append: str, **options) -> Callable[[Place, str], None]:
    """A whole pretraining into `folder`, with everything that docs/pretraining.md says a run writes."""

    def check(place: Place) -> None:
        entries = read_lines(place.folder / folder / "barlow.jsonl")
        losses = [entry["loss"] for entry in entries]
        assert losses and all(math.isfinite(loss) for loss in losses)
        assert (place.folder / folder / "checkpoint.torch").is_symlink()
        trunk = load_trunk(place.folder / folder / "checkpoint.torch")
        assert all(tensor.isfinite().all() for tensor in trunk.values())

    written = ("log.txt", "stdout.json", "metrics.json", "train_config.yaml", "barlow_run.json")
    final = "model_final_checkpoint_phase0.torch"
    leaves = tuple(f"{folder}/{name}" for name in (*written, final))
    return runs(*append, leaves=leaves, then=check, **options)


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
    assert ("ImageNet linear", "top-1", 72.5) in found
    pictures = {path.stem for path in (place.folder / "report").glob("*.png")}
    assert {"table1", "table7", "figure2", "figure5"} <= pictures


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
        assert {label for label, _, value in found if value is not None} == set(rows)
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
    formats = next(word for word in words if "|" in word or word == "detectron2").split("|")
    for name in formats:
        output = f"{name}_{words[-1]}"
        place.run([name if "|" in word else word for word in words[:-1]] + [output])
        after = load_trunk(place.folder / output)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def is_python(place: Place, code: str) -> None:
    """README's lines on two small views, against equation 1 written out."""
    rng = np.random.default_rng(0)
    z_a, z_b = rng.normal(size=(2, 16, 5))
    names = {"z_a": torch.tensor(z_a), "z_b": torch.tensor(z_b)}
    exec(code, names)
    a, b = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (z_a, z_b))
    c = a.T @ b / len(a)
    on, off = ((1 - np.diag(c)) ** 2).sum(), (c**2).sum() - (np.diag(c) ** 2).sum()
    found = [float(names[name]) for name in ("loss", "invariance", "redundancy")]
    assert found == pytest.approx([on + 5e-3 * off, on, off])


def assert_composes(overrides: list[str]) -> None:
    """Hydra knows the keys, in the config of a pretraining or of an evaluation."""
    from vissl.utils.hydra_config import compose_hydra_configuration

    names = ("pretrain/vissl_barlow/resnet50_in1k_1000ep", "benchmark/vissl_barlow/voc07_svm")
    problems = []
    for name in names:
        try:
            compose_hydra_configuration([f"config={name}", *overrides])
            return
        except Exception as error:  # hydra's are of several kinds
            problems.append(str(error))
    raise AssertionError(f"{overrides}: {problems}")


def is_resolved(place: Place, fragment: str) -> None:
    """A part of a command line: the config has its key, and takes its value."""
    assert_composes(shlex.split(fragment))


def is_tested_by(file: str, test: str) -> Callable[[Place, str], None]:
    """Run by a test elsewhere, which must be there."""

    def run(place: Place, command: str) -> None:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text()

    return run


# What a documented command needs beforehand.


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


VOC = (
    WEIGHTS,
    "config.DATA.TRAIN.DATA_PATHS=[lists/train_images.npy]",
    "config.DATA.TRAIN.LABEL_PATHS=[lists/train_labels.npy]",
    "config.DATA.TEST.DATA_PATHS=[lists/test_images.npy]",
    "config.DATA.TEST.LABEL_PATHS=[lists/test_labels.npy]",
    OVERLAY,
    *FEW_SVMS,
)
FOLDERS = (
    WEIGHTS,
    "config.DATA.TRAIN.DATA_PATHS=[{data}/imagenet/train]",
    "config.DATA.TEST.DATA_PATHS=[{data}/imagenet/val]",
    OVERLAY,
)
# Fine-tuning has two milestones, and each wants an epoch.
FINE_TUNING = (
    OVERLAY,
    "config.OPTIMIZER.num_epochs=3",
    "config.OPTIMIZER.param_schedulers.lr.milestones=[1,2]",
    "config.OPTIMIZER.param_schedulers.lr_head.milestones=[1,2]",
    "config.TEST_EVERY_NUM_EPOCH=3",
    "config.CHECKPOINT.CHECKPOINT_FREQUENCY=3",
)


# make.


def installs(place: Place, command: str) -> None:
    """README's `pip install`, which a test cannot repeat inside itself: the Makefile has the same."""
    lines = [line[2:] for line in recipe("install", "VENV=elsewhere") if line[1:3] == ["-m", "pip"]]
    found = [[word for word in line if word != "--quiet"] for line in lines]
    # `make install` is for working on the checkout: editable, and with what the tests need.
    found = [" ".join(line).replace("-e .[test]", ".") for line in found]
    assert command in found


def quickstart(place: Place, command: str) -> None:
    """tests/test_quickstart.py runs what the Makefile would."""
    runner = [sys.executable, "-m", "tools.run_distributed_engines"]
    words, _ = recipe("quickstart")
    assert words[:3] == runner and "config=pretrain/vissl_barlow/digits_quickstart" in words
    assert 'recipe("quickstart")' in (ROOT / "tests" / "test_quickstart.py").read_text()


def suite(place: Place, command: str) -> None:
    """The whole of it is what runs this; one file of it through the Makefile, and in the gate."""
    words = recipe("test")[-1]
    assert words[words.index("pytest") :] == [
        *("pytest", "-n", "auto", "--dist", "loadscope", "-m", "not gpu and not detectron2")
    ]
    done = make("test", PYTEST_ARGS="tests/test_schedule.py")
    assert done.returncode == 0 and re.search(r"=+ \d+ passed", done.stdout), done.stdout[-3000:]
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def all_passed(place: Place, text: str) -> None:
    """The last line of this suite: what README shows of it has nothing failed and nothing skipped."""
    assert re.fullmatch(r"prints =+ 0 passed, 0 warnings in 0s \(0\) =+", text)


def lint(place: Place, command: str) -> None:
    done = make("lint")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def benchmarks(place: Place, command: str) -> None:
    """Each benchmark starts and has the two options of docs/speed.md; none is timed in a test."""
    done = make("bench", BENCH_ARGS="--help")
    assert done.returncode == 0, done.stderr[-3000:]
    names = {path.name for path in (ROOT / "tests/benchmarks").glob("bench_*.py")}
    usages = dict(re.findall(r"^usage: (bench_\w+\.py) (.*)$", done.stdout, re.MULTILINE))
    assert set(usages) == names - {"bench_common.py"}
    assert all("--quick" in usage and "--out OUT" in usage for usage in usages.values())


def fails_without(what: str, there: bool) -> Callable[[Place, str], None]:
    """README: fails where a GPU or Detectron2 is absent, and says so."""

    def run(place: Place, command: str) -> None:
        if there:
            pytest.skip(f"this machine has what {command} needs")
        target = command.split()[1]
        done = make(target)
        assert done.returncode != 0
        said = done.stdout + done.stderr
        assert re.search(f"{target} needs {what}", said), said
        assert "passed" not in done.stdout

    return run


HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
NO_GPU = fails_without("a CUDA device, and torch sees none", torch.cuda.is_available())
NO_DETECTRON2 = fails_without(r"Detectron2 in \S+: see docs/detection\.md", HAS_DETECTRON2)


# Detectron2: without it the commands say so or are printed; with it, see the end of this file.


def detection(place: Place, command: str) -> None:
    if HAS_DETECTRON2:
        pytest.skip("test_detection_runs_as_documented runs it")
    assert "Detectron2 is not installed" in place.run(place.words(command), status=1)


def table_4(place: Place, command: str) -> None:
    """Printed, not run: VOC with five seeds and COCO with one, each as docs/detection.md has it."""
    lines = place.run([*place.words(command), "--dry-run"]).splitlines()
    (one,) = (text for text in COMMANDS if text.startswith("python -m vissl_barlow.detection "))
    alike = [line.split(" -m ")[1].replace("--resume ", "") for line in lines]
    folder = place.folder.resolve()
    for seed, line in enumerate(alike[:5]):
        voc = f"{folder}/report/{VOC07_12}/seed{seed}"
        expected = one.removeprefix("python -m ").replace("OUTPUT_DIR voc", f"OUTPUT_DIR {voc}")
        expected = expected.replace("SEED 0", f"SEED {seed}")
        assert line.replace(str(place.trunk), "checkpoint.torch") == expected
    assert len(alike) == 6 and "coco_mask_rcnn_R50_C4_1x" in alike[5]


def from_the_network(place: Place, command: str) -> None:
    """Not run: it fetches from outside and compiles for minutes. The message of a machine without
    Detectron2 gives the same line, and the packages for its build fit our own."""
    from vissl_barlow.detection.__main__ import INSTALL

    if "git+" in command:
        assert command in INSTALL
    else:
        assert '"setuptools<82"' in (ROOT / "setup.py").read_text()
        assert "setuptools<82" in shlex.split(command)


RUNNER = "python -m tools.run_distributed_engines"
PRETRAIN = f"{RUNNER} config=pretrain/vissl_barlow"
IMAGENET = "config.DATA.TRAIN.DATA_PATHS=[/data/imagenet/train]"
REPRODUCE = "python -m vissl_barlow.reproduce"
MAIN_RUN, ONE_GPU = "checkpoints/resnet50_in1k_1000ep", "checkpoints/resnet50_in1k_1000ep_1gpu"
# `SMALL`'s trunk, evaluated.
LINEAR_OF_SMALL = (
    *ONE_EPOCH,
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
    "config.MODEL.HEAD.PARAMS=[[barlow_linear,{in_dim:64,num_classes:10}]]",
)
DOTS = {" ...": ""}
EVALUATION_FILES = ("train_config.yaml", "checkpoint.torch")

COMMANDS: dict[str, Callable[[Place, str], None]] = {
    # README.md, docs/pretraining.md
    "make quickstart": quickstart,
    "prints epoch 0/0 step 0/0 loss 0 invariance 0 redundancy 0 lr 0 0 images/s eta 0": (
        is_tested_by("test_quickstart.py", "test_the_quickstart_learns_the_digits_and_draws_it")
    ),
    "make test": suite,
    "prints ================ 0 passed, 0 warnings in 0s (0) ================": all_passed,
    f"{PRETRAIN}/resnet50_in1k_1000ep_1gpu {IMAGENET} config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=256": (
        pretrains(ONE_GPU, *SMALL, "config.DATA.TRAIN.DATA_LIMIT=512")
    ),
    f"{PRETRAIN}/resnet50_in1k_1000ep {IMAGENET} config.DISTRIBUTED.NUM_NODES=1 "
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=256": (
        pretrains(
            MAIN_RUN,
            *SMALL,
            "config.DATA.TRAIN.DATA_LIMIT=512",
            "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
        )
    ),
    f"{PRETRAIN}/resnet50_in1k_1000ep {IMAGENET} "
    "config.DISTRIBUTED.RUN_ID=ADDRESS_OF_NODE_0:29500 node_id=0": (
        on_nodes(
            2,
            *SMALL,
            "config.DATA.TRAIN.DATA_LIMIT=256",
            "config.DISTRIBUTED.NUM_NODES=2",
            ONE_PROCESS,
        )
    ),
    f"{PRETRAIN}/resnet50_in1k_1000ep {IMAGENET} config.SLURM.USE_SLURM=true "
    "config.SLURM.PARTITION=PARTITION": submits(hours=72),
    f"{PRETRAIN}/resnet50_in1k_1000ep {IMAGENET} config.SLURM.USE_SLURM=true "
    "config.SLURM.PARTITION=PARTITION config.SLURM.TIME_HOURS=72": submits(hours=72),
    "from vissl_barlow.loss import barlow_twins_loss\n"
    "loss, invariance, redundancy = barlow_twins_loss(z_a, z_b, lambda_=5e-3)": is_python,
    "pip install -c constraints.txt .": installs,
    "pip install --no-deps vissl==0.1.6": installs,
    "pip install --no-deps --force-reinstall classy-vision==0.7.0": installs,
    REPRODUCE: runs("--help", prints="table1"),
    "make lint": lint,
    "make bench": benchmarks,
    "make test-gpu": NO_GPU,
    "make test-detection": NO_DETECTRON2,
    f"{PRETRAIN}/NAME [config.KEY=VALUE ...]": pretrains(
        "quickstart", *SHORT, replace={"NAME": "digits_quickstart", " [config.KEY=VALUE ...]": ""}
    ),
    IMAGENET: is_resolved,
    # docs/ablations.md
    f"{PRETRAIN}/ablations/only_invariance {IMAGENET} config.DISTRIBUTED.NUM_NODES=1 "
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=256": (
        pretrains("checkpoints/ablations/only_invariance", *SMALL, *LIMITED, ONE_PROCESS)
    ),
    f"{PRETRAIN}/ablations/only_invariance config/pretrain/vissl_barlow=digits_quickstart "
    "config.LOSS.barlow_loss.embedding_dim=512": (
        pretrains("checkpoints/ablations/only_invariance", *SHORT)
    ),
    f"{REPRODUCE} table5 --imagenet /data/imagenet config.DISTRIBUTED.NUM_NODES=1 "
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=256": study(
        "imagenet", *SMALL, *LIMITED, ONE_PROCESS, *(f"--linear={word}" for word in LINEAR_OF_SMALL)
    ),
    f"{REPRODUCE} table5 --data digits": study("digits", *SHORT_WITH_PROBE),
    f"{REPRODUCE} NAME --data digits --seeds 2": study(
        "digits", *SHORT_WITH_PROBE, replace={"NAME": "table5"}
    ),
    # docs/detection.md
    "pip install ninja 'setuptools<82' wheel": from_the_network,
    "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2": (
        from_the_network
    ),
    f"{REPRODUCE} table4 --checkpoint checkpoint.torch --num-gpus 8": table_4,
    "python -m vissl_barlow.detection --num-gpus 8 --config-file voc0712_faster_rcnn_R50_C4_24k "
    "MODEL.WEIGHTS checkpoint.torch OUTPUT_DIR voc SEED 0": detection,
    "python -m vissl_barlow.checkpoint --to detectron2 IN OUT.pth": converts,
    # docs/evaluation.md
    f"{REPRODUCE} table1 --checkpoint resnet50.pth --imagenet /data/imagenet": (
        reproduces("table1", ("ImageNet linear",), *ONE_EPOCH)
    ),
    f"{REPRODUCE} table2 --checkpoint resnet50.pth --imagenet /data/imagenet "
    "--simclr-lists /data/simclr": reproduces(
        "table2",
        ("1% of the labels", "10% of the labels"),
        *FINE_TUNING,
        prepare=subset_lists,
    ),
    f"{REPRODUCE} table3 --checkpoint resnet50.pth --places205-images /data/places205/images256 "
    "--places205-lists /data/places205/lists --voc07 /data/VOCdevkit/VOC2007 "
    "--inat18 /data/inat18": reproduces(
        "table3",
        ("Places-205", "VOC07", "iNaturalist 2018"),
        *ONE_EPOCH,
        *(f"++{word}" for word in FEW_SVMS),  # of one row; the others have no such keys
        prepare=places_lists,
    ),
    f"{RUNNER} config=benchmark/vissl_barlow/imagenet1k_linear "
    "config.MODEL.WEIGHTS_INIT.PARAMS_FILE=resnet50.pth "
    "config.DATA.TRAIN.DATA_PATHS=[/data/imagenet/train] "
    "config.DATA.TEST.DATA_PATHS=[/data/imagenet/val]": runs(
        *ONE_EPOCH,
        leaves=tuple(f"checkpoints/imagenet1k_linear/{name}" for name in EVALUATION_FILES),
        then=lambda place: has_accuracy(place.folder / "checkpoints" / "imagenet1k_linear"),
    ),
    "python -m tools.nearest_neighbor_test config=benchmark/vissl_barlow/imagenet1k_knn ...": runs(
        *FOLDERS, replace=DOTS, leaves=("checkpoints/imagenet1k_knn/knn_res5avg.json",)
    ),
    "python -m tools.train_svm config=benchmark/vissl_barlow/voc07_svm ...": runs(
        *VOC,
        replace=DOTS,
        prepare=voc_lists,
        leaves=("checkpoints/voc07_svm/res5avg/test_ap.json",),
    ),
    "python -m tools.train_svm_low_shot config=benchmark/vissl_barlow/voc07_low_shot_svm ...": runs(
        *VOC,
        "config.SVM.low_shot.k_values=[2]",
        "config.SVM.low_shot.sample_inds=[1]",
        replace=DOTS,
        prepare=voc_lists,
        leaves=("checkpoints/voc07_low_shot_svm/res5avg/test_ap_sample1_k2.npy",),
    ),
    f"{RUNNER} engine_name=extract_features config=benchmark/vissl_barlow/imagenet1k_knn ...": runs(
        *FOLDERS,
        replace=DOTS,
        leaves=("checkpoints/imagenet1k_knn/rank0_chunk0_test_res5avg_features.npy",),
    ),
    "python -m vissl_barlow.datasets.imagenet_subsets": runs(
        *("--names", "{data}/simclr/1percent.txt", "--imagenet", "{data}/imagenet"),
        *("--out", "lists", "--allow-any-count"),
        leaves=("lists/train_images.npy", "lists/train_labels.npy"),
    ),
    "python -m vissl_barlow.datasets.places205": runs(
        *("--images", "{data}/places205/images256", "--lists", "{data}/places205/lists"),
        *("--out", "lists", "--allow-any-count"),
        leaves=("lists/train_images.npy", "lists/val_labels.npy"),
    ),
    "python -m extra_scripts.datasets.create_inaturalist2018_data_files": runs(
        *("-i", "{data}/inat18", "-o", "."), leaves=("train_images.npy", "val_labels.npy")
    ),
    "python -m extra_scripts.datasets.create_voc_data_files": runs(
        *("--data_source_dir", "{data}/VOCdevkit/VOC2007", "--output_dir", "."),
        leaves=("train_images.npy", "test_labels.npy"),
    ),
    # docs/report.md
    f"{REPRODUCE} report RUNS_DIR": report,
    f"{REPRODUCE} report RUNS_DIR --out report": report,
    # docs/speed.md
    "make bench-gpu": NO_GPU,
    # docs/troubleshooting.md
    "python -m vissl_barlow.checkpoint --to torchvision|vissl|detectron2 IN OUT": converts,
}


def test_each_documented_command_has_its_line_here_and_each_line_its_command():
    found = {item for page in PAGES for item in documented(page.read_text())}
    assert found - set(COMMANDS) == set(), "documented, and nothing here says how they are run"
    assert set(COMMANDS) - found == set(), "in no page any more"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[:80])
def test_documented_command(command, place):
    COMMANDS[command](place, command)


def test_no_command_is_overlooked():
    """A block that the extraction does not see would be run by nothing."""
    for page in PAGES:
        text = page.read_text()
        items = "\n".join(documented(text))
        starts = re.findall(r"\b(?:python3? -m [\w.]+|python3? \S+\.py|pip3? install \S+)", text)
        assert [start for start in starts if start not in items] == [], page.name


def test_commands_are_found_in_blocks_and_in_the_text():
    page = """Text, `make one` and `python -m two.three --four`, but not `make` or `config.A=1`.

    # A comment
    python -m tools.a config=b \\
        config.C=[d]  # what it is
    make e

and

```
pip install f
```

    epoch 3/40  loss 68.52
    more

and, as Python,

    lr = 1e-3
    use(lr)
"""
    assert sorted(documented(page)) == [
        "lr = 1e-3\nuse(lr)",
        "make e",
        "make one",
        "pip install f",
        "prints epoch 0/0 loss 0",
        "python -m tools.a config=b config.C=[d]",
        "python -m two.three --four",
    ]


def test_documented_overrides_are_keys_of_the_configs():
    """`config.KEY=VALUE` in running text: hydra refuses a key that no config has."""
    text = "\n".join(page.read_text() for page in PAGES)
    quoted = {part for part in re.findall(r"`([^`\n]+)`", text) if part.startswith("config.")}
    overrides = sorted(part for part in quoted if "=" in part and "KEY=VALUE" not in part)
    assert len(overrides) > 5
    for override in overrides:
        assert_composes(shlex.split(override))


# Two of the schedule's steps, on 128-pixel images of drawn rectangles.
DETECTION_SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.NORM": "BN",
    "INPUT.MIN_SIZE_TRAIN": "(128,)",
    "INPUT.MAX_SIZE_TRAIN": "128",
    "INPUT.MIN_SIZE_TEST": "128",
    "INPUT.MAX_SIZE_TEST": "128",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "2",
    "SOLVER.STEPS": "(1,)",
    "SOLVER.WARMUP_ITERS": "1",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.PRECISE_BN.NUM_ITER": "2",
    "DATALOADER.NUM_WORKERS": "0",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "8",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "50",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "16",
}
ONE_GPU_FEWER = {"--num-gpus 8": "--num-gpus 1"}


@pytest.mark.detectron2
def test_detection_runs_as_documented(tmp_path, data):
    from detectron2.data.datasets.pascal_voc import CLASS_NAMES
    from torchvision.models import resnet50

    from vissl_barlow.detection import compat  # noqa: F401

    save_atomically(resnet50().state_dict(), tmp_path / "checkpoint.torch")
    draw_voc(tmp_path / "datasets", CLASS_NAMES)
    place = Place(folder=tmp_path, data=data)
    for command, append, result in (
        (
            next(text for text in COMMANDS if COMMANDS[text] is detection),
            [word for override in DETECTION_SMALL.items() for word in override],
            "voc/results.json",
        ),
        (
            next(text for text in COMMANDS if COMMANDS[text] is table_4),
            ["--only", f"{VOC07_12}/seed1", *map("=".join, DETECTION_SMALL.items())],
            f"report/{VOC07_12}/seed1/results.json",
        ),
    ):
        words = [*place.words(command, ONE_GPU_FEWER), *append]
        place.run(words, DETECTRON2_DATASETS=str(tmp_path / "datasets"))
        (scores,) = json.loads((tmp_path / result).read_text()).values()
        assert {"AP", "AP50", "AP75"} <= scores["bbox"].keys()
    table = (tmp_path / "report" / "table4.md").read_text()
    assert re.search(r"\| VOC07\+12 detection \| box AP \| 56.8 \| \S+ \(1 of 5 runs\) \|", table)
