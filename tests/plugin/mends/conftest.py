"""What kind of run this process is taken for, where no config says so."""

import pytest

import vissl_barlow


@pytest.fixture
def barlow_run(monkeypatch):
    """As after VISSL has resolved a config with a `BARLOW` section."""
    vissl_barlow.register()
    monkeypatch.setattr("vissl_barlow.vissl_plugin.wrap._runs_barlow", True)


@pytest.fixture
def plain_run(monkeypatch):
    """As after VISSL has resolved a config of its own."""
    vissl_barlow.register()
    monkeypatch.setattr("vissl_barlow.vissl_plugin.wrap._runs_barlow", False)
