"""`barlow_train_step`: Algorithm 1's loop body, without waiting for the device.

VISSL's own step reads the loss back to the host each time. Here everything stays on the device; who
wants a number (a hook, at a log step) waits for it then.
"""

import functools
import time
from types import SimpleNamespace

import torch
from classy_vision.generic.distributed_util import all_reduce_mean
from vissl.hooks import SSLClassyHookFunctions
from vissl.trainer.train_steps import register_train_step
from vissl.utils.perf_stats import PerfTimer

from vissl_barlow.views import normalize
from vissl_barlow.vissl_plugin.components.reproducible import seed_step


@register_train_step("barlow_train_step")
def barlow_train_step(task=None):
    """One step: two views, embeddings, loss, update.

    Unsigned bytes (views under `normalize_on_device`) are normalised on the device with the
    transform's own mean and standard deviation. Autocast follows MODEL.AMP_PARAMS and
    BARLOW.AMP_DTYPE. In pieces, as BARLOW.CHUNK_SIZE asks, `vissl_barlow.chunked` takes the place of
    forward and backward pass; hooks meet the same outputs, losses and gradients.

    Raises:
        StopIteration: the epoch is over (VISSL's protocol).
    """
    if task is None:
        return barlow_train_step  # VISSL's main branch asks for an instance first, 0.1.6 does not
    task.last_batch = SimpleNamespace()
    stats = task.perf_stats
    whole = PerfTimer("train_step_total", stats)
    whole.start()
    with PerfTimer("read_sample", stats):
        started = time.perf_counter()
        batch = next(task.data_iterator)
        task.last_batch.data_wait = time.perf_counter() - started
    input_key, target_key = (task.data_and_label_keys[kind][0] for kind in ("input", "target"))
    sample = {key: value[0] for key, value in batch.items()}
    sample["input"], sample["target"] = sample.pop(input_key), sample.pop(target_key)
    task.last_batch.sample, task.last_batch.target = sample, sample["target"]
    if task.train:
        seed_step(task.config.SEED_VALUE, task.iteration, task.device)
    pieces = task.pieces if task.train else None
    with torch.set_grad_enabled(task.train), task.autocast():
        views = _prepare(task, sample["input"])
        if pieces is not None:
            with PerfTimer("forward_and_backward", stats):
                task.optimizer.zero_grad()
                pieces.backward(views, functools.partial(_loss, task), task.amp_grad_scaler)
        else:
            with PerfTimer("forward", stats):
                output = task.model(views)
            loss = _loss(task, output)
    if task.train:
        if pieces is None:
            with PerfTimer("backward", stats):
                task.optimizer.zero_grad()
                scaled = loss if task.amp_grad_scaler is None else task.amp_grad_scaler.scale(loss)
                scaled.backward()
        task.run_hooks(SSLClassyHookFunctions.on_backward.name)
        with PerfTimer("optimizer_step", stats):
            if task.amp_grad_scaler is None:
                task.optimizer.step(where=task.where)
            else:
                task.amp_grad_scaler.step(task.optimizer, where=task.where)
                task.amp_grad_scaler.update()
        task.run_hooks(SSLClassyHookFunctions.on_update.name)
        task.num_updates += task.get_global_batchsize()
    whole.stop()
    whole.record()
    return task


def _loss(task, output: list[torch.Tensor]) -> torch.Tensor:
    """The loss of the model's output, both recorded, the hooks of either run."""
    task.last_batch.model_output = output
    task.run_hooks(SSLClassyHookFunctions.on_forward.name)
    with PerfTimer("loss_compute", task.perf_stats):
        loss = task.loss(output, task.last_batch.target)
    task.last_batch.loss = all_reduce_mean(loss.detach().clone())
    task.losses.append(task.last_batch.loss)
    task.run_hooks(SSLClassyHookFunctions.on_loss_and_meter.name)
    return loss


def _prepare(task, views: torch.Tensor) -> torch.Tensor:
    """(2, N, 3, H, W) views as the model wants them: normalised, in the memory format of its trunk."""
    # While the elements are bytes, a quarter of what they will be.
    channels_last = task.config.BARLOW.CHANNELS_LAST
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    views = views.flatten(0, 1).contiguous(memory_format=memory_format).view(views.shape)
    return normalize(views, *task.normalization) if views.dtype == torch.uint8 else views
