"""What representations look like to a person: which images they hold alike, and a map of them."""

import numpy as np
from sklearn.manifold import TSNE

# t-SNE's default, as far as there are images for it.
PERPLEXITY = 30


def nearest(representations: np.ndarray, query: int, count: int) -> list[tuple[int, float]]:
    """The rows nearest to row `query` of (N, R) by cosine similarity, the nearest first.

    Args:
        count: how many, at most N - 1.

    Returns:
        (row, similarity in [-1, 1]); a row of zeros is similar to none.
    """
    norms = np.linalg.norm(representations, axis=1, keepdims=True)
    unit = representations / np.where(norms > 0, norms, 1)
    similarities = unit @ unit[query]
    order = np.argsort(-similarities, kind="stable")
    return [(int(row), float(similarities[row])) for row in order if row != query][:count]


def flat_map(representations: np.ndarray) -> np.ndarray:
    """A map (N, 2) of (N, R) representations by t-SNE on their directions, the same each time.

    Fewer than four, and representations that are all one, have no map: all are at 0.
    """
    norms = np.linalg.norm(representations, axis=1, keepdims=True)
    unit = representations / np.where(norms > 0, norms, 1)
    if len(unit) < 4 or np.ptp(unit, axis=0).max() < 1e-6:
        return np.zeros((len(unit), 2))
    perplexity = min(PERPLEXITY, (len(unit) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(unit)
