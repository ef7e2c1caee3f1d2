"""A hook of which a subclass states only what it does."""

from classy_vision.hooks.classy_hook import ClassyHook


class BarlowHook(ClassyHook):
    """Does nothing at every point of VISSL's trainer; classy-vision's class wants each one defined."""

    on_start = ClassyHook._noop
    on_phase_start = ClassyHook._noop
    on_forward = ClassyHook._noop
    on_loss_and_meter = ClassyHook._noop
    on_backward = ClassyHook._noop
    on_update = ClassyHook._noop
    on_step = ClassyHook._noop
    on_phase_end = ClassyHook._noop
    on_end = ClassyHook._noop
