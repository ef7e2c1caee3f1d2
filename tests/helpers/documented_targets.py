"""How documented commands that are no runs are checked: code, overrides, packages, make."""

import re
import shlex
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from documented import ROOT
from documented_runs import Place
from makefile import make, recipe

from vissl_barlow.checkpoint import load_trunk
from vissl_barlow.resnet import build_trunk

QUICKSTART_TEST = "tests/plugin/hooks/test_quickstart.py"


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


def loads_the_trunk(place: Place, code: str) -> None:
    """README's lines: the checkpoint's trunk in a ResNet, all of it, or an error."""
    trunk = load_trunk(place.trunk)
    # The checkpoint is where the reader is.
    code = code.replace("checkpoint.torch", str(place.folder / "checkpoint.torch"))

    def loaded(depth: int) -> torch.nn.Module:
        resnet = build_trunk(depth, width_multiplier=0.5)
        resnet.fc = torch.nn.Linear(256, 10)
        exec(code, {"resnet": resnet, "torch": torch})
        return resnet

    resnet = loaded(18)
    with pytest.raises(RuntimeError, match="Missing key"):
        loaded(34)
    assert all(torch.equal(resnet.state_dict()[name], tensor) for name, tensor in trunk.items())


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
        assert f"def {test}(" in (ROOT / file).read_text()

    return run


def installs(place: Place, command: str) -> None:
    """README's `pip install`, which a test cannot repeat inside itself: the Makefile has the same."""
    lines = [line[2:] for line in recipe("install", "VENV=elsewhere") if line[1:3] == ["-m", "pip"]]
    found = [[word for word in line if word != "--quiet"] for line in lines]
    # `make install` is for working on the checkout: editable, and with what the tests need.
    found = [" ".join(line).replace("-e .[test]", ".") for line in found]
    assert command in found


def quickstart(place: Place, command: str) -> None:
    """`QUICKSTART_TEST` runs what the Makefile would."""
    runner = [sys.executable, "-m", "tools.run_distributed_engines"]
    words, _ = recipe("quickstart")
    assert words[:3] == runner and "config=pretrain/vissl_barlow/digits_quickstart" in words
    assert 'recipe("quickstart")' in (ROOT / QUICKSTART_TEST).read_text()


def suite(place: Place, command: str) -> None:
    """The whole of it is what runs this; one file of it through the Makefile, and in the gate."""
    words = recipe("test")[-1]
    selected = "not gpu and not detectron2 and not slurm"
    expected = [
        "pytest",
        "-n",
        "auto",
        "--dist",
        "loadscope",
        "--no-loadscope-reorder",
        "-m",
        selected,
    ]
    assert words[words.index("pytest") :] == expected
    done = make("test", PYTEST_ARGS="tests/core/test_schedule.py")
    assert done.returncode == 0 and re.search(r"=+ \d+ passed", done.stdout), done.stdout[-3000:]
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def suite_on_source(place: Place, command: str) -> None:
    """Not run: it wants a checkout of VISSL's. The suite, with that in front of everything else."""
    assert recipe(*command.split()[1:])[-1] == ["PYTHONPATH=CHECKOUT", *recipe("test")[-1]]


def soak(place: Place, command: str) -> None:
    """Not run: it takes most of an hour. The suite runs the same test, with fewer steps."""
    words = recipe("soak")[-1]
    assert "FAULTS_SOAK_STEPS=10000" in words and (ROOT / words[-1]).exists()


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


def is_run_by_the_gate(place: Place, command: str) -> None:
    """Not run here: it takes minutes, and root. The gate's script has it, and it runs tests."""
    assert command in (ROOT / ".ci" / "run").read_text()
    ((*_, folder),) = [words for words in recipe(*command.split()[1:]) if "pytest" in words]
    assert list((ROOT / folder).glob("test_*.py"))


def from_the_network(place: Place, command: str) -> None:
    """Not run: it fetches from outside and compiles for minutes. The message of a machine without
    Detectron2 gives the same line, and the packages for its build fit our own."""
    from vissl_barlow.detection.__main__ import INSTALL

    if "git+" in command:
        assert command in INSTALL
    else:
        assert '"setuptools<82"' in (ROOT / "setup.py").read_text()
        assert "setuptools<82" in shlex.split(command)
