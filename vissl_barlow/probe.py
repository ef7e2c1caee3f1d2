"""How good frozen features are, by the probes people expect: a linear classifier and k-NN."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

PROBES = ("linear", "knn")


def probe_accuracy(
    kind: str,
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    neighbours: int = 5,
) -> float:
    """Accuracy in [0, 1] of a classifier fitted to (N, D) features and tested on (M, D) ones.

    Args:
        kind: "linear", a logistic regression on standardised features, or "knn", the vote of the
            nearest neighbours by cosine similarity.
        neighbours: how many of them vote, of N at most.

    Raises:
        ValueError: `kind` is neither.
    """
    if kind == "linear":
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    elif kind == "knn":
        classifier = KNeighborsClassifier(min(neighbours, len(train_labels)), metric="cosine")
    else:
        raise ValueError(f"the probe is {kind!r}; it must be one of {', '.join(PROBES)}")
    classifier.fit(train_features, train_labels)
    return float(classifier.score(test_features, test_labels))
