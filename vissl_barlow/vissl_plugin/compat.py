"""Makes VISSL 0.1.6 run on current libraries.

One function per mend; its docstring names the line of VISSL 0.1.6 it mends and what broke it. A mend
that finds VISSL already right does nothing. `apply()` runs them all, once per process.
"""

import functools
import io
import os

import torch


def apply() -> None:
    """Applies every mend to the imported VISSL."""
    from vissl_barlow.vissl_plugin.checkpointing import CHECKPOINT_MENDS  # these need `wrap`
    from vissl_barlow.vissl_plugin.compat_evaluation import EVALUATION_MENDS
    from vissl_barlow.vissl_plugin.running import RUNNING_MENDS
    from vissl_barlow.vissl_plugin.untrusted import UNTRUSTED_MENDS

    for mend in (
        *CHECKPOINT_MENDS,
        broadcast_checkpoints_without_copying_bytewise,
        tensorboard_with_several_learning_rates,
        tensorboard_log_dir,
        profiler_output_folder,
        profiler_stops_once,
        data_paths_without_label_paths,
        *EVALUATION_MENDS,
        *RUNNING_MENDS,
        *UNTRUSTED_MENDS,
    ):
        mend()


def wrap(owner, name: str):
    """Replaces `owner.name` by the decorated function, which gets the original as first argument."""

    def install(replacement):
        original = getattr(owner, name)
        if hasattr(original, "mended_by"):
            return replacement
        wrapper = functools.wraps(original)(functools.partial(replacement, original))
        # A plain function, so that it binds `self` when `owner` is a class.
        bound = functools.wraps(original)(lambda *args, **kwargs: wrapper(*args, **kwargs))
        bound.mended_by = replacement
        setattr(owner, name, bound)
        return replacement

    return install


def broadcast_checkpoints_without_copying_bytewise() -> None:
    """classy_vision/generic/distributed_util.py:265, `torch.ByteTensor(data_view)`.

    Slow since torch 1.x: the constructor walks the bytes one by one, 15 s for 190 MB.
    """
    import torch.distributed as dist
    from classy_vision.generic.distributed_util import get_world_size, is_primary
    from classy_vision.generic.util import load_checkpoint
    from vissl.utils import checkpoint as vissl_checkpoint

    if hasattr(vissl_checkpoint.load_and_broadcast_checkpoint, "mended_by"):
        return

    def load_and_broadcast_checkpoint(checkpoint_path, device):
        checkpoint = load_checkpoint(checkpoint_path, device) if is_primary() else None
        if get_world_size() == 1:
            return checkpoint
        where = "cuda" if dist.get_backend() == "nccl" else "cpu"
        buffer = io.BytesIO()
        if is_primary():
            torch.save(checkpoint, buffer)
        size = torch.tensor([buffer.getbuffer().nbytes], device=where)
        dist.broadcast(size, src=0)
        payload = torch.empty(int(size), dtype=torch.uint8, device=where)
        if is_primary():
            payload.copy_(torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8))
        dist.broadcast(payload, src=0)
        if is_primary():
            return checkpoint
        return torch.load(
            io.BytesIO(payload.cpu().numpy().data), map_location=device, weights_only=True
        )

    load_and_broadcast_checkpoint.mended_by = broadcast_checkpoints_without_copying_bytewise
    vissl_checkpoint.load_and_broadcast_checkpoint = load_and_broadcast_checkpoint


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


def data_paths_without_label_paths() -> None:
    """vissl/data/dataset_catalog.py:330, the catalogue is asked for labels nobody uses.

    Always broken: DATA_PATHS without LABEL_PATHS is a KeyError unless the data set happens to be in
    the catalogue, even where LABEL_SOURCES is empty.
    """
    from vissl.data import dataset_catalog

    @wrap(dataset_catalog, "get_data_files")
    def get_data_files(original, split, dataset_config):
        section = dataset_config[split]
        if len(section.DATA_PATHS) > 0 and len(section.LABEL_PATHS) == 0:
            section.LABEL_PATHS = list(section.DATA_PATHS)
        return original(split, dataset_config)
