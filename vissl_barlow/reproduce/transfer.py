"""Tables 1 to 4, transfer from one checkpoint: each row some commands, and a file with their result.
`own`, the same on one's own images, is written as these are.

A table is a file of `benchmark_configs/tables`:

    title, inputs   the data it wants: option name and description
    rows            name (paper.yaml has its figures by it), label; `result`: file and kind, a key of
                    `results.READERS`; `steps`: commands, one after another; `seeds`: run once for
                    each, report mean and standard deviation; `variants`: other configs for the same
                    commands, name to label, which are run only if asked for by their whole name and
                    stand beside no number of the paper's
    also            rows of the report that need no command of their own: name, label, the `row` that
                    is run and the config of the `pretraining` it is run on
    steps           module, arguments; `creates`: the last file it writes, where it has one

In arguments {checkpoint}, {folder} (the row's own) and {<input>} stand for paths, {seed} and {num-gpus}
for numbers; `creates` and the result's file are below {folder}.
"""

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from vissl_barlow.paths import config_folder
from vissl_barlow.reproduce.results import ResultFile
from vissl_barlow.reproduce.settings import DETECTION, config_of


@dataclass(frozen=True)
class Step:
    """One command, `python -m module arguments`, and the last file it writes ("": not known)."""

    module: str
    arguments: tuple[str, ...]
    creates: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table; see the module's docstring.

    Attributes:
        seeds: the name of the folder of each of its runs, to the run's seed.
        pretraining: for a row of `also`, the config of the pretraining it is run on; else "".
    """

    name: str
    label: str
    seeds: dict[str, int]
    result: ResultFile
    steps: tuple[Step, ...]
    pretraining: str = ""

    @property
    def config(self) -> str:
        """What its runs run, as `config_of` names it."""
        return next(filter(None, (config_of(step.arguments) for step in self.steps)))

    @property
    def inputs(self) -> set[str]:
        """The table's inputs that the row's arguments name."""
        text = " ".join(argument for step in self.steps for argument in step.arguments)
        return set(re.findall(r"\{([\w-]+)\}", text)) - {"folder", "seed", "num-gpus"}


@dataclass(frozen=True)
class Table:
    """Title, inputs (option name to description), the rows that are run, those of `also`, and the rows'
    variants."""

    title: str
    inputs: dict[str, str]
    rows: tuple[Row, ...]
    also: tuple[Row, ...]
    variants: tuple[Row, ...]

    def chosen(self, only: str) -> dict[str, Row]:
        """The rows whose folder's name contains `only`, and the variant of that name; by folder."""
        runs = {folder: row for row in self.rows for folder in row.seeds if only in folder}
        return runs | {row.name: row for row in self.variants if row.name == only}

    @property
    def detects(self) -> bool:
        """Whether it runs Detectron2."""
        return any(step.module == DETECTION for row in self.rows for step in row.steps)


def _folder() -> Path:
    return config_folder("benchmark_configs") / "tables"


OWN = "own"


def table_names() -> list[str]:
    """The paper's tables, by name."""
    return sorted(path.stem for path in _folder().glob("*.yaml") if path.stem != OWN)


@functools.cache
def load_table(name: str) -> Table:
    """The table `name`, one of `table_names()` or OWN."""
    content = yaml.safe_load((_folder() / f"{name}.yaml").read_text())
    rows = {}
    for row in content["rows"]:
        name = row["name"]
        rows[name] = Row(
            name,
            row["label"],
            {f"{name}/seed{seed}": seed for seed in row.get("seeds", ())} or {name: 0},
            ResultFile(**row["result"]),
            tuple(
                Step(step["module"], tuple(step["arguments"]), step.get("creates", ""))
                for step in row["steps"]
            ),
        )
    also = (
        replace(
            rows[row["row"]], name=row["name"], label=row["label"], pretraining=row["pretraining"]
        )
        for row in content.get("also", ())
    )
    variants = (
        _variant(rows[row["name"]], name, label)
        for row in content["rows"]
        for name, label in row.get("variants", {}).items()
    )
    return Table(
        content["title"], content["inputs"], tuple(rows.values()), tuple(also), tuple(variants)
    )


def _variant(row: Row, name: str, label: str) -> Row:
    """`row` with the config `name` in place of its own."""
    own, other = f"config={row.config}", f"config={Path(row.config).with_name(name)}"
    steps = (
        replace(step, arguments=tuple(other if word == own else word for word in step.arguments))
        for step in row.steps
    )
    return replace(row, name=name, label=label, seeds={name: 0}, steps=tuple(steps))


@functools.cache
def rows_by_config() -> dict[str, Row]:
    """The rows that are run, of all tables, and their variants, by the config that they run."""
    tables = map(load_table, (*table_names(), OWN))
    return {row.config: row for table in tables for row in (*table.rows, *table.variants)}
