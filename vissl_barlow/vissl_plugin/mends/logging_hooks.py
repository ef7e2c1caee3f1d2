"""vissl/hooks: logs, TensorBoard and the profiler."""

import logging
import os

from vissl_barlow.vissl_plugin.wrap import wrap


class _FirstLearningRate:
    """An optimizer's options with one learning rate, the largest, where there are several."""

    def __init__(self, options_view) -> None:
        self._options_view = options_view

    def __getattr__(self, name):
        value = getattr(self._options_view, name)
        return max(value) if name == "lr" and isinstance(value, list) else value


def tensorboard_with_several_learning_rates() -> None:
    """vissl/hooks/tensorboard_hook.py:264, `round(task.optimizer.options_view.lr, 5)`.

    Always broken: with two learning rates `lr` is a list, which has no `round`. Each rate is logged
    under a tag of its own, and the five decimals, which turn 2e-6 into 0, are left to the reader.
    """
    from vissl.hooks.tensorboard_hook import SSLTensorboardHook

    @wrap(SSLTensorboardHook, "on_update")
    def on_update(original, hook, task):
        rates = task.optimizer.options_view.lr
        if not isinstance(rates, list):
            return original(hook, task)
        view = task.optimizer.options_view
        task.optimizer.options_view = _FirstLearningRate(view)
        try:
            original(hook, task)
        finally:
            task.optimizer.options_view = view
        frequency = task.config["LOG_FREQUENCY"]
        if hook.tb_writer is not None and task.iteration % frequency == 0:
            for index, rate in enumerate(rates):
                hook.tb_writer.add_scalar(f"Training/Learning_rate_{index}", rate, task.iteration)
        return None


def tensorboard_log_dir() -> None:
    """vissl/utils/tensorboard.py:45, `tensorboard_dir = f"{checkpoint_folder}/tb_logs"`.

    Always broken: HOOKS.TENSORBOARD_SETUP.LOG_DIR is never read. Its default, ".", keeps VISSL's
    place; anything else is the folder, with EXPERIMENT_LOG_DIR below it.
    """
    from vissl.utils import tensorboard

    @wrap(tensorboard, "get_tensorboard_dir")
    def get_tensorboard_dir(original, cfg):
        setup = cfg.HOOKS.TENSORBOARD_SETUP
        if setup.LOG_DIR in ("", "."):
            return original(cfg)
        folder = os.path.join(setup.LOG_DIR, setup.EXPERIMENT_LOG_DIR)
        os.makedirs(folder, exist_ok=True)
        return folder


def profiler_output_folder() -> None:
    """vissl/hooks/profiling_hook.py:53, `self.output_folder = profiling_config.OUTPUT_FOLDER`.

    Always broken: nobody creates the folder, and the run dies when it writes the profile.
    """
    from vissl.hooks.profiling_hook import ProfilingHook

    @wrap(ProfilingHook, "__init__")
    def init(original, hook, profiling_config):
        os.makedirs(profiling_config.OUTPUT_FOLDER, exist_ok=True)
        original(hook, profiling_config)


def profiler_stops_once() -> None:
    """vissl/hooks/profiling_hook.py:106, `on_end` after `_runtime_tracking` has stopped already.

    Broken since torch 1.8.1's profiler, which refuses to be stopped twice.
    """
    from vissl.hooks.profiling_hook import ProfilingHook

    @wrap(ProfilingHook, "_dump_runtime_profiling_results")
    def dump(original, hook, stop_profiler=False):
        if not getattr(hook, "runtime_profile_written", False):
            hook.runtime_profile_written = stop_profiler
            original(hook, stop_profiler)

    @wrap(ProfilingHook, "_runtime_tracking")
    def track(original, hook, iteration, task):
        if not getattr(hook, "runtime_profile_written", False):
            original(hook, iteration, task)


def logs_outlive_the_disk() -> None:
    """vissl/hooks/log_hooks.py:247 and 487: metrics that cannot be written end the run.

    Always so: a full disk would kill the training that its next checkpoint could have saved.
    """
    from vissl.hooks import log_hooks

    def reported(original, *args, **kwargs):
        try:
            return original(*args, **kwargs)
        except OSError as error:
            logging.error("metrics not written (%s): training goes on", error)
            return None

    wrap(log_hooks, "save_file")(reported)
    wrap(log_hooks.LogLossLrEtaHook, "on_update")(reported)
