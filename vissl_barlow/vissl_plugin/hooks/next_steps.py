"""The last words of a pretraining: where its checkpoint is, its numbers, and what to do with it."""

from pathlib import Path

from classy_vision.generic.distributed_util import is_primary

from vissl_barlow.checkpoint import TrunkDepth
from vissl_barlow.next_steps import next_steps
from vissl_barlow.vissl_plugin.hooks.base import BarlowHook
from vissl_barlow.vissl_plugin.hooks.logs import tolerate_failed_logs

CHECKPOINT = "checkpoint.torch"  # VISSL's link to the newest


class BarlowNextSteps(BarlowHook):
    """Prints, on the primary process, what `python -m vissl_barlow.checkpoint CHECKPOINT` does."""

    def on_end(self, task) -> None:
        if is_primary():
            checkpoint = Path(task.checkpoint_folder, CHECKPOINT)
            with tolerate_failed_logs():
                print(next_steps(checkpoint, _trunk(task.config), task.iteration), flush=True)


def _trunk(config) -> TrunkDepth | None:
    """None for a trunk that is no ResNet of ours."""
    if config.MODEL.TRUNK.NAME != "barlow_resnet":
        return None
    options = config.MODEL.TRUNK.RESNETS
    return TrunkDepth(options.DEPTH, options.SMALL_STEM, options.WIDTH_MULTIPLIER)
