"""README and docs name only what there is: links, make targets, configs, modules, keys."""

import importlib.util
import re
import shlex
import subprocess

import pytest
from documented import PAGES, ROOT, documented
from documented_targets import assert_composes

from vissl_barlow.vissl_plugin import settings

TEXT = {page.name: page.read_text() for page in PAGES}
ALL = "\n".join(TEXT.values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_reached_from_the_readme():
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in TEXT["README.md"]] == []


def test_make_targets_exist():
    targets = set(re.findall(r"\bmake ([a-z-]+)\b", ALL)) - {"a", "room", "the"}
    assert {"quickstart", "test"} <= targets
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_configs_exist():
    names = set(re.findall(r"\bconfig=((?:pretrain|benchmark)/vissl_barlow/\w[\w/]*)", ALL))
    assert "pretrain/vissl_barlow/resnet50_in1k_1000ep" in names
    folders = [ROOT / "configs" / "config", ROOT / "benchmark_configs" / "config"]
    missing = [n for n in names if not any((f / f"{n}.yaml").is_file() for f in folders)]
    assert [name for name in missing if name != "pretrain/vissl_barlow/NAME"] == []


def test_modules_exist():
    modules = set(re.findall(r"python -m (vissl_barlow[\w.]*|tools\.\w+)", ALL))
    assert len(modules) > 5
    assert [name for name in modules if importlib.util.find_spec(name.rstrip(".")) is None] == []


def test_the_plugins_keys_are_the_documented_ones():
    """To mend this: `python -m vissl_barlow.vissl_plugin.settings table` prints the table."""
    page = TEXT["pretraining.md"].partition("## The plugin's own keys\n\n")[2]
    assert page.startswith(settings.table() + "\n")
    keys = {key.name for key in settings.all_keys()}
    documented = set(re.findall(r"^\| `([A-Z_.]+)` \|", TEXT["pretraining.md"], re.MULTILINE))
    assert documented == keys


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
