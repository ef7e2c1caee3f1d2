"""Hooks of VISSL's trainer: what a run says, records, saves and learns, and how it is stopped.

The plugin's tasks put them in (`barlow_hooks`); what they read of the `BARLOW` section is in
docs/pretraining.md.
"""

from classy_vision.hooks.classy_hook import ClassyHook
from vissl.hooks import (
    CheckNanModelOutputHook,
    DumpMemoryOnException,
    LogLossLrEtaHook,
    LogLossMetricsCheckpointHook,
    LogPerfTimeMetricsHook,
    ProfilingHook,
    SSLTensorboardHook,
)

from vissl_barlow.run_files import AT_ITS_START, UNTRAINED
from vissl_barlow.vissl_plugin.hooks.checkpoints import BarlowCheckpointHook
from vissl_barlow.vissl_plugin.hooks.finite import BarlowFiniteLoss, BarlowFiniteOutputs
from vissl_barlow.vissl_plugin.hooks.logs import BarlowLogHook, BarlowMemoryDump
from vissl_barlow.vissl_plugin.hooks.look import BarlowLook
from vissl_barlow.vissl_plugin.hooks.monitor import BarlowMonitor, BarlowProgress
from vissl_barlow.vissl_plugin.hooks.next_steps import BarlowNextSteps
from vissl_barlow.vissl_plugin.hooks.probe import BarlowProbe
from vissl_barlow.vissl_plugin.hooks.profiler import BarlowProfilingHook
from vissl_barlow.vissl_plugin.hooks.record import RunRecord
from vissl_barlow.vissl_plugin.hooks.stop import BarlowStop
from vissl_barlow.vissl_plugin.hooks.target import BarlowTargetHook
from vissl_barlow.vissl_plugin.hooks.tensorboard import BarlowTensorboardHook
from vissl_barlow.vissl_plugin.hooks.wandb_mirror import WandbMirror


def barlow_hooks(hooks: list[ClassyHook], cfg, resumes_within_epochs: bool) -> list[ClassyHook]:
    """VISSL's hooks, some of them replaced by the plugin's, and the plugin's own.

    The own come before VISSL's: the loss is looked at (`BarlowFiniteLoss`) before VISSL's hook
    saves the weights. Only VISSL's timer stays in front, where it starts an epoch's statistics.

    Args:
        hooks: those of VISSL's `default_hook_generator`, or more.
        cfg: a config with a `BARLOW` section.
        resumes_within_epochs: the task can be stopped after any step and go on from there.
    """
    timers = [hook for hook in hooks if isinstance(hook, LogPerfTimeMetricsHook)]
    others = [_replacement(hook, cfg) for hook in hooks if hook not in timers]
    mirrors = [WandbMirror(cfg.BARLOW.WANDB_PROJECT)] if cfg.BARLOW.WANDB_PROJECT else []
    own = [*_own_hooks(cfg, resumes_within_epochs), RunRecord()]
    return [*timers, *own, *others, *mirrors]


def pretrains(cfg) -> bool:
    """Whether the run that `cfg` describes is a pretraining of this plugin's."""
    return cfg.MODEL.BASE_MODEL_NAME.startswith("barlow_")


def probes(cfg) -> bool:
    """Whether the run probes its trunk, on DATA.TRAIN's and DATA.TEST's labelled images."""
    return pretrains(cfg) and bool(cfg.BARLOW.PROBE.KIND)


def _replacement(hook: ClassyHook, cfg) -> ClassyHook:
    # By the exact class: a subclass that someone else put in stays.
    if type(hook) is LogLossMetricsCheckpointHook:
        return BarlowCheckpointHook(hook.world_size)
    if type(hook) is CheckNanModelOutputHook:
        return BarlowFiniteOutputs()
    if type(hook) is LogLossLrEtaHook:
        return BarlowLogHook(hook)
    if type(hook) is SSLTensorboardHook:
        return BarlowTensorboardHook.replacing(hook)
    if type(hook) is DumpMemoryOnException:
        return BarlowMemoryDump()
    if type(hook) is ProfilingHook:
        return BarlowProfilingHook(cfg.PROFILING)
    return hook


def _own_hooks(cfg, resumes_within_epochs: bool) -> list[ClassyHook]:
    if not pretrains(cfg):
        return [BarlowProgress()]
    hooks: list[ClassyHook] = []
    if cfg.MODEL.BASE_MODEL_NAME == "barlow_byol_model":
        hooks.append(BarlowTargetHook(cfg.MODEL.TARGET_MOMENTUM))
    finite_loss = BarlowFiniteLoss()
    hooks += [finite_loss, BarlowMonitor()]
    if resumes_within_epochs:
        hooks.append(BarlowStop(finite_loss.check))
    if probes(cfg):
        probe = cfg.BARLOW.PROBE
        options = probe.EVERY_EPOCHS, probe.NEIGHBOURS, probe.WHILE_TRAINING
        first = AT_ITS_START if cfg.MODEL.WEIGHTS_INIT.PARAMS_FILE else UNTRAINED
        hooks.append(BarlowProbe(probe.KIND, *options, first))
    if cfg.BARLOW.MAP_IMAGES:
        hooks.append(BarlowLook(cfg.BARLOW.MAP_IMAGES))
    return [*hooks, BarlowNextSteps()]  # last: it tells what the others found
