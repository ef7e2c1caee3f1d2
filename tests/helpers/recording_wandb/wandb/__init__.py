"""Stands in for the package of Weights & Biases: writes each call to `$WANDB_CALLS`, a line of JSON.

`$WANDB_FAILS` says how: "network" where `init` does, but offline; "key", always; "hang" at the end.
"""

import json
import os
import time
from types import SimpleNamespace


class CommError(Exception):
    """Of the network."""


errors = SimpleNamespace(CommError=CommError)
FAILS = os.environ.get("WANDB_FAILS", "")


def record(name: str, /, **values) -> None:
    with open(os.environ["WANDB_CALLS"], "a") as file:
        print(json.dumps([name, values], default=str), file=file)


def Settings(**options) -> dict:
    return options


def Image(path: str) -> str:
    return f"image of {os.path.basename(path)}"


class Run:
    """What `init` gives."""

    def __init__(self, offline: bool) -> None:
        self.offline, self.url, self.dir = offline, "https://wandb.ai/run", "wandb/offline/files"

    def define_metric(self, name: str, **options) -> None:
        record("define_metric", name=name, **options)

    def log(self, values: dict) -> None:
        record("log", **values)

    def finish(self) -> None:
        record("finish")
        if FAILS == "hang":
            time.sleep(600)


def init(**options) -> Run:
    record("init", **options)
    offline = options.get("mode") == "offline"
    if FAILS == "key" or (FAILS == "network" and not offline):
        raise (RuntimeError if FAILS == "key" else CommError)("nobody\nanswers")
    return Run(offline)
