"""What replaces a function of VISSL's, and in which processes it does."""

import multiprocessing
import types

import pytest
from plugin_probe import runs_barlow
from vissl_runs import resolve

import vissl_barlow
from vissl_barlow.vissl_plugin.wrap import Overlay, always, in_barlow_run, of_barlow_config, wrap

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


def test_the_process_that_resolves_a_config_knows_its_kind(tmp_path):
    for name, barlow in ((DIGITS, True), (VISSLS, False), (DIGITS, True)):
        resolve(tmp_path, name, "config.MACHINE.DEVICE=cpu")
        assert in_barlow_run() == barlow


def test_a_pickled_config_tells_the_process_where_it_arrives(tmp_path):
    configs = [resolve(tmp_path, name, "config.MACHINE.DEVICE=cpu") for name in (VISSLS, DIGITS)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert [pool.apply(runs_barlow, (config,)) for config in configs] == [False, True]
