"""What the monitor measures of the step under way; nothing here says it to anybody.

Values are tensors on the device where they are found there: reading them waits for it.
"""

import re
import resource
import time
from pathlib import Path

import torch

from vissl_barlow.diagnostics import cross_correlation_summary, effective_rank, embedding_std

PROCESS_STATUS = Path("/proc/self/status")


class Window:
    """The time since a step, and how much of it was spent waiting for data."""

    def __init__(self, step: int) -> None:
        self.step, self.started, self.data_wait = step, time.perf_counter(), 0.0

    def throughput(self, step: int, batch_size: int) -> dict[str, float]:
        """Images per second, of all processes, and the share of waiting, in [0, 1], up to `step`."""
        seconds = time.perf_counter() - self.started
        images = batch_size * max(step - self.step, 1)
        return {
            "images_per_second": images / seconds,
            "data_wait_share": min(self.data_wait / seconds, 1.0),
        }


def learning_rates(task) -> dict[str, float]:
    """`lr`, the weights', and where the optimizer has one of its own `lr_bias`."""
    options = task.optimizer.options_view
    lr = max(options.lr) if isinstance(options.lr, list) else options.lr
    scale = getattr(options, "bias_lr_scale", None)
    return {"lr": lr} if scale is None else {"lr": lr, "lr_bias": lr * scale}


def loss_terms(task) -> dict[str, torch.Tensor]:
    """The loss, its mean over processes, and the terms of a loss that keeps them in `terms`."""
    terms = getattr(task.base_loss, "terms", None)
    loss = {"loss": task.last_batch.loss}
    return loss if terms is None else terms._asdict() | loss


def gradient_norm(task) -> torch.Tensor:
    """The norm of all gradients together, without the factor of loss scaling."""
    gradients = [p.grad for p in task.base_model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm if task.amp_grad_scaler is None else norm / task.amp_grad_scaler.get_scale()


def embeddings(task) -> dict[str, torch.Tensor]:
    """C, spread and effective rank, of this process's rows.

    C takes the eps of the loss's equation 2 where it has one (`loss.correlation_eps`), else the
    default.
    """
    z_a, z_b = (z.detach().float() for z in task.last_batch.model_output[:2])
    eps = getattr(task.base_loss, "correlation_eps", None)
    summary = cross_correlation_summary(z_a, z_b, **({} if eps is None else {"eps": eps}))
    std = embedding_std(z_b)
    measured = {
        "diagonal_mean": summary.mean_diagonal,
        "off_diagonal_rms": summary.off_diagonal_rms,
        "embedding_std_min": std.min,
        "embedding_std_mean": std.mean,
    }
    ranked = {
        "embedding": z_b,
        "representation": getattr(task.base_model, "representations", None),
    }
    for name, z in ranked.items():
        if z is not None:
            # An eigenvalue problem of as many rows, at each log step.
            z = z[: task.config.BARLOW.RANKED_IMAGES].float()
            # Centred, as in equation 2: the mean alone would pass for a direction.
            measured[f"effective_rank_{name}"] = effective_rank(z - z.mean(0))
    return measured


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or without one of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if PROCESS_STATUS.exists():
        peak = re.search(r"VmHWM:\s+(\d+) kB", PROCESS_STATUS.read_text())
        if peak:
            return int(peak[1]) * 1024
    # Other systems than Linux; there, the peak of the process that started this one counts as well.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
