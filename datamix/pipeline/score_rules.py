"""What a recipe asks of records by scores: bands, buckets, and who stays of duplicates.

Scores are read from their files when fates are decided, so another band or cut reads, cleans and encodes nothing again. They are found
by the sha256 of the input file, and those of other bytes are an error before any work. Costs 8 bytes a record and score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamix.core.errors import RecipeError, nearest
from datamix.core.hashing import file_sha256
from datamix.pipeline.record_rules import KEEP
from datamix.pipeline.scan import InputFile
from datamix.scoring import ScoreTable, read_scores

SCORE_MISSING, OTHER_BUCKET = "score_missing", "bucket"


@dataclass(frozen=True)
class ScoreBand:
    """Records whose score is from ``min`` to ``max``."""

    score: str
    min: float | None
    max: float | None


@dataclass(frozen=True)
class ScoreBucket:
    """Records of the ``number``-th part of a source, cut at quantiles of its scores."""

    score: str
    quantiles: tuple[float, ...]
    number: int  # from 1


@dataclass(frozen=True)
class ScoreRules:
    """The rules of one source."""

    source: str  # as files of scores name it
    keep: tuple[ScoreBand, ...] = ()
    bucket: ScoreBucket | None = None
    rank: str | None = None  # the score by which duplicates stay

    def names(self) -> list[str]:
        """The scores that are needed."""
        bands = [band.score for band in self.keep]
        return list(dict.fromkeys([*bands, *([self.bucket.score] if self.bucket else []), *([self.rank] if self.rank else [])]))  # fmt: skip


@dataclass(frozen=True)
class WantedScores:
    """The rules of a source, and the files of scores."""

    rules: ScoreRules
    files: tuple[str, ...]


@dataclass(frozen=True)
class SourceScores:
    """The rules of one source, and its input files by content: the manifest's inputs from number ``first_file`` on."""

    rules: ScoreRules
    files: tuple[str, ...]  # sha256
    first_file: int


@lru_cache(maxsize=4)
def _read(paths: tuple[str, ...], digests: tuple[str, ...]) -> ScoreTable:
    return read_scores([Path(path) for path in paths])


def file_digests(paths: Sequence[str]) -> tuple[str, ...]:
    """The sha256 of every file of scores. Raises RecipeError where one cannot be read."""
    try:
        return tuple(file_sha256(Path(path)) for path in paths)
    except OSError as error:
        raise RecipeError(
            f"scores: {error.filename} cannot be read: {error.strerror}. `datamix score` writes such a file."
        ) from None


def score_table(paths: tuple[str, ...], digests: tuple[str, ...]) -> ScoreTable:
    """The scores of some files with these digests, read once."""
    return _read(paths, digests)


def check_scores(wanted: WantedScores, source: str, files: Sequence[InputFile]) -> None:
    """Raise RecipeError where a score that a source needs is missing, or is of other bytes than its files have now."""
    if not wanted.rules.names():
        return
    table = score_table(wanted.files, file_digests(wanted.files))
    for name in wanted.rules.names():
        if name not in table.names:
            close = nearest(name, table.names)
            hint = f"Did you mean {close}?" if close else f"They hold: {', '.join(table.names) or 'none'}."
            raise RecipeError(f"sources.{source}: no file in `scores` holds scores called {name!r}. {hint}")
        for file in files:
            if table.of(name, wanted.rules.source, file.sha256) is None:
                known = {f.file for f in table.files(name)}
                why = "it was changed since it was scored" if file.label in known else "it was not scored"
                raise RecipeError(
                    f"sources.{source}: there are no scores {name!r} of {file.label} as it is now (sha256 {file.sha256[:12]}): {why}. "
                    f"Run the `datamix score` that wrote them again, with --name {name}."
                )


def score_column(
    table: ScoreTable, name: str, source: SourceScores, file: NDArray[np.int32], record: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The score of each record, by its file and ordinal; NaN where it has none. ``[num_records]``."""
    scores = np.full(len(record), np.nan)
    for number, sha256 in enumerate(source.files, source.first_file):
        scored = table.of(name, source.rules.source, sha256)
        rows = np.flatnonzero(file == number)
        if scored is not None and len(scored.record) and len(rows):
            place = np.minimum(np.searchsorted(scored.record, record[rows]), len(scored.record) - 1)
            hit = scored.record[place] == record[rows]
            scores[rows[hit]] = scored.score[place[hit]]
    return scores


def outside(
    table: ScoreTable, source: SourceScores, file: NDArray[np.int32], record: NDArray[np.int64]
) -> list[tuple[NDArray[np.int64], str]]:
    """Records that the rules drop, with the reason, the last one of a record counts."""
    dropped: list[tuple[NDArray[np.int64], str]] = []
    for band in source.rules.keep:
        scores = score_column(table, band.score, source, file, record)
        low, high = -np.inf if band.min is None else band.min, np.inf if band.max is None else band.max
        dropped.append((np.flatnonzero((scores < low) | (scores > high)), KEEP))
        dropped.append((np.flatnonzero(np.isnan(scores)), SCORE_MISSING))
    if (bucket := source.rules.bucket) is not None:
        scores = score_column(table, bucket.score, source, file, record)
        numbers = _bucket_numbers(table, source, scores)
        missing = np.isnan(scores)
        dropped.append((np.flatnonzero(~missing & (numbers != bucket.number)), OTHER_BUCKET))
        dropped.append((np.flatnonzero(missing), SCORE_MISSING))
    return dropped


def _bucket_numbers(
    table: ScoreTable, source: SourceScores, scores: NDArray[np.float64]
) -> NDArray[np.int64]:
    """The bucket of each score; cuts are quantiles of all scored records of the source's files, equal ones stay together."""
    assert source.rules.bucket is not None
    found = (table.of(source.rules.bucket.score, source.rules.source, sha256) for sha256 in source.files)
    every = np.concatenate([np.empty(0), *(f.score for f in found if f is not None)])
    if not len(every):
        return np.zeros(len(scores), np.int64)
    cuts = np.quantile(every, source.rules.bucket.quantiles)
    numbers: NDArray[np.int64] = 1 + np.searchsorted(cuts, scores, side="left").astype(np.int64)
    return numbers
