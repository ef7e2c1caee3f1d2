"""Samples that depend on the seed, the epoch and the image alone, whatever source and transforms; and
steps whose draws depend on the seed, the step and the process alone."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from vissl.data import DATA_SOURCES_WITH_SUBSET_SUPPORT, DATASET_SOURCE_MAP
from vissl.data.ssl_dataset import GenericSSLDataset

from vissl_barlow.distributed import rank
from vissl_barlow.views import view_seed as view_seed


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python's, numpy's and torch's CPU generator; afterwards they are what they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for_numpy, for_torch = np.random.SeedSequence(seed).generate_state(2)
    random.seed(seed)
    np.random.seed(for_numpy)
    # Not torch.manual_seed: it queues a call for each image where CUDA is not initialised.
    torch.default_generator.manual_seed(int(for_torch))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Seeds what a training step draws on this process (dropout, dropped paths) by its number.

    Whatever was drawn before, in this start or in an earlier one: a resumed run draws as one that was
    not interrupted.
    """
    drawn = int(np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(drawn)  # not torch.manual_seed: as above
    if device.type == "cuda":
        torch.cuda.manual_seed(drawn)


class ReproducibleDataset(GenericSSLDataset):
    """VISSL's data set, each of whose samples is drawn under a seed of its own.

    VISSL's sources and transforms draw from the global generators, whose state depends on what was
    drawn before: on the number of loader workers and on where a run was interrupted. Here the state
    is a function of the seed, the epoch and the image while a sample is made.
    """

    def __init__(self, cfg, split: str) -> None:
        super().__init__(cfg, split, DATASET_SOURCE_MAP, DATA_SOURCES_WITH_SUBSET_SUPPORT)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the task before each epoch's loader starts."""
        self.epoch = epoch

    def __getitem__(self, idx: int) -> dict:
        with seeded(view_seed(self.cfg.SEED_VALUE, self.epoch, int(idx))):
            return super().__getitem__(idx)
