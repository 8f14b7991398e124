"""A linear classifier that is trained from "good" and "other" records: logistic regression over hashed n-grams (scikit-learn).

A text is the set of its buckets, scaled to length 1; both classes weigh the same whatever their sizes. The score is the probability
of "good" between equally large classes. A tenth of the records is held out first, to say how well the two can be told apart (AUC:
1 always, 0.5 never); the model that scores is trained on all. Costs about a second for a thousand records, and 2 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.core.errors import DataError, RecipeError
from datamix.core.hashing import mix64
from datamix.scoring.ngrams import hashed_ngrams

NUM_BUCKETS = 1 << 18
_MIN_RECORDS = 10  # of each class
_HELD_OUT = 10  # one of so many


def require_sklearn() -> None:
    """Raises RecipeError where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError:
        raise RecipeError(
            "--by linear needs scikit-learn. Install the extra: pip install 'datamix-toolkit[score]'."
        ) from None


def fit_linear(good: Sequence[str | None], other: Sequence[str | None]) -> tuple[NDArray[np.float64], float]:
    """Weights of the buckets with the intercept last, ``[num_buckets + 1]``, and the AUC on records held out.

    Raises DataError where a class has too few records.
    """
    for name, texts in (("good", good), ("other", other)):
        if len(texts) < _MIN_RECORDS:
            raise DataError(
                f"--by linear: the {name} files hold {len(texts)} records, and {_MIN_RECORDS} are the least to train from. Name more."
            )
    from sklearn.metrics import roc_auc_score

    features = _features([*good, *other])
    labels = np.repeat([1, 0], [len(good), len(other)])
    # Drawn by their number alone, so that neither class falls out.
    held_out = mix64(np.arange(len(labels), dtype=np.uint64)) % np.uint64(_HELD_OUT) == 0
    held_out[[0, len(good)]] = True
    trained = _trained(features[~held_out], labels[~held_out])
    auc = float(roc_auc_score(labels[held_out], trained.decision_function(features[held_out])))
    model = _trained(features, labels)
    return np.append(model.coef_[0], model.intercept_[0]), auc


def _trained(features: Any, labels: NDArray[np.int64]) -> Any:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=10.0, class_weight="balanced", solver="liblinear", random_state=0)
    return model.fit(features, labels)


def _features(texts: Sequence[str | None]) -> Any:
    """Each text as the set of its buckets, of length 1. ``[num_texts, NUM_BUCKETS]``, sparse."""
    from scipy.sparse import csr_matrix

    buckets, offsets, values = _sets(texts)
    return csr_matrix((values, buckets, offsets), shape=(len(texts), NUM_BUCKETS))


def _sets(texts: Sequence[str | None]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    grams = hashed_ngrams(texts, NUM_BUCKETS)
    owner = np.repeat(np.arange(len(texts)), np.diff(grams.offsets))
    unique = np.unique(owner * NUM_BUCKETS + grams.buckets)
    counts = np.bincount(unique // NUM_BUCKETS, minlength=len(texts))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return unique % NUM_BUCKETS, offsets, np.repeat(1 / np.sqrt(np.maximum(counts, 1)), counts)


@lru_cache(maxsize=2)
def _weights(path: Path) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.load(path, allow_pickle=False)
    return weights


@dataclass(frozen=True)
class LinearClassifier:
    """The scorer; ``weights`` is a ``.npy`` of what ``fit_linear`` gave."""

    weights: Path

    def score_texts(self, texts: Sequence[str | None]) -> NDArray[np.float64]:
        """The probability of "good" for each text; NaN for texts without words."""
        weights = _weights(self.weights)
        buckets, offsets, values = _sets(texts)
        owner = np.repeat(np.arange(len(texts)), np.diff(offsets))
        logits = np.bincount(owner, weights[buckets] * values, minlength=len(texts)) + weights[-1]
        return np.where(np.diff(offsets) > 0, 1 / (1 + np.exp(-logits)), np.nan)
