"""Components of a run that keep what the monitor describes, and the times at which it looks.

A transform, Sleepy, makes the images of every other epoch come slowly.
"""

import time
from pathlib import Path

import torch
from classy_vision.dataset.transforms import register_transform
from classy_vision.dataset.transforms.classy_transform import ClassyTransform
from classy_vision.hooks.classy_hook import ClassyHook

TRACE_FILE = "monitor.pt"
SLEEP = 0.01  # seconds per view

_slow = False


@register_transform("Sleepy")
class Sleepy(ClassyTransform):
    def __call__(self, view):
        time.sleep(SLEEP if _slow else 0)
        return view


class Trace(ClassyHook):
    """Writes one dictionary per step.

    The monitor's windows end between `before` and `after` of a step, and begin after the `after` of
    the step before, or between `before_epoch` and `epoch`.
    """

    on_forward = ClassyHook._noop
    on_step = ClassyHook._noop

    def on_start(self, task) -> None:
        self.steps = []
        self.idle = time.perf_counter()

    def on_phase_start(self, task) -> None:
        global _slow
        _slow = task.train_phase_idx % 2 == 1
        self.epoch = {"before_epoch": self.idle, "epoch": time.perf_counter()}

    def on_loss_and_meter(self, task) -> None:
        z_a, z_b = task.last_batch.model_output
        self.step = {
            **self.epoch,
            "z_a": z_a.detach().clone(),
            "z_b": z_b.detach().clone(),
            "representations": task.base_model.representations.clone(),
            "valid": task.last_batch.sample["data_valid"].clone(),
        }

    def on_backward(self, task) -> None:
        gradients = [p.grad.flatten() for p in task.base_model.parameters()]
        self.step["gradient"] = torch.cat(gradients)
        self.step |= {"before": time.perf_counter(), "least_memory": _peak_memory()}

    def on_update(self, task) -> None:
        self.step |= {"after": time.perf_counter(), "most_memory": _peak_memory()}
        self.step["data_wait"] = task.last_batch.data_wait
        self.steps.append(self.step)

    def on_phase_end(self, task) -> None:
        self.idle = time.perf_counter()

    def on_end(self, task) -> None:
        torch.save(self.steps, Path(task.checkpoint_folder) / TRACE_FILE)


def _peak_memory() -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024


def hooks(config) -> list[ClassyHook]:
    return [Trace()]
