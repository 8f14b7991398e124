"""Small statistics over runs: ranks, folds, noise of repeats, quantiles."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ranks(values: Floats) -> Floats:
    """Ranks from 0, equal values sharing the mean of theirs: ``[3, 1, 3]`` -> ``[1.5, 0, 1.5]``."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shared: Floats = (ends - (counts + 1) / 2)[inverse]
    return shared


def spearman(a: Floats, b: Floats) -> float | None:
    """Rank correlation; None where fewer than three pairs are known or one side does not vary."""
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 3:
        return None
    x, y = ranks(a[known]), ranks(b[known])
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 0 else None


def folds(groups: NDArray[np.int64], num_folds: int, seed: int = 0) -> NDArray[np.int64]:
    """A fold for every run ``[num_runs]``; runs of one group (repeats of a mixture) share a fold."""
    distinct = np.unique(groups)
    order = np.random.default_rng(seed).permutation(len(distinct))
    fold_of = np.empty(len(distinct), np.int64)
    fold_of[order] = np.arange(len(distinct)) % min(num_folds, len(distinct))
    placed: NDArray[np.int64] = fold_of[np.searchsorted(distinct, groups)]
    return placed


def repeat_noise(values: Floats, groups: NDArray[np.int64]) -> tuple[float | None, int]:
    """Standard deviation between runs of one mixture, pooled, and its degrees of freedom; None where none is repeated."""
    squares, freedom = 0.0, 0
    for group in np.unique(groups):
        own = values[(groups == group) & np.isfinite(values)]
        if len(own) > 1:
            squares += float(((own - own.mean()) ** 2).sum())
            freedom += len(own) - 1
    # exactly equal repeats are one run copied, or trained with one seed: they tell no noise
    return (math.sqrt(squares / freedom), freedom) if squares > 0 else (None, 0)


def exceeds_noise(spread: float, num_runs: int, noise: float, freedom: int) -> bool:
    """Whether runs differ by more than their repeats, at 5 % (F test, its quantile by simulation)."""
    rng = np.random.default_rng(0)
    ratios = rng.chisquare(num_runs - 1, 20_000) / (num_runs - 1)
    ratios /= rng.chisquare(freedom, 20_000) / freedom
    return spread**2 > float(np.quantile(ratios, 0.95)) * noise**2


def t_quantile(freedom: float) -> float:
    """The 95 % quantile of Student's t, by its expansion around the normal one: 1.645 for many degrees of freedom."""
    z = 1.6448536269514722
    n = max(freedom, 1.0)
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
