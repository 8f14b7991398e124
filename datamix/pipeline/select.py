"""A fate for every record: the only place where one record can depend on another.

Order: what cannot be encoded is dropped first and what the recipe excludes is removed (so neither knocks out a usable copy), then
``max_records``, contradictory pairs, duplicates, contamination, the validation split (smallest seeded hashes of content, so a new source moves no record between the splits)
and training records that leak it. Integers only, about 60 bytes a record while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import write_batch
from datamix.core.contracts import Task
from datamix.core.errors import DataError
from datamix.core.hashing import digest, salt
from datamix.core.records import texts
from datamix.dedup import ContaminationSpec, Decision, DedupeSpec, Signed, decide, leaked, overlap
from datamix.pipeline.contradictions import contradictory, pairs
from datamix.pipeline.exclusion import Excludes
from datamix.pipeline.held_out import Split, begin_alike, hold_out, sample_records
from datamix.pipeline.prepare import read_batches
from datamix.pipeline.score_rules import SourceScores, outside, score_column, score_table
from datamix.pipeline.shards import Identities, SourceShards, identities, measure, used_records

_VERSION = 2

# The code of a fate is its index: the further a record came, the higher. What is in the pool is used in the end, or unused.
FATES = ("cleaned", "removed", "dropped", "unused", "validation", "used")
CLEANED, REMOVED, DROPPED, UNUSED, VALIDATION, POOL = 0, 1, 2, 3, 4, 5
_METHODS = ("", "exact", "near")
EXCLUDED = "excluded"


@dataclass(frozen=True)
class Reference:
    """Records that new ones are compared with: files, or the records that an earlier set trains on."""

    source: SourceShards
    order: Path | None = None  # of the earlier set; None: every record
    bins: Path | None = None
    number: int = 0  # of the source in that order

    def alive(self) -> NDArray[np.bool_] | None:
        """The records in play, None for all."""
        if self.order is None or self.bins is None:
            return None
        return used_records(self.order, self.bins, self.number, len(identities(self.source.parts).record))


@dataclass(frozen=True)
class SelectSpec:
    sources: tuple[SourceShards, ...]
    seed: int
    max_records: tuple[int | None, ...]
    ranks: tuple[int, ...]  # of each source: smaller keeps before the others
    dedupe: DedupeSpec | None = None
    max_removed_share: float = 1.0
    against: tuple[Reference, ...] = ()  # removes from the sources, is never removed
    contamination: ContaminationSpec | None = None
    evals: tuple[SourceShards, ...] = ()
    split: Split | None = None
    held_out: int | None = None  # index of a source that is all validation
    leak: DedupeSpec | None = None  # what counts as a leak of a validation record
    contradictions: tuple[int, ...] = ()  # indices of sources whose pairs must not contradict each other
    excluded: tuple[Excludes, ...] = ()  # a source each; empty: nothing is
    score_files: tuple[str, ...] = ()
    score_digests: tuple[str, ...] = ()  # of those files
    scores: tuple[SourceScores, ...] = ()  # of every source, where there are files of scores


class _Fates:
    """The fate of each record of one source, as it is being decided. Arrays are ``[num_records]``."""

    def __init__(self, name: str, num_records: int) -> None:
        self.name = name
        self.fate = np.full(num_records, POOL, np.uint8)
        self.reason = np.full(num_records, -1, np.int16)  # index into ``reasons``, -1 none
        self.kept_source = np.full(num_records, -1, np.int16)
        self.kept_record = np.full(num_records, -1, np.int64)
        self.similarity = np.zeros(num_records, np.float32)
        self.detail: dict[int, str] = {}
        self.reasons: list[str] = []

    def set(self, rows: NDArray[np.int64], fate: int, reason: str) -> None:
        """Give ``rows`` a fate."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.fate[rows] = fate
        self.reason[rows] = self.reasons.index(reason)

    def apply(self, decision: Decision, reason: str | None) -> None:
        """Remove what a decision removes, for one ``reason`` or by the method that it names."""
        for code in np.unique(decision.fate):
            if code:
                self.set(np.flatnonzero(decision.fate == code), REMOVED, reason or _METHODS[code])
        removed = np.flatnonzero(decision.fate)
        for name in ("kept_source", "kept_record", "similarity"):
            getattr(self, name)[removed] = getattr(decision, name)[removed]

    @property
    def alive(self) -> NDArray[np.bool_]:
        live: NDArray[np.bool_] = self.fate == POOL
        return live

    def counts(self) -> dict[str, dict[str, int]]:
        """Records by fate and reason; those in the pool have none."""
        by: dict[str, dict[str, int]] = {}
        for code, fate in enumerate(FATES[:-1]):
            numbers = {
                r: int(((self.fate == code) & (self.reason == i)).sum()) for i, r in enumerate(self.reasons)
            }
            by[fate] = {reason: n for reason, n in sorted(numbers.items()) if n}
        return by

    def write(self, path: Path, file: NDArray[np.int32], record: NDArray[np.int64]) -> None:
        """Leave the fates as an Arrow file, with the identities of the records."""
        codes = pa.array(self.reason, mask=self.reason < 0)
        columns = {
            "file": file,
            "record": record,
            "fate": self.fate,
            "reason": pa.DictionaryArray.from_arrays(codes, pa.array(self.reasons, pa.string())),
            "kept_source": self.kept_source,
            "kept_record": self.kept_record,
            "similarity": self.similarity,
            "detail": pa.array([self.detail.get(i) for i in range(len(file))], pa.string()),
        }
        write_batch(path, pa.record_batch(columns))


def task(spec: SelectSpec, home: Path) -> Task:
    """The one task of this phase."""

    def plain(source: SourceShards) -> SourceShards:
        return replace(source, parts=(), shards=(), signatures=())

    asked = replace(
        spec,
        sources=tuple(map(plain, spec.sources)),
        against=tuple(Reference(plain(r.source)) for r in spec.against),
        evals=tuple(map(plain, spec.evals)),
    )
    places = [[p.places for p in s.parts] for s in spec.sources]
    # The key that results have since before anything could be excluded, or chosen by scores.
    later = {"score_files", "score_digests", "scores", *(() if any(spec.excluded) else ("excluded",))}
    asked_of = {field.name: getattr(asked, field.name) for field in fields(asked) if field.name not in later}
    scored = [[spec.score_digests, spec.scores]] if spec.score_files else []
    return Task("select", digest("decide", _VERSION, asked_of, places, *scored), run, spec, home)


def run(spec: SelectSpec, folder: Path) -> dict[str, Any]:
    """Decide every fate and leave one ``fates-N.arrow`` a source."""
    fates: list[_Fates] = []
    ids = [identities(source.parts) for source in spec.sources]
    excluded = spec.excluded or ((),) * len(spec.sources)
    table = score_table(spec.score_files, spec.score_digests)
    scores = spec.scores or (None,) * len(spec.sources)
    each = zip(spec.sources, ids, spec.max_records, excluded, scores, strict=True)
    for shards, known, limit, out, scored in each:
        source = _Fates(shards.name, len(known.record))
        encoded = measure(shards.shards)
        for code, reason in enumerate(encoded.reasons):
            source.set(np.flatnonzero(encoded.reason == code), DROPPED, reason)
        for rows, reason in outside(table, scored, known.file, known.record) if scored else ():
            source.set(rows, CLEANED, reason)
        source.set(_excluded_rows(out, known), REMOVED, EXCLUDED)
        if limit is not None:
            live = np.flatnonzero(source.alive)
            rows = sample_records(live, known, salt(spec.seed, "sample", shards.name), limit)
            source.set(np.setdiff1d(live, rows), UNUSED, "max_records")
        fates.append(source)
    if spec.held_out is not None:
        source = fates[spec.held_out]
        source.set(np.flatnonzero(source.alive), VALIDATION, "validation")
    if spec.contradictions:
        _remove_contradictory(spec, fates)
    if spec.dedupe is not None:
        ranked = [
            score_column(table, s.rules.rank, s, known.file, known.record)
            if s is not None and s.rules.rank
            else None
            for s, known in zip(scores, ids, strict=True)
        ]
        _remove_duplicates(spec, fates, ranked)
    if spec.contamination is not None:
        _remove_contaminated(spec, fates)
    if spec.split is not None:
        for source, rows in zip(
            fates, hold_out(spec.split, spec.seed, [f.alive for f in fates], ids), strict=True
        ):
            source.set(rows, VALIDATION, "validation")
    if spec.leak is not None:
        train = [signed(s, r, f.alive) for s, r, f in zip(spec.sources, spec.ranks, fates, strict=True)]
        held_out = [
            signed(s, r, f.fate == VALIDATION)
            for s, r, f in zip(spec.sources, spec.ranks, fates, strict=True)
        ]
        for source, decision in zip(fates, leaked(train, held_out, spec.leak), strict=False):
            source.apply(decision, "leaked")
    for number, (known, source) in enumerate(zip(ids, fates, strict=True)):
        source.write(folder / f"fates-{number}.arrow", known.file, known.record)
    counts: dict[str, Any] = {"sources": {source.name: source.counts() for source in fates}}
    if spec.split is not None and spec.split.group_by is None:
        counts["alike"] = {
            source.name: begin_alike(shards, source.fate == VALIDATION, source.alive)
            for shards, source in zip(spec.sources, fates, strict=True)
        }
    return counts


def _excluded_rows(excluded: Excludes, known: Identities) -> NDArray[np.int64]:
    """The prepared records of a source that are excluded; all that a record gave (scored answers, pairs)."""
    rows = np.zeros(len(known.record), bool)
    for file, records in excluded:
        of_file = known.file == file
        rows |= of_file if records is None else of_file & np.isin(known.record, records)
    return np.flatnonzero(rows)


def signed(
    source: SourceShards, rank: int, alive: NDArray[np.bool_] | None, removable: bool = True
) -> Signed:
    """A source as dedupe sees it."""
    return Signed(
        source=source.name,
        signatures=tuple(map(str, source.signatures)),
        batches=tuple(str(p.records) for p in source.parts),
        kind=source.kind,
        rank=rank,
        removable=removable,
        alive=alive,
    )


def _remove_contradictory(spec: SelectSpec, fates: Sequence[_Fates]) -> None:
    """Before duplicates are removed: two pairs that contradict each other have the same words."""
    edges_of = [pairs(spec.sources[number].parts) for number in spec.contradictions]
    alive = [fates[n].alive[p.row] for n, p in zip(spec.contradictions, edges_of, strict=True)]
    better, worse = (
        np.concatenate([getattr(p, side)[live] for p, live in zip(edges_of, alive, strict=True)])
        for side in ("better", "worse")
    )
    ends = np.cumsum([live.sum() for live in alive])[:-1]
    wrong = np.split(contradictory(better, worse), ends)
    for number, edges, live, bad in zip(spec.contradictions, edges_of, alive, wrong, strict=True):
        fates[number].set(edges.row[live][bad], REMOVED, "contradictory")


def _remove_duplicates(
    spec: SelectSpec, fates: Sequence[_Fates], scores: Sequence[NDArray[np.float64] | None]
) -> None:
    assert spec.dedupe is not None
    before = [int(source.alive.sum()) for source in fates]
    sources = [
        replace(signed(s, r, f.alive), scores=column)
        for s, r, f, column in zip(spec.sources, spec.ranks, fates, scores, strict=True)
    ]
    others = [signed(r.source, -1, r.alive(), removable=False) for r in spec.against]
    names = [s.name for s in (*spec.sources, *(r.source for r in spec.against))]
    decisions = decide([*sources, *others], spec.dedupe)
    for source, decision, had in zip(fates, decisions, before, strict=False):
        source.apply(decision, None)
        lost = had - int(source.alive.sum())
        if had and lost / had > spec.max_removed_share:
            places, numbers = np.unique(decision.kept_source[decision.fate > 0], return_counts=True)
            most = int(numbers.argmax())
            raise DataError(
                f"Deduplication would remove {lost:,} of the {had:,} records of source {source.name} "
                f"({lost / had:.1%}, more than dedupe.max_removed_share {spec.max_removed_share:.0%}). "
                f"Most of them ({numbers[most]:,}) are in {names[places[most]]}. "
                "If that is right, raise dedupe.max_removed_share; else keep this source's copies with "
                f"`prefer: [{source.name}]`, or compare sources apart with `scope: within`."
            )


def _remove_contaminated(spec: SelectSpec, fates: Sequence[_Fates]) -> None:
    assert spec.contamination is not None
    sources = [signed(s, r, f.alive) for s, r, f in zip(spec.sources, spec.ranks, fates, strict=True)]
    items: list[pa.Array] = []
    names: list[str] = []
    for evaluation in spec.evals:
        for part in evaluation.parts:
            for batch in read_batches(str(part.records)):
                items.append(texts(batch, evaluation.kind, spec.contamination.fields))
                names += [f"{evaluation.name} record {n}" for n in batch.column("record").to_pylist()]
    for source, matches in zip(fates, overlap(sources, items, spec.contamination), strict=True):
        source.set(matches.records, REMOVED, "contaminated")
        source.similarity[matches.records] = matches.shares
        for record, item, span in zip(
            matches.records.tolist(), matches.items.tolist(), matches.spans.to_pylist(), strict=True
        ):
            source.detail[record] = f"{names[item]}: {span}"
