"""What a mixture is worth to a trainer: repeats, loss normalisation, small versions.

Repeats: Muennighoff et al. 2023 (arXiv 2305.16264) fit the worth of U unique tokens seen in E epochs as ``U +
U R* (1 - exp(-(E - 1) / R*))`` with R* = 15.39: four epochs are worth 3.7, sixteen 10.6, any number 16.4.

Loss: a trainer that averages over tokens gives a source its share of loss tokens; one that averages over
examples first gives it its share of rows. A weight a row turns the one into the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamix.core.hashing import permutation, salt

REPEAT_DECAY = 15.387756  # R*_D of the paper, epochs
WORTH_REPEATING = 4  # epochs

LossNorm = Literal["token", "example"]


def effective_cost(unique: float, epochs: float) -> float:
    """The fresh data that ``epochs`` passes over ``unique`` units are worth; up to one pass, what was
    seen.
    """
    if epochs <= 1:
        return unique * epochs
    return unique + unique * REPEAT_DECAY * -math.expm1(-(epochs - 1) / REPEAT_DECAY)


def effective_shares(
    rows: Sequence[float], loss_tokens: Sequence[float], loss_norm: LossNorm
) -> tuple[float, ...]:
    """Each source's part of the gradient: by loss tokens, or by rows where examples count alike."""
    return shares(loss_tokens if loss_norm == "token" else rows)


def shares(parts: Sequence[float]) -> tuple[float, ...]:
    """Parts of a whole as shares of it; all 0 where there is nothing."""
    total = math.fsum(parts)
    return tuple(p / total for p in parts) if total > 0 else tuple(0.0 for _ in parts)


def mean_loss_tokens(loss_tokens: NDArray[Any]) -> float:
    """Of the rows that train anything; 1 where none does. ``[num_rows]``."""
    num_trained = np.count_nonzero(loss_tokens)
    return float(loss_tokens.sum(dtype=np.int64) / num_trained) if num_trained else 1.0


def row_weights(
    loss_tokens: NDArray[Any], trainer: LossNorm, target: LossNorm, mean: float | None = None
) -> NDArray[np.float32]:
    """A weight a row that makes a trainer averaging over ``trainer`` count as if it averaged over ``target``.

    The mean weight is 1 over what the trainer averages, so the learning rate keeps its meaning; where these
    are some rows of a set, ``mean`` is ``mean_loss_tokens`` of all. Rows that train nothing weigh 0.
    ``[num_rows]`` in and out.
    """
    counts = loss_tokens.astype(np.float64)
    if trainer == target:
        return (counts > 0).astype(np.float32)
    mean = mean_loss_tokens(loss_tokens) if mean is None else mean
    if trainer == "example":
        return np.asarray(counts / mean, np.float32)
    weights: NDArray[np.float32] = np.divide(
        mean, counts, out=np.zeros(len(counts)), where=counts > 0
    ).astype(np.float32)
    return weights


def scaled_rows(num_rows: int, scale: float, seed: int, name: str) -> NDArray[np.int64]:
    """The rows of a source that its small version keeps, ascending: a seeded sample of ``scale`` of them, at
    least one.

    With the size of the mixture scaled alike, every row of the small run is seen as often as in the large
    one. A smaller scale keeps a part of what a larger one keeps.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be in (0, 1], not {scale}")
    keep = max(1, round(num_rows * scale))
    return np.sort(permutation(num_rows, salt(seed, "scale", name))[:keep])
