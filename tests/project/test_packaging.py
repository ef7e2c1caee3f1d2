"""A built wheel works in any directory, configs included."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: a build writes into its source.
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_code_plugin_and_every_config_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("configs", "benchmark_configs"):
        for path in (ROOT / folder).rglob("*.yaml"):
            assert f"vissl_barlow/{path.relative_to(ROOT)}" in names
    assert "hydra_plugins/vissl_barlow_plugin/__init__.py" in names
    assert {"vissl_barlow/reproduce/report.html", "vissl_barlow/py.typed"} <= set(names)
    # Regular packages of these names would hide VISSL's and hydra's.
    assert "hydra_plugins/__init__.py" not in names
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"vissl_barlow", "hydra_plugins"}


def test_the_wheel_resolves_its_configs_away_from_the_checkout(wheel, tmp_path):
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)
    code = (
        "import vissl_barlow\n"
        "from vissl.utils.hydra_config import compose_hydra_configuration, convert_to_attrdict\n"
        "name = 'config=pretrain/vissl_barlow/digits_quickstart'\n"
        "_, config = convert_to_attrdict(compose_hydra_configuration([name]), dump_config=False)\n"
        "print(vissl_barlow.__file__, config.LOSS.barlow_loss.lambda_)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert out.stdout.strip().splitlines()[-1] == f"{installed}/vissl_barlow/__init__.py 0.005"
