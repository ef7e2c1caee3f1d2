"""A training step in pieces of the batch, as `BARLOW.CHUNK_SIZE` and `BARLOW.CHUNK_BATCH_NORM` ask."""

import logging
from collections.abc import Callable

import torch
from classy_vision.generic.distributed_util import is_primary
from torch import nn

from vissl_barlow.chunked import backward
from vissl_barlow.chunked.whole_batch import GradScaler
from vissl_barlow.experiment import in_pieces


class StepInPieces:
    """Forward pass, loss and backward pass of a `barlow_task`, in the memory of a piece."""

    def __init__(self, task) -> None:
        settings = task.config.BARLOW
        self._model = task.base_model
        # By way of DistributedDataParallel, which averages the gradients.
        self._embed = OneView(task.model)
        self._options = {
            "chunk_size": settings.CHUNK_SIZE,
            "batch_norm": settings.CHUNK_BATCH_NORM,
            "stages": self._model.stages() if settings.CHUNK_BATCH_NORM == "exact" else None,
        }
        if is_primary():
            logging.info(
                "steps in pieces: BARLOW.CHUNK_SIZE=%s, CHUNK_BATCH_NORM=%s",
                settings.CHUNK_SIZE,
                settings.CHUNK_BATCH_NORM,
            )

    def backward(
        self,
        views: torch.Tensor,
        loss: Callable[[list[torch.Tensor]], torch.Tensor],
        grad_scaler: GradScaler | None,
    ) -> None:
        """Adds the gradients of `loss`, of the model's outputs for `views` (2, N, C, H, W)."""
        view_a, view_b = views.unbind(0)
        backward(
            self._embed,
            view_a,
            view_b,
            lambda columns_a, columns_b: loss(self._model.outputs(columns_a, columns_b)),
            grad_scaler=grad_scaler,
            **self._options,
        )


class OneView(nn.Module):
    """What the model gives of images of one view."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        return self.model(view[None])


def step_in_pieces(task) -> StepInPieces | None:
    """None where a step is an ordinary one."""
    settings = task.config.BARLOW
    return StepInPieces(task) if in_pieces(settings.CHUNK_SIZE, settings.CHUNK_BATCH_NORM) else None
