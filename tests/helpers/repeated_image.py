"""A data set for loader workers, in a module of its own: a spawned worker imports little."""

import numpy as np
import torch
from torch.utils.data import Dataset

IMAGE = np.arange(60 * 50 * 3, dtype=np.uint32).reshape(60, 50, 3).astype(np.uint8)


class RepeatedImage(Dataset):
    """The same image at every index, so that views differ by their draws alone."""

    def __init__(self, two_views):
        self.two_views = two_views

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.stack(self.two_views(IMAGE))
