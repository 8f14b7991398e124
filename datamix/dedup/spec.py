"""What counts as a duplicate: thresholds, bands, the fields that are compared, who keeps the record.

A pair of texts with Jaccard similarity J shares at least one of ``bands`` bands of ``rows`` values with
probability ``1 - (1 - J^rows)^bands``. The bands only propose pairs; with ``verify`` every proposal is
decided by exact Jaccard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from datamix.core.errors import RecipeError
from datamix.core.records import Fields, RecordKind

_NUM_PERM = 128
_MIN_RECALL = 0.995  # of a pair exactly at the threshold
_MEASURED = {0.7: (22, 5), 0.8: (18, 6)}  # recall of all true pairs on real documents: 1.0000 and 0.9999
_STEPS = 1000  # of the integrals


@dataclass(frozen=True)
class NearSpec:
    """Near duplicates: n-grams of words, MinHash bands, and whether candidates are verified."""

    threshold: float = 0.8  # Jaccard similarity of the sets of n-grams
    ngram: int = 5  # words
    num_perm: int | None = None
    bands: int | None = None
    rows: int | None = None
    verify: bool = True  # False: a shared band is enough, as in engines that do not verify

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise RecipeError(f"dedupe.near.threshold must be above 0 and at most 1, not {self.threshold}.")
        if not 1 <= self.ngram <= 64:
            raise RecipeError(f"dedupe.near.ngram must be between 1 and 64 words, not {self.ngram}.")
        if (self.bands is None) != (self.rows is None):
            raise RecipeError("dedupe.near.bands and dedupe.near.rows belong together: give both or neither.")
        for name, value in (("bands", self.bands), ("rows", self.rows), ("num_perm", self.num_perm)):
            if value is not None and not 1 <= value <= 4096:
                raise RecipeError(f"dedupe.near.{name} must be between 1 and 4096, not {value}.")

    @property
    def banding(self) -> tuple[int, int]:
        """(bands, rows a band) that are used."""
        if self.bands is not None and self.rows is not None:
            return self.bands, self.rows
        if self.num_perm is not None:
            return balanced_banding(self.threshold, self.num_perm)
        return _MEASURED.get(self.threshold) or recalling_banding(self.threshold)


@dataclass(frozen=True)
class DuplicateFields:
    """Which words of a record are compared; None is the rule of its kind.

    text: the text; prompt: the prompt; preference: the pair; sft: prompt and answer together for exact
    duplicates, the prompt for near ones (of the records that share a prompt, the first or the one with the
    longest answer is kept).
    """

    exact: Fields | None = None
    near: Fields | None = None

    def of(self, kind: RecordKind) -> tuple[Fields, Fields]:
        """(exact, near) fields of records of ``kind``."""
        return self.exact or "all", self.near or ("prompt" if kind in ("sft", "prompt") else "all")


@dataclass(frozen=True)
class DedupeSpec:
    """Everything that decides which records are duplicates and which of them stay."""

    exact: bool = True
    near: NearSpec | None = None
    scope: Literal["across", "within"] = "across"
    keep: int = 1  # records kept a cluster: a record is removed when so many kept ones match it
    rank_by: Literal["first", "longest", "score"] = "first"  # who stays among sources of one rank
    fields: DuplicateFields = DuplicateFields()
    normalize: bool = False  # exact duplicates up to compatibility forms, case and white space

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise RecipeError(
                f"dedupe.keep is the number of records kept a cluster: at least 1, not {self.keep}."
            )
        if not self.exact and self.near is None:
            raise RecipeError("dedupe: exact is false and near is absent, so nothing would be deduplicated.")


@dataclass(frozen=True)
class ContaminationSpec:
    """When a training record holds too much of an evaluation item."""

    ngram: int = 13  # words
    min_overlap: float = 0.5  # share of an item's words that one record holds, in runs of ``ngram``
    fields: Fields = "prompt"

    def __post_init__(self) -> None:
        if not 0 < self.min_overlap <= 1:
            raise RecipeError(
                f"decontaminate.min_overlap must be above 0 and at most 1, not {self.min_overlap}."
            )
        if not 1 <= self.ngram <= 64:
            raise RecipeError(f"decontaminate.ngram must be between 1 and 64 words, not {self.ngram}.")


def recall(similarity: float, bands: int, rows: int) -> float:
    """The chance that a pair of this similarity shares a band."""
    return float(1 - (1 - similarity**rows) ** bands)


def recalling_banding(threshold: float, num_perm: int = _NUM_PERM) -> tuple[int, int]:
    """The most rows, and the fewest bands, that find 99.5 % of pairs at the threshold with ``num_perm`` values."""
    for rows in range(num_perm, 0, -1):
        for bands in range(1, num_perm // rows + 1):
            if recall(threshold, bands, rows) >= _MIN_RECALL:
                return bands, rows
    return num_perm, 1


def balanced_banding(threshold: float, num_perm: int) -> tuple[int, int]:
    """As datasketch derives them: least area of false positives and false negatives."""
    best = (float("inf"), 1, num_perm)
    for bands in range(1, num_perm + 1):
        for rows in range(1, num_perm // bands + 1):
            wrong = _area(0.0, threshold, bands, rows) + (
                (1 - threshold) - _area(threshold, 1.0, bands, rows)
            )
            if wrong < best[0]:
                best = (wrong, bands, rows)
    return best[1], best[2]


def _area(low: float, high: float, bands: int, rows: int) -> float:
    """Integral of ``recall`` over similarity, by midpoints."""
    step = (high - low) / _STEPS
    similarity = low + (np.arange(_STEPS) + 0.5) * step
    return float(step * (1 - (1 - similarity**rows) ** bands).sum())
