"""Evaluation over each image exactly once, whatever the number of processes.

Image i belongs to process i mod W of W. All processes test equally many batches, as collectives at
every step need it: where the images are no multiple of W, some processes get one image more, which
belongs to another process and which the meters and the loss leave out.
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from classy_vision.generic.distributed_util import all_reduce_sum
from torch.utils.data import Sampler
from torch.utils.data.distributed import DistributedSampler

from vissl_barlow.distributed import world_size


class OwnImages(Sampler[int]):
    """The images of this process of several, in order, without padding: for extraction of features,
    where no process waits for another. The attributes are those VISSL logs and sets.

    Args:
        dataset: whose length is the number of images.
    """

    shuffle = False

    def __init__(self, dataset) -> None:
        self.rank, self.num_replicas = dist.get_rank(), dist.get_world_size()
        self.epoch, self.total_size = 0, len(dataset)
        self.num_samples = len(range(self.rank, self.total_size, self.num_replicas))

    def set_epoch(self, epoch: int) -> None:
        """The order is the same in all epochs."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))

    def __len__(self) -> int:
        return self.num_samples


def ordered_sampler(dataset, dataset_config, sampler_seed: int = 0) -> DistributedSampler:
    """For test phases: equally many images on all processes, padded (see the top of this module)."""
    return DistributedSampler(dataset, shuffle=False, drop_last=False)


def own_sampler(dataset, dataset_config, sampler_seed: int = 0) -> OwnImages:
    """For extraction of features."""
    return OwnImages(dataset)


class MeterOfOwnImages:
    """A meter of VISSL's that, in test phases, leaves out the images of other processes.

    Args:
        meter: any; everything but `update` is its own.
        task: whose phase and whose last batch are looked at.
    """

    def __init__(self, meter, task) -> None:
        self._meter, self._task = meter, task

    def __getattr__(self, name: str):
        return getattr(self._meter, name)

    def update(self, model_output, target: torch.Tensor) -> None:
        """Outputs (N, C), or a list of them, and targets (N, ...) of a batch."""
        if not self._task.train and world_size() > 1:
            own = _own_images(self._task).cpu()
            if not own.any():
                return
            model_output, target = _chosen(model_output, own), target[own]
        self._meter.update(model_output, target)


def test_loss(loss: Callable, task) -> Callable:
    """`loss` for test phases: its mean over the images of a step of all processes, each counted once.

    VISSL takes the mean of the processes' means, and of padding with it.

    Args:
        loss: of outputs (N, C), or a list of them, and targets (N, ...): the mean over N.
        task: whose last batch is looked at.
    """

    def over_each_image_once(model_output, target: torch.Tensor) -> torch.Tensor:
        own = _own_images(task)
        images = own.sum()
        all_images = int(all_reduce_sum(images.clone()))
        if not images:
            return torch.zeros((), device=target.device)
        # VISSL's step divides the sum over the processes by their number.
        weight = int(images) * world_size() / all_images
        return loss(_chosen(model_output, own), target[own]) * weight

    return over_each_image_once


def _own_images(task) -> torch.Tensor:
    """Which images of the batch are this process's: (N,) booleans."""
    return task.last_batch.sample["data_idx"][0].flatten() % world_size() == dist.get_rank()


def _chosen(model_output, chosen: torch.Tensor):
    if isinstance(model_output, list):
        return [output[chosen] for output in model_output]
    return model_output[chosen]
