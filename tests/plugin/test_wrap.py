"""What replaces a function of VISSL's, and in which processes it does."""

import importlib
import inspect
import multiprocessing
import pkgutil
import re
import sys
import types
from inspect import Parameter

import pytest
from plugin_probe import runs_barlow
from vissl.hooks.log_hooks import LogLossMetricsCheckpointHook
from vissl_runs import resolve

import vissl_barlow
from vissl_barlow.vissl_plugin import mends
from vissl_barlow.vissl_plugin.hooks.checkpoints import BarlowCheckpointHook
from vissl_barlow.vissl_plugin.wrap import (
    Overlay,
    always,
    in_barlow_run,
    of_barlow_config,
    overlay,
    wrap,
)

DIGITS = "pretrain/vissl_barlow/digits_quickstart"
VISSLS = "test/integration_test/quick_simclr_synthetic"


@pytest.fixture(autouse=True)
def registered():
    vissl_barlow.register()


def doubled(applies):
    owner = types.SimpleNamespace(number=lambda config, by=1: by)
    for _ in range(2):

        @wrap(owner, "number", applies)
        def number(original, config, by=1):
            return 2 * original(config, by)

    return owner.number


def test_a_replacement_calls_the_original_once_and_only_where_it_applies():
    assert [doubled(always)(config, by=3) for config in ({}, {"BARLOW": {}})] == [6, 6]
    assert [doubled(of_barlow_config)(config) for config in ({}, {"BARLOW": {}})] == [1, 2]


def test_a_method_stays_one():
    class Owner:
        def name(self):
            return "original"

    @wrap(Owner, "name", always)
    def name(original, owner):
        return type(owner).__name__, original(owner)

    assert Owner().name() == ("Owner", "original")


def test_an_overlay_replaces_a_name_and_passes_all_others_through():
    module = types.ModuleType("module", "What it is for.")
    module.kept, module.replaced = 1, 2
    overlay = Overlay(module, replaced=3)
    assert (overlay.__name__, overlay.__doc__) == ("module", "What it is for.")
    assert (overlay.kept, overlay.replaced) == (1, 3)
    module.later = 4
    assert overlay.later == 4
    with pytest.raises(AttributeError, match="missing"):
        overlay.missing  # noqa: B018


def test_what_is_not_there_to_be_replaced_is_an_error():
    owner = types.ModuleType("owner")
    with pytest.raises(AttributeError, match="gone"):
        wrap(owner, "gone", always)(lambda original: None)
    with pytest.raises(AttributeError, match="gone"):
        overlay(owner, "gone", replaced=3)
    assert not hasattr(owner, "gone")


def own_classes() -> list[type]:
    """The classes that the plugin's modules define."""
    plugin = vissl_barlow.vissl_plugin
    found = pkgutil.walk_packages(plugin.__path__, f"{plugin.__name__}.")
    modules = [importlib.import_module(each.name) for each in found]
    return [
        each
        for module in modules
        for each in vars(module).values()
        if inspect.isclass(each) and each.__module__ == module.__name__
    ]


def missing(theirs, ours, skipped: int = 0) -> list[str]:
    """Parameters of VISSL's function that what stands in its place does not take."""
    several = {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}
    given = [p.name for p in inspect.signature(theirs).parameters.values() if p.kind not in several]
    taken = list(inspect.signature(ours).parameters.values())[skipped:]
    return [] if {p.kind for p in taken} & several else given[len(taken) :]


def test_methods_that_stand_in_for_vissls_are_those_that_this_vissl_calls():
    """By their names, or a hook's and a task's would never run, and with their arguments."""
    found = set()
    for each in own_classes():
        for name, method in vars(each).items():
            if not inspect.isfunction(method) or name == "__init__":
                continue
            theirs = next((vars(b)[name] for b in each.__mro__[1:] if name in vars(b)), None)
            if {"super", name} <= set(method.__code__.co_names):
                found.add(f"{each.__name__}.{name}")
                assert theirs is not None, f"nothing calls {each.__name__}.{name}"
            if inspect.isfunction(theirs):
                assert missing(theirs, method) == [], f"{each.__name__}.{name}"
    assert "BarlowProfilingHook._runtime_tracking" in found


@pytest.fixture
def imported_tools():
    """VISSL's tools, for as long as the test runs: who has imported one is taken to run it."""
    tools = ("train_svm", "train_svm_low_shot", "nearest_neighbor_test")
    new = {f"tools.{tool}" for tool in tools} - set(sys.modules)
    for name in new:
        importlib.import_module(name)
    yield
    for name in new:
        del sys.modules[name]


def test_mends_take_what_this_vissl_s_functions_take(imported_tools):
    mends.apply()
    replaced = {}
    for module in [m for name, m in sys.modules.items() if re.match(r"(vissl|tools)\b", name)]:
        for owner in (module, *filter(inspect.isclass, vars(module).values())):
            for name, function in vars(owner).items():
                if inspect.isfunction(function) and hasattr(function, "replaced_by"):
                    replaced[f"{owner.__name__}.{name}"] = function
    assert "SelfSupervisionTrainer.extract" in replaced
    for name, function in replaced.items():
        assert missing(function.__wrapped__, function.replaced_by, skipped=1) == [], name


@pytest.mark.parametrize("door", ["checkpoint_model", "print_and_save_meters"])
def test_vissls_checkpoint_hook_has_one_of_the_two_doors_that_ours_goes_through(door):
    """0.1.6's private one, or main's; ours are both."""
    doors = {f"_{door}", door}
    assert len(doors & set(vars(LogLossMetricsCheckpointHook))) == 1
    assert doors <= set(vars(BarlowCheckpointHook))
    (theirs,) = doors & set(vars(LogLossMetricsCheckpointHook))
    assert theirs in LogLossMetricsCheckpointHook.on_phase_end.__code__.co_names


def test_the_process_that_resolves_a_config_knows_its_kind(tmp_path):
    for name, barlow in ((DIGITS, True), (VISSLS, False), (DIGITS, True)):
        resolve(tmp_path, name, "config.MACHINE.DEVICE=cpu")
        assert in_barlow_run() == barlow


def test_a_pickled_config_tells_the_process_where_it_arrives(tmp_path):
    configs = [resolve(tmp_path, name, "config.MACHINE.DEVICE=cpu") for name in (VISSLS, DIGITS)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert [pool.apply(runs_barlow, (config,)) for config in configs] == [False, True]
