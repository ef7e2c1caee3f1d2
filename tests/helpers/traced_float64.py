"""Components for a traced run in float64: initial weights and inputs are kept, and it can be killed."""

import os
import signal
from pathlib import Path

import torch
from classy_vision.dataset.transforms import register_transform
from classy_vision.dataset.transforms.classy_transform import ClassyTransform
from classy_vision.hooks.classy_hook import ClassyHook

TRACE_FILE = "trace.pt"
# Environment variable: the iteration, counted from 1, after which the run is killed.
KILL_AFTER = "TRACED_RUN_KILL_AFTER"


@register_transform("TracedFloat64")
class TracedFloat64(ClassyTransform):
    def __call__(self, view: torch.Tensor) -> torch.Tensor:
        return view.double()


class Trace(ClassyHook):
    """Writes `initial` (trunk, heads) and `inputs`, one (2, N, 3, H, W) batch per step."""

    on_phase_start = ClassyHook._noop
    on_loss_and_meter = ClassyHook._noop
    on_backward = ClassyHook._noop
    on_update = ClassyHook._noop
    on_phase_end = ClassyHook._noop

    def on_start(self, task) -> None:
        weights = task.base_model.get_classy_state(deep_copy=True)["model"]
        self.trace = {"initial": weights, "inputs": []}

    def on_forward(self, task) -> None:
        self.trace["inputs"].append(task.last_batch.sample["input"].clone())

    def on_step(self, task) -> None:
        if task.iteration == int(os.environ.get(KILL_AFTER, -1)):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_end(self, task) -> None:
        torch.save(self.trace, Path(task.checkpoint_folder) / TRACE_FILE)


def hooks(config) -> list[ClassyHook]:
    # VISSL asks for the hooks before it builds the model; importing this module changes nothing.
    torch.set_default_dtype(torch.float64)
    return [Trace()]
