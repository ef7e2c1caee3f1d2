"""Stops a run whose loss, or whose model's outputs, are not finite."""

import torch
from classy_vision.hooks.classy_hook import ClassyHook
from vissl.hooks.log_hooks import LogLossMetricsCheckpointHook

from vissl_barlow.vissl_plugin.hooks.base import BarlowHook, current_step, is_log_step


class BarlowFiniteOutputs(BarlowHook):
    """vissl/hooks/state_update_hooks.py:153: `self._checkpoint_model`, which the hook does not have.

    A fault of VISSL 0.1.6: outputs that are not finite end an evaluation with an AttributeError.
    """

    def on_forward(self, task) -> None:
        outputs = task.last_batch.model_output
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        if not all(torch.isfinite(output).all() for output in outputs):
            kind = "training" if task.train else "test"
            raise FloatingPointError(
                f"the model's outputs are not finite for a {kind} batch after {task.iteration} steps; "
                "the checkpoints saved so far are good. Likely causes: a learning rate too high "
                "(config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.base_value, or lr_head's), or "
                "NaN in the images"
            )


class BarlowFiniteLoss(BarlowHook):
    """Stops the run before weights that follow a loss that is not finite reach a checkpoint.

    The losses are counted on the device, and the count is read at log steps, at the end of epochs
    and before checkpoints, not at every step as VISSL's own check does, which this hook replaces.
    `barlow_train_step` and VISSL's give every process the mean loss, so all of them stop together.
    """

    def on_start(self, task) -> None:
        self.non_finite = torch.zeros((), dtype=torch.long, device=task.device)
        for hook in task.hooks:
            if isinstance(hook, LogLossMetricsCheckpointHook):
                hook.on_forward = ClassyHook._noop

    def on_phase_start(self, task) -> None:
        self.window_start = task.iteration

    def on_loss_and_meter(self, task) -> None:
        self.non_finite += ~torch.isfinite(task.last_batch.loss.detach()).all()

    def on_update(self, task) -> None:
        if is_log_step(task):
            self.check(task)
            self.window_start = current_step(task)

    def on_step(self, task) -> None:
        frequency = task.config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY
        if task.train and frequency > 0 and task.iteration % frequency == 0:
            self.check(task)  # before VISSL's hook, which comes later, saves

    def on_phase_end(self, task) -> None:
        if task.train:
            self.check(task)

    def check(self, task) -> None:
        """Raises FloatingPointError if the loss was not finite since the last time."""
        steps = max(current_step(task) - self.window_start, 1)
        non_finite = int(self.non_finite)
        self.non_finite.zero_()
        # Loss scaling overflows now and then by design, and skips those steps.
        if non_finite == 0 or (task.amp_grad_scaler is not None and non_finite < steps):
            return
        raise FloatingPointError(
            f"the loss was not finite in {non_finite} of the last {steps} steps, up to step "
            f"{current_step(task)}; the checkpoints saved so far are good. Likely causes: a learning "
            "rate too high (config.OPTIMIZER.param_schedulers.lr.auto_lr_scaling.base_value), "
            "float16 overflow (config.BARLOW.AMP_DTYPE=bfloat16), or NaN in the images"
        )
