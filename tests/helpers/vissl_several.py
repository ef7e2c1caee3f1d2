"""Several runs of VISSL's in one folder that import it once, with this plugin or without.

Run as a script it is what `run_several` starts: requests come as JSON.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vissl_runs import run_module, succeeded


def run_several(folder: Path, runs: Sequence[Sequence[str]], plugin: bool) -> None:
    """`python -m tools.run_distributed_engines OVERRIDE...` in `folder` for each of `runs`.

    `plugin` False: hydra does not find the plugin, as where it is not installed.
    """
    request = json.dumps({"runs": [list(run) for run in runs], "plugin": plugin})
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    succeeded(run_module(folder, "vissl_several", request, env={"PYTHONPATH": path}))


def _hide_plugin() -> None:
    """Hydra searches the folders of the namespace package `hydra_plugins`."""
    import hydra_plugins

    folders = [Path(folder) for folder in hydra_plugins.__path__]
    hydra_plugins.__path__ = [
        str(folder) for folder in folders if not (folder / "vissl_barlow_plugin").exists()
    ]


def _main(runs: list[list[str]], plugin: bool) -> None:
    import vissl.engines.train  # noqa: F401
    from tools.run_distributed_engines import hydra_main

    if not plugin:
        _hide_plugin()
    for overrides in runs:
        if (child := os.fork()) == 0:
            hydra_main(overrides)
            assert ("vissl_barlow" in sys.modules) == plugin
            sys.exit()
        if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(status)


if __name__ == "__main__":
    _main(**json.loads(sys.argv[1]))
