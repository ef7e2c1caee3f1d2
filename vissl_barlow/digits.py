"""scikit-learn's bundled handwritten digits: 1797 real images that need no download."""

import functools

import cv2
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIZE = 32
CLASSES = 10
TEST_SHARE = 0.2


@functools.cache
def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) uint8 RGB and labels (N,) int64 of "train" (1437) or "test" (360).

    The 8 x 8 originals are enlarged; the split is stratified by class and always the same.

    Raises:
        ValueError: `split` is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f'split is {split!r}: the digits have "train" and "test"')
    source = load_digits()
    train, test = train_test_split(
        np.arange(len(source.target)),
        test_size=TEST_SHARE,
        stratify=source.target,
        random_state=0,
    )
    chosen = train if split == "train" else test
    # 16 grey levels in 0..16; cubic interpolation overshoots at the strokes' edges, hence the clip.
    levels = source.images[chosen].astype(np.float32) * (255 / 16)
    enlarged = [cv2.resize(x, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for x in levels]
    grey = np.clip(np.rint(enlarged), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), source.target[chosen].astype(np.int64)
