"""How much of a tensor the CPU works on at a time, to find it in cache for the next operation."""

from torch import Tensor

# 512 KiB of float32.
CACHED_ELEMENTS = 1 << 17


def rows_in_cache(x: Tensor, dim: int = 0) -> int:
    """How many slices of `x` along `dim` hold `CACHED_ELEMENTS` elements together; at least 1."""
    return max(1, CACHED_ELEMENTS * x.shape[dim] // max(x.numel(), 1))
