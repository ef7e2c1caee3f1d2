"""Tables of transfer from one checkpoint: each row some commands, and a file with their result.

A table is a file of `benchmark_configs/tables`:

    title, inputs   the data it wants: option name and description
    rows            name (paper.yaml has its figures by it), label; `result`: file and kind, a key of
                    `results.READERS`; `steps`: commands, one after another; `seeds`: run once for
                    each, report mean and standard deviation
    also            rows of the report that need no command of their own: name, label, the `row` that
                    is run and the config of the `pretraining` it is run on
    steps           module, arguments; `creates`: the last file it writes, where it has one

In arguments {checkpoint}, {folder} (the row's own) and {<input>} stand for paths, {seed} and {num-gpus}
for numbers; `creates` and the result's file are below {folder}.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from vissl_barlow.paths import config_folder
from vissl_barlow.provenance import file_sha256
from vissl_barlow.reproduce.execute import execute, run_again
from vissl_barlow.reproduce.results import READERS

# The tool of VISSL's that knows SLURM; others are submitted with sbatch.
RUNNER = "tools.run_distributed_engines"
# Detectron2's command line: overrides are pairs of words, and the number of GPUs is an option.
DETECTION = "vissl_barlow.detection"
STATE_FILE = "reproduce.json"


@dataclass(frozen=True)
class Step:
    """One command, `python -m module arguments`, and the last file it writes ("": not known)."""

    module: str
    arguments: tuple[str, ...]
    creates: str = ""


@dataclass(frozen=True)
class Row:
    """One experiment of a table, with one seed; see the module's docstring.

    `name` is its folder; rows that differ in their seed alone share their `group`.
    """

    name: str
    group: str
    seed: int
    label: str
    result: dict[str, str]
    steps: tuple[Step, ...]

    @property
    def needs(self) -> set[str]:
        """The inputs that the row's arguments name."""
        text = " ".join(argument for step in self.steps for argument in step.arguments)
        return set(re.findall(r"\{([\w-]+)\}", text)) - {
            "checkpoint",
            "folder",
            "seed",
            "num-gpus",
        }

    def read_result(self, folder: Path) -> dict[str, float] | None:
        """The row's figures in %, if its experiment in `folder` has come to its end."""
        return READERS[self.result["kind"]](folder / self.result["file"])


@dataclass(frozen=True)
class Table:
    """Title, inputs (option name to description), rows, and the keys of each of `also`."""

    title: str
    inputs: dict[str, str]
    rows: tuple[Row, ...]
    also: tuple[dict[str, str], ...]


def table_names() -> list[str]:
    """The tables there are, by name."""
    return sorted(path.stem for path in _tables().glob("*.yaml"))


def load_table(name: str) -> Table:
    """The table `name`, one of `table_names()`."""
    content = yaml.safe_load((_tables() / f"{name}.yaml").read_text())
    rows = tuple(
        Row(
            name=f"{row['name']}/seed{seed}" if "seeds" in row else row["name"],
            group=row["name"],
            seed=seed,
            label=row["label"],
            result=row["result"],
            steps=tuple(
                Step(step["module"], tuple(step["arguments"]), step.get("creates", ""))
                for step in row["steps"]
            ),
        )
        for row in content["rows"]
        for seed in row.get("seeds", [0])
    )
    return Table(content["title"], content["inputs"], rows, tuple(content.get("also", ())))


def _tables() -> Path:
    return config_folder("benchmark_configs") / "tables"


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """The options of a table's command line."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="of this plugin, of the authors, of VISSL or of torchvision",
    )
    table = load_table(name)
    if any(step.module == DETECTION for row in table.rows for step in row.steps):
        parser.add_argument("--num-gpus", type=int, default=8, help="default: %(default)s")
    for option, description in table.inputs.items():
        parser.add_argument(f"--{option}", type=Path, help=description)
    parser.add_argument("--out", type=Path, default=Path("report"), help="default: %(default)s")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--list", action="store_true", help="show rows and results, run nothing")
    mode.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    mode.add_argument("--slurm", action="store_true", help="submit them instead of running them")
    parser.add_argument("overrides", nargs="*", help="hydra's overrides, for every VISSL command")


def run(name: str, options: argparse.Namespace) -> int:
    """Runs what is missing of table `name`; returns the exit status.

    What is finished is not run again; what was interrupted resumes from its newest checkpoint. One
    row's failure does not keep the others from running.

    Raises:
        ValueError: no such row, data missing, or a folder with another checkpoint's results.
    """
    table = load_table(name)
    rows = [row for row in table.rows if options.only in row.name]
    if not rows:
        names = ", ".join(row.name for row in table.rows)
        raise ValueError(f"--only {options.only} matches none of {names}")
    failed = False
    if not options.list:
        inputs = _inputs(table, rows, options)
        for row in rows:
            failed |= not _run_row(row, inputs, options)
    return int(failed)


def _inputs(table: Table, rows: list[Row], options: argparse.Namespace) -> dict[str, str]:
    needed = {"checkpoint"}.union(*(row.needs for row in rows))
    descriptions = {"checkpoint": "the pretrained trunk", **table.inputs}
    paths = {
        name: getattr(options, name.replace("-", "_")) for name in descriptions if name in needed
    }
    missing = [f"--{name} ({descriptions[name]})" for name, path in paths.items() if path is None]
    if missing:
        raise ValueError(f"give {'; '.join(missing)}, or choose other rows with --only")
    absent = [f"--{name} {path}" for name, path in paths.items() if not path.exists()]
    if absent and not options.dry_run:
        raise ValueError(f"not there: {', '.join(absent)}")
    return {name: str(path.resolve()) for name, path in paths.items()}


def _run_row(row: Row, inputs: dict[str, str], options: argparse.Namespace) -> bool:
    """Runs, submits or prints what is left of one row; whether nothing failed."""
    folder = options.out.resolve() / row.name
    finished = row.read_result(folder) is not None
    if not options.dry_run:
        _claim(folder, inputs["checkpoint"])
    if finished:
        return True
    for step in row.steps:
        if step.creates and (folder / step.creates).exists():
            continue
        numbers = {"seed": str(row.seed), "num-gpus": str(getattr(options, "num_gpus", 1))}
        command = _command(step, {**inputs, **numbers, "folder": str(folder)}, options)
        if options.dry_run:
            print(shlex.join(command), flush=True)
        elif options.slurm and not step.creates:
            return _submit(row, folder, command)
        else:
            if step.creates:
                (folder / step.creates).parent.mkdir(parents=True, exist_ok=True)
            if not execute(f"{row.name}: {step.module}", command, folder / "reproduce.log"):
                return False
    return True


def _command(step: Step, paths: dict[str, str], options: argparse.Namespace) -> list[str]:
    arguments = [_filled(argument, paths) for argument in step.arguments]
    if step.module == DETECTION:
        arguments += [word for override in options.overrides for word in override.split("=", 1)]
    if any(argument.startswith("config=") for argument in arguments):
        arguments += options.overrides
        if step.module == RUNNER:
            arguments += run_again(Path(paths["folder"]))
            if options.slurm:
                arguments.append("config.SLURM.USE_SLURM=true")
    command = [sys.executable, "-m", step.module, *arguments]
    if options.slurm and step.module != RUNNER and not step.creates:
        return _sbatch(command, paths["folder"], paths["num-gpus"])
    return command


def _filled(argument: str, paths: dict[str, str]) -> str:
    """`argument` with its paths put in, in hydra's spelling if hydra will read it."""
    if argument.startswith("config"):
        paths = {
            name: re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", path) for name, path in paths.items()
        }
    return re.sub(r"\{([\w-]+)\}", lambda match: paths[match[1]], argument)


def _sbatch(command: list[str], folder: str, gpus: str) -> list[str]:
    """`command` as a SLURM job, with the settings VISSL's launcher reads from its config."""
    settings = dict(a.split("=", 1) for a in command if a.startswith("config.SLURM."))
    partition = settings.get("config.SLURM.PARTITION", "")
    return [
        "sbatch",
        "--parsable",
        *([f"--partition={partition}"] if partition else []),
        "--nodes=1",
        "--ntasks=1",
        f"--gpus-per-node={gpus}",
        f"--cpus-per-task={settings.get('config.SLURM.NUM_CPU_PER_PROC', 8)}",
        f"--output={folder}/slurm-%j.out",
        f"--wrap={shlex.join(command)}",
    ]


def _claim(folder: Path, checkpoint: str) -> None:
    """Marks `folder` as this checkpoint's, or refuses it as another's."""
    digest = file_sha256(checkpoint)
    state = _read_state(folder)
    if state.get("sha256", digest) != digest:
        raise ValueError(
            f"{folder} holds the results of another checkpoint, {state['checkpoint']}; choose another "
            "folder with --out"
        )
    _write_state(folder, {**state, "checkpoint": checkpoint, "sha256": digest})


def _read_state(folder: Path) -> dict:
    path = folder / STATE_FILE
    return json.loads(path.read_text()) if path.exists() else {}


def _write_state(folder: Path, state: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")


def _submit(row: Row, folder: Path, command: list[str]) -> bool:
    """Submits a job unless the one submitted before is still in SLURM's queue."""
    state = _read_state(folder)
    job = state.get("job")
    if job and shutil.which("squeue"):
        queue = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}"], capture_output=True, text=True, check=False
        )
        if queue.returncode == 0 and queue.stdout.strip():
            print(f"{row.name}: job {job} is in the queue", flush=True)
            return True
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    submitted = re.search(r"^(?:SUBMITTED: )?(\d+)\b", done.stdout, re.MULTILINE)
    if done.returncode != 0 or submitted is None:
        print(done.stdout + done.stderr, file=sys.stderr)
        return False
    _write_state(folder, {**state, "job": submitted[1]})
    print(
        f"{row.name}: submitted as job {submitted[1]}; repeat this command for the result",
        flush=True,
    )
    return True
