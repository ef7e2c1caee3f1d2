"""BYOL's target network moves after every step."""

from vissl_barlow.byol import target_momentum
from vissl_barlow.vissl_plugin.hooks.base import BarlowHook


class BarlowTargetHook(BarlowHook):
    """Moves `barlow_byol_model`'s target after every step; `base` is tau at the start."""

    def __init__(self, base: float) -> None:
        super().__init__()
        self.base = base

    def on_start(self, task) -> None:
        # MODEL.WEIGHTS_INIT loads the online network alone.
        if task.iteration == 0:
            task.base_model.reset_target()

    def on_update(self, task) -> None:
        if task.train:
            task.base_model.update_target(target_momentum(task.where, base=self.base))
