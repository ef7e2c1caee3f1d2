"""The states of the random number generators that layers draw from."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class RandomState(NamedTuple):
    """torch's generators (the CPU's, every CUDA device's), Python's and numpy's."""

    cpu: Tensor
    cuda: list[Tensor]
    python: tuple
    numpy: dict | tuple


def random_state() -> RandomState:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return RandomState(torch.get_rng_state(), cuda, random.getstate(), np.random.get_state())


def set_random_state(state: RandomState) -> None:
    torch.set_rng_state(state.cpu)
    if state.cuda:
        torch.cuda.set_rng_state_all(state.cuda)
    random.setstate(state.python)
    np.random.set_state(state.numpy)


def draw_seed() -> int:
    """A seed from torch's CPU generator, which moves on."""
    return int(torch.randint(2**32, ()))


def seed_all(seed: int) -> None:
    """Seeds all of the generators in `RandomState`."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
