"""The house's rules: which room may import which, and that no modules import each other in a circle.

Imports inside functions count: an arrow is an arrow wherever it is drawn.
"""

import ast
from collections.abc import Iterator

import pytest
from documented import ROOT

PACKAGE = "vissl_barlow"
PLUGIN = f"{PACKAGE}.vissl_plugin"
# Of the plugin, from the top down: a room imports from itself, from rooms below it, and from the core.
ROOMS = (
    *("preload", "register", "checks", "mends", "components", "hooks", "run"),
    *("errors", "wrap", "settings"),
)
# The last three may be imported by everybody in the plugin and import nothing of it.
BASE = ("errors", "wrap", "settings")
FOREIGN = {"vissl", "classy_vision", "detectron2", "tools"}
# Packages above the core: what runs it under VISSL, under Detectron2, and from tables and studies.
ABOVE_THE_CORE = (PLUGIN, f"{PACKAGE}.detection", f"{PACKAGE}.reproduce")


def module_name(path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in (ROOT / PACKAGE).rglob("*.py")}


def imported(name: str) -> Iterator[str]:
    """Full names of what a module imports: modules, and what is taken from them."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# A package that takes its own modules from itself is no circle.
GRAPH = {
    name: {other for other in imported(name) if other in MODULES and other != name}
    for name in MODULES
}


def reached(start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(GRAPH[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += GRAPH[name]
    return seen


def room(name: str) -> str | None:
    """The plugin's room that a module is in."""
    return name.removeprefix(f"{PLUGIN}.").split(".")[0] if name.startswith(f"{PLUGIN}.") else None


def is_core(name: str) -> bool:
    return name != PACKAGE and not name.startswith(ABOVE_THE_CORE)


def test_the_rules_see_the_package():
    assert f"{PLUGIN}.register" in GRAPH[PACKAGE]
    assert {room(name) for name in MODULES} >= {
        "register",
        "checks",
        "mends",
        "hooks",
        "components",
    }
    assert "vissl.config" in set(imported(f"{PLUGIN}.register"))


def test_no_modules_import_each_other_in_a_circle():
    assert [name for name in MODULES if name in reached(name)] == []


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name)))
def test_the_plugins_rooms_import_downwards(name):
    own = ROOMS.index(room(name))
    above = [
        other
        for other in GRAPH[name]
        if room(other)
        and room(other) != room(name)
        and (ROOMS.index(room(other)) < own or room(name) in BASE)
    ]
    assert above == []


def test_the_core_looks_neither_up_nor_at_vissl_or_detectron2():
    found = {
        name: sorted(
            other
            for other in imported(name)
            if other.split(".")[0] in FOREIGN or other.startswith(ABOVE_THE_CORE)
        )
        for name in MODULES
        if is_core(name)
    }
    assert {name: others for name, others in found.items() if others} == {}


def test_vissl_and_detectron2_are_kept_apart():
    rooms = {"vissl": PLUGIN, "classy_vision": PLUGIN, "detectron2": f"{PACKAGE}.detection"}
    strangers = [
        (name, other)
        for name in MODULES
        for other in imported(name)
        if other.split(".")[0] in rooms and not name.startswith(rooms[other.split(".")[0]])
    ]
    assert strangers == []
