"""The tasks of ``datamix score``: parts of the prepared records of a source, and what scores are fitted from.

A part is scored or counted by one task, so that finished parts are never done again. Memory: the texts or tokens of one part, and for
a linear classifier those it is trained from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import open_batch, write_batch
from datamix.core.records import RecordKind, texts
from datamix.pipeline import prepare
from datamix.pipeline.prepare_sources import PreparedSource
from datamix.scoring import EndpointLikelihood, Likelihood, count_ngrams, fit_importance, fit_linear, read_ids
from datamix.scoring.importance import NUM_BUCKETS


@dataclass(frozen=True)
class PartSpec:
    """Some prepared records that are scored or counted together."""

    records: Path  # an Arrow file of prepared records
    batch: int
    start: int
    stop: int
    kind: RecordKind
    scorer: Any = None  # a Scorer, an ScoresById, or None: n-grams are counted
    tokens: Path | None = None
    token_start: int = 0  # of the first record, among those of ``tokens``

    def texts(self) -> list[str | None]:
        """The words of the records."""
        words: list[str | None] = texts(self._batch(), self.kind).to_pylist()
        return words

    def ids(self) -> list[str | None]:
        """The field ``id`` of the records."""
        metas = self._batch().column("meta").to_pylist()
        known = [orjson.loads(text).get("id") if text else None for text in metas]
        return [None if value is None else str(value) for value in known]

    def tokens_and_mask(self) -> tuple[list[NDArray[np.int64]], list[NDArray[np.bool_]]]:
        """The ids of the records, and which of them are trained."""
        assert self.tokens is not None
        batch = open_batch(self.tokens).slice(self.token_start, self.stop - self.start)
        ids = [np.asarray(row.values, np.int64) for row in batch.column("ids")]
        if "mask" not in batch.schema.names:
            return ids, [np.ones(len(row), bool) for row in ids]
        return ids, [np.asarray(row.values, bool) for row in batch.column("mask")]

    def _batch(self) -> pa.RecordBatch:
        batch = next(prepare.read_batches(str(self.records), self.batch, self.batch + 1))
        return batch.slice(self.start, self.stop - self.start)


@dataclass(frozen=True)
class ScoresById:
    """Scores that somebody else made, by the field ``id`` of the records."""

    path: str

    def score_ids(self, ids: Sequence[str | None]) -> NDArray[np.float64]:
        """The score of each id; NaN where the file has none."""
        scores = read_ids(Path(self.path))
        return np.array([scores.get(key, np.nan) if key is not None else np.nan for key in ids], np.float64)


def score_part(spec: PartSpec, folder: Path) -> dict[str, Any]:
    """The task: a column of scores, NaN where a record has none; or the counts of n-grams."""
    if spec.scorer is None:
        np.save(folder / "counts.npy", count_ngrams(spec.texts(), NUM_BUCKETS))
        return {}
    if isinstance(spec.scorer, ScoresById):
        scores = spec.scorer.score_ids(spec.ids())
    elif isinstance(spec.scorer, Likelihood | EndpointLikelihood):
        scores = spec.scorer.score_tokens(*spec.tokens_and_mask())
    else:
        scores = spec.scorer.score_texts(spec.texts())
    write_batch(folder / "scores.arrow", pa.record_batch({"score": scores}))
    return {"records": len(scores)}


@dataclass(frozen=True)
class ImportanceSpec:
    """Files of counts."""

    domain: tuple[Path, ...]  # counts
    everything: tuple[Path, ...]


def fit_importance_task(spec: ImportanceSpec, folder: Path) -> dict[str, Any]:
    """The task: the log ratio of each bucket, from counts of parts."""
    """The task: the log ratio of each bucket."""
    sums = [np.sum([np.load(p) for p in paths], axis=0) for paths in (spec.domain, spec.everything)]
    np.save(folder / "model.npy", fit_importance(sums[0], sums[1]))
    return {}


@dataclass(frozen=True)
class LinearSpec:
    """The records of the two classes."""

    good: tuple[PartSpec, ...]
    other: tuple[PartSpec, ...]


def fit_linear_task(spec: LinearSpec, folder: Path) -> dict[str, Any]:
    """The task: the weights of a classifier, from the records of its classes."""
    """The task: the weights of the classifier."""
    weights, auc = fit_linear(*([t for p in parts for t in p.texts()] for parts in (spec.good, spec.other)))
    np.save(folder / "model.npy", weights)
    return {"auc": auc}


def parts_of(source: PreparedSource, rows: int) -> Iterator[tuple[PartSpec, str]]:
    """The records of a source in parts, in order, with what each part's records depend on."""
    encoded = iter(source.encoded)
    for window in prepare.windows(source.prepared):
        tokens = next(encoded, None)
        at = 0
        for batch in range(window.start, window.stop):
            num_rows = window.prepared.counts["batches"][batch][0]
            for start in range(0, num_rows, rows):
                stop = min(start + rows, num_rows)
                part = PartSpec(Path(window.path), batch, start, stop, source.kind)
                if tokens is not None:
                    part = replace(part, tokens=tokens.folder / "tokens.arrow", token_start=at + start)
                yield part, tokens.key if tokens is not None else window.prepared.key
            at += num_rows
