"""Components of a run that watch its steps: who reads a tensor's value on the host, types, graphs.

Runs whose last transform is TracedFloat64 are in float64.
"""

import functools
import json
import traceback
from pathlib import Path

import torch
from classy_vision.hooks.classy_hook import ClassyHook
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from traced_float64 import TracedFloat64  # noqa: F401  registers the transform

TRACE_FILE = "steps.json"
# On a device each of these waits until the value, or a shape that depends on it, is known.
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}


class HostReads(TorchDispatchMode):
    """Collects who, in VISSL or the plugin, asked for a tensor's value: "file.py:function"."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in WAITING:
            frames = [frame for frame in traceback.extract_stack() if "vissl" in frame.filename]
            self.readers.append(f"{Path(frames[-1].filename).name}:{frames[-1].name}")
        return func(*args, **(kwargs or {}))


class Trace(ClassyHook):
    """Writes `reads` (a list of readers per step), `dtypes`, whether the trunk's activations were
    `channels_last`, and the number of compiled `graphs`."""

    on_forward = ClassyHook._noop
    on_loss_and_meter = ClassyHook._noop
    on_backward = ClassyHook._noop

    def __init__(self, compiled: bool) -> None:
        super().__init__()
        self.mode = None if compiled else HostReads()  # under a dispatch mode nothing compiles
        self.channels_last = False
        self.reads: list[list[str]] = []

    def on_start(self, task) -> None:
        def note(module, args, output) -> None:
            self.channels_last = output.is_contiguous(memory_format=torch.channels_last)

        if self.mode is not None:
            task.base_model.trunk.get_submodule("_feature_blocks.layer3").register_forward_hook(
                note
            )

    def on_phase_start(self, task) -> None:
        if self.mode is not None:
            self.mode.__enter__()

    def on_update(self, task) -> None:
        tensors = {
            "embeddings": task.last_batch.model_output[0],
            "loss": task.last_batch.loss,
            "weights": next(task.base_model.parameters()),
        }
        self.dtypes = {name: str(tensor.dtype) for name, tensor in tensors.items()}

    def on_step(self, task) -> None:
        if self.mode is not None:
            self.reads.append(self.mode.readers)
            self.mode.readers = []

    def on_phase_end(self, task) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)

    def on_end(self, task) -> None:
        trace = {
            "reads": self.reads,
            "dtypes": self.dtypes,
            "channels_last": self.channels_last,
            "graphs": counters["stats"]["unique_graphs"],
        }
        Path(task.checkpoint_folder, TRACE_FILE).write_text(json.dumps(trace))


def hooks(config) -> list[ClassyHook]:
    if config.DATA.TRAIN.TRANSFORMS[-1]["name"] == "TracedFloat64":
        torch.set_default_dtype(torch.float64)
    # What inductor makes of the graphs is torch's own, takes minutes and needs a C++ compiler.
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    return [Trace(compiled=config.BARLOW.COMPILE)]
