"""VISSL's TensorBoard hook with one learning rate or several."""

import logging
import tempfile

from vissl.hooks.tensorboard_hook import SSLTensorboardHook


class _OneLearningRate:
    """An optimizer's options with one learning rate, the largest, where there are several."""

    def __init__(self, options_view) -> None:
        self._options_view = options_view

    def __getattr__(self, name: str):
        value = getattr(self._options_view, name)
        return max(value) if name == "lr" and isinstance(value, list) else value


class _PatientWriter:
    """A SummaryWriter that goes on in another file when the disk that one was on has room again.

    torch's keeps no number that it could not write; those in between are lost.
    """

    def __init__(self, writer) -> None:
        self._writer, self._failed = writer, False

    def __getattr__(self, name: str):
        value = getattr(self._writer, name)
        if not callable(value):
            return value

        def called(*args, **kwargs):
            if self._failed and not self._has_room():
                return None
            try:
                self._failed = False
                return value(*args, **kwargs)
            except OSError as error:
                logging.error("numbers for TensorBoard not written (%s): training goes on", error)
                self._failed = True
                self._writer.file_writer = self._writer.all_writers = None

        return called

    def _has_room(self) -> bool:
        # Asked with a file that leaves nothing: torch's writer leaves an empty one wherever it fails.
        try:
            with tempfile.TemporaryFile(dir=self._writer.log_dir, buffering=0) as file:
                return file.write(bytes(4096)) == 4096
        except OSError:
            return False


class BarlowTensorboardHook(SSLTensorboardHook):
    """Logs each of several learning rates under a tag of its own.

    VISSL's hook (vissl/hooks/tensorboard_hook.py:264) rounds `task.optimizer.options_view.lr` to five
    decimals: with two rates that is a list, which has no `round`, and 2e-6 would be 0.
    """

    @classmethod
    def replacing(cls, hook: SSLTensorboardHook) -> "BarlowTensorboardHook":
        """With the writer and the settings of VISSL's hook."""
        return cls(
            _PatientWriter(hook.tb_writer),
            log_params=hook.log_params,
            log_params_every_n_iterations=hook.log_params_every_n_iterations,
            log_params_gradients=hook.log_params_gradients,
            log_activation_statistics=hook.log_activation_statistics,
        )

    def on_update(self, task) -> None:
        rates = task.optimizer.options_view.lr
        if not isinstance(rates, list):
            super().on_update(task)
            return
        view = task.optimizer.options_view
        task.optimizer.options_view = _OneLearningRate(view)
        try:
            super().on_update(task)
        finally:
            task.optimizer.options_view = view
        if self.tb_writer is not None and task.iteration % task.config["LOG_FREQUENCY"] == 0:
            for index, rate in enumerate(rates):
                self.tb_writer.add_scalar(f"Training/Learning_rate_{index}", rate, task.iteration)
