"""Importance of records for a domain, by hashed n-grams: data selection via importance resampling (DSIR, Xie et al. 2023,
arXiv 2302.03169).

Two bags of hashed n-grams are counted, one of the domain's files and one of all records that are scored. The score of a record is the
mean over its n-grams of log p(bucket | domain) - log p(bucket | all): above 0 the domain explains it better. Times the number of its
n-grams this is the paper's log importance weight; the mean is given, so that long records are not at the ends for being long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamix.scoring.ngrams import hashed_ngrams

NUM_BUCKETS = 10_000  # as in the paper
_PRIOR = 1.0  # added to each bucket: a few domain files leave most buckets unseen


def fit_importance(domain: NDArray[np.int64], everything: NDArray[np.int64]) -> NDArray[np.float64]:
    """The log ratio of each bucket, from its counts in the domain and in all records. ``[num_buckets]``."""
    logs = [np.log((c + _PRIOR) / (c.sum() + _PRIOR * len(c))) for c in (domain, everything)]
    ratio: NDArray[np.float64] = logs[0] - logs[1]
    return ratio


@lru_cache(maxsize=2)
def _ratios(path: Path) -> NDArray[np.float64]:
    ratios: NDArray[np.float64] = np.load(path, allow_pickle=False)
    return ratios


@dataclass(frozen=True)
class NgramImportance:
    """The scorer; ``ratios`` is a ``.npy`` of what ``fit_importance`` gave."""

    ratios: Path

    def score_texts(self, texts: Sequence[str | None]) -> NDArray[np.float64]:
        """The mean log ratio of each text's n-grams; NaN without any."""
        ratios = _ratios(self.ratios)
        grams = hashed_ngrams(texts, len(ratios))
        return means_by_text(ratios[grams.buckets], grams.offsets)


def means_by_text(values: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of ``values[offsets[i]:offsets[i + 1]]``; NaN where there are none."""
    counts = np.diff(offsets)
    owner = np.repeat(np.arange(len(counts)), counts)
    sums = np.bincount(owner, values, minlength=len(counts))
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return means
