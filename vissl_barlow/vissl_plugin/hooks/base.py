"""A hook of which a subclass states only what it does, and the step it is called in."""

from classy_vision.hooks.classy_hook import ClassyHook


class BarlowHook(ClassyHook):
    """Does nothing at any point of VISSL's trainer; they are in the order of a run."""

    on_start = ClassyHook._noop
    on_phase_start = ClassyHook._noop
    on_forward = ClassyHook._noop
    on_loss_and_meter = ClassyHook._noop
    on_backward = ClassyHook._noop
    on_update = ClassyHook._noop
    on_step = ClassyHook._noop
    on_phase_end = ClassyHook._noop
    on_end = ClassyHook._noop
    on_exception = ClassyHook._noop


def current_step(task) -> int:
    """Number of the step under way, from 1: VISSL counts it after the hooks of the update."""
    return task.iteration + 1


def is_log_step(task) -> bool:
    """Whether the step under way is logged: the first, the last, every `config.LOG_FREQUENCY`-th."""
    step = current_step(task)
    is_due = step % task.config["LOG_FREQUENCY"] == 0 or step in (1, task.max_iteration)
    return task.train and is_due
