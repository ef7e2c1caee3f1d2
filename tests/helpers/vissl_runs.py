"""Runs VISSL with the plugin: resolves configs here, trains in fresh processes.

Run as a script it is the other end of `train`: `python vissl_runs.py COMPONENTS OVERRIDE...`.
"""

import copy
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from patience import run
from preloaded import preloaded

# Overrides that let the configs of large runs resolve on a machine without GPUs and ImageNet.
ANYWHERE = (
    "config.SLURM.USE_SLURM=true",
    "config.DATA.TRAIN.DATA_SOURCES=[barlow_digits]",
    "config.DATA.TRAIN.DROP_LAST=false",  # the digits are fewer than some batches
)
# Characters of each stream in the message of a failed run: VISSL prints its whole config.
SHOWN = 5000


def resolve(folder: Path, config: str, *overrides: str):
    """The config VISSL's runner would train with, its checkpoints in `folder`; writes nothing else.

    `config` is a name below `configs/config`; `overrides` are hydra's, as on the command line.
    """
    # Order matters to hydra's discovery: the plugin registers where VISSL is imported already.
    from vissl.utils.hydra_config import compose_hydra_configuration, convert_to_attrdict

    composed = compose_hydra_configuration(
        [f"config={config}", f"config.CHECKPOINT.DIR={folder}", *overrides]
    )
    _, resolved = convert_to_attrdict(composed, dump_config=False)
    return resolved


def compose(config: str, *overrides: str):
    """The config as it reaches training, but for the checks of this machine and its data.

    `config` and `overrides`: as in `resolve`.
    """
    from omegaconf import OmegaConf
    from vissl.config import AttrDict
    from vissl.utils.hydra_config import compose_hydra_configuration, infer_learning_rate

    composed = compose_hydra_configuration([f"config={config}", *overrides])
    return infer_learning_rate(AttrDict(OmegaConf.to_container(composed)).config)


def refused_by(check, config, given: dict[str, Any], command=()) -> list[str]:
    """The lines of `check`'s refusal of `config` with the dotted keys `given`, typed as `command`."""
    from vissl_barlow.vissl_plugin.errors import ConfigError

    config = copy.deepcopy(config)
    config.BARLOW.COMMAND = list(command)
    for key, value in given.items():
        *parents, name = key.split(".")
        section = config
        for part in parents:
            section = section[part]
        section[name] = value
    try:
        check(config)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def run_engines(
    folder: Path, *overrides: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """`python -m tools.run_distributed_engines OVERRIDE...` in `folder`, as users run it.

    Returns exit status, stdout and stderr, whatever they are; `env` adds to the environment. With it a
    Python is started for this run, and without one forked that has imported VISSL (see `preloaded`).
    """
    module = "tools.run_distributed_engines"
    return run_module(folder, module, *overrides, env=env)


def run_module(
    folder: Path,
    module: str,
    *arguments: str,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """`python -m MODULE ARGUMENT...` in `folder`, for VISSL's other tools; as `run_engines`."""
    return _python(folder, env, "-m", module, *arguments)


def train(
    folder: Path,
    config: str,
    *overrides: str,
    components: str,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """Trains `config` under VISSL's trainer in a fresh process, with a test's own components.

    `components` names a module in tests/helpers: importing it registers what it likes, and its
    `hooks(config)` returns hooks to add to VISSL's. Checkpoints go to `folder`. Returns exit status,
    stdout and stderr, whatever they are; `env` adds to the environment.
    """
    arguments = (f"config={config}", f"config.CHECKPOINT.DIR={folder}", *overrides)
    return _python(folder, env, __file__, components, *arguments)


def succeeded(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    """`done` if its exit status is 0, else an AssertionError with the end of its output."""
    assert done.returncode == 0, done.stdout[-SHOWN:] + done.stderr[-SHOWN:]
    return done


def _python(folder, env, *arguments) -> subprocess.CompletedProcess:
    # One thread per process: tests share their machine, and sums keep their order.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **(env or {})}
    if env is None:
        return preloaded().run(arguments, cwd=folder, env=environment)
    return run([sys.executable, *arguments], cwd=folder, env=environment)


class _Hooks:
    """VISSL's hooks and those of a test's components; picklable, for spawned workers."""

    def __init__(self, components: str) -> None:
        self.components = components

    def __call__(self, config) -> list:
        from vissl.hooks import default_hook_generator

        added = importlib.import_module(self.components).hooks(config)
        return default_hook_generator(config) + added


def _main(components: str, overrides: list[str]) -> None:
    from vissl.utils.distributed_launcher import launch_distributed
    from vissl.utils.hydra_config import compose_hydra_configuration, convert_to_attrdict

    importlib.import_module(components)
    _, config = convert_to_attrdict(compose_hydra_configuration(overrides))
    launch_distributed(
        cfg=config, node_id=0, engine_name="train", hook_generator=_Hooks(components)
    )


if __name__ == "__main__":
    # Under its own name, so that a spawned worker finds what the config's pickle refers to.
    importlib.import_module("vissl_runs")._main(sys.argv[1], sys.argv[2:])
