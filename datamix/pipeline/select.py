"""A fate for every record: the only place where one record can depend on another.

Order: what cannot be encoded is dropped first (so it never knocks out a usable copy), then ``max_records``, contradictory pairs, duplicates,
contamination, the validation split (smallest seeded hashes of content, so a new source moves no record between the splits)
and training records that leak it. Integers only, about 60 bytes a record while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import write_batch
from datamix.core.contracts import Task
from datamix.core.errors import DataError
from datamix.core.hashing import digest, key_ranks, salt
from datamix.core.records import texts
from datamix.dedup import ContaminationSpec, Decision, DedupeSpec, Signed, decide, leaked, overlap
from datamix.pipeline.contradictions import contradictory, pairs
from datamix.pipeline.prepare import read_batches
from datamix.pipeline.shards import Identities, SourceShards, identities, used_records
from datamix.pipeline.token_store import measure

_VERSION = 1

POOL, REMOVED, DROPPED, VALIDATION, UNUSED = 0, 1, 2, 3, 4
FATE_CODES = ("pool", "removed", "dropped", "validation", "unused")
_METHODS = ("", "exact", "near")


@dataclass(frozen=True)
class Split:
    """How many records of each source are held out."""

    share: float | None = None
    records: int | None = None


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


@dataclass
class _Fates:
    """The fate of each record of one source, as it is being decided. Arrays are ``[num_records]``."""

    name: str
    fate: NDArray[np.uint8]
    reason: NDArray[np.int16]  # index into ``reasons``, -1 none
    kept_source: NDArray[np.int16]
    kept_record: NDArray[np.int64]
    similarity: NDArray[np.float32]
    detail: dict[int, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def set(self, rows: NDArray[np.int64], fate: int, reason: str) -> None:
        """Give ``rows`` a fate."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        self.fate[rows] = fate
        self.reason[rows] = self.reasons.index(reason)

    @property
    def alive(self) -> NDArray[np.bool_]:
        live: NDArray[np.bool_] = self.fate == POOL
        return live


def task(spec: SelectSpec, home: Path) -> Task:
    """The one task of this phase."""
    plain = replace(
        spec,
        sources=tuple(replace(s, parts=(), shards=(), signatures=()) for s in spec.sources),
        against=tuple(Reference(replace(r.source, parts=(), shards=(), signatures=())) for r in spec.against),
        evals=tuple(replace(s, parts=(), shards=(), signatures=()) for s in spec.evals),
    )
    places = [[p.places for p in s.parts] for s in spec.sources]
    return Task("select", digest("decide", _VERSION, plain, places), run, spec, home)


def run(spec: SelectSpec, folder: Path) -> dict[str, Any]:
    """Decide every fate and leave one ``fates-N.arrow`` a source."""
    fates: list[_Fates] = []
    ids = [identities(source.parts) for source in spec.sources]
    for source, known, limit in zip(spec.sources, ids, spec.max_records, strict=True):
        own = _fresh(source.name, len(known.record))
        _drop(own, source)
        if limit is not None:
            rows = _smallest(own.alive, known.key, salt(spec.seed, "sample", source.name), limit)
            own.set(np.setdiff1d(np.flatnonzero(own.alive), rows), UNUSED, "max_records")
        fates.append(own)
    if spec.held_out is not None:
        own = fates[spec.held_out]
        own.set(np.flatnonzero(own.alive), VALIDATION, "validation")
    if spec.contradictions:
        _remove_contradictory(spec, fates)
    if spec.dedupe is not None:
        _remove_duplicates(spec, fates)
    if spec.contamination is not None:
        _remove_contaminated(spec, fates)
    if spec.split is not None:
        for known, own in zip(ids, fates, strict=True):
            own.set(
                _with_siblings(_held_out(spec, own, known.key), known, own.alive), VALIDATION, "validation"
            )
    if spec.leak is not None:
        _remove_leaked(spec, fates)
    for number, (known, own) in enumerate(zip(ids, fates, strict=True)):
        _write(folder / f"fates-{number}.arrow", own, known.file, known.record)
    return {"sources": {own.name: _counts(own) for own in fates}}


def _fresh(name: str, n: int) -> _Fates:
    return _Fates(
        name,
        np.zeros(n, np.uint8),
        np.full(n, -1, np.int16),
        np.full(n, -1, np.int16),
        np.full(n, -1, np.int64),
        np.zeros(n, np.float32),
    )


def _drop(own: _Fates, source: SourceShards) -> None:
    encoded = measure(source.shards)
    for code, reason in enumerate(encoded.reasons):
        own.set(np.flatnonzero(encoded.reason == code), DROPPED, reason)


def _smallest(
    alive: NDArray[np.bool_], keys: NDArray[np.uint8], seed: np.uint64, count: int
) -> NDArray[np.int64]:
    """The ``count`` live records with the smallest seeded rank of content; equal content falls by ordinal."""
    rows = np.flatnonzero(alive)
    order = np.argsort(key_ranks(keys[rows], seed), kind="stable")
    return np.sort(rows[order[:count]])


def _held_out(spec: SelectSpec, own: _Fates, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
    alive = int(own.alive.sum())
    split = spec.split or Split()
    wanted = split.records if split.records is not None else round((split.share or 0.0) * alive)
    count = min(max(1, wanted), alive - 1) if alive > 1 else 0
    return _smallest(own.alive, keys, salt(spec.seed, "validation"), count)


def _with_siblings(rows: NDArray[np.int64], known: Identities, alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Records that come from one and the same input record (several pairs of a prompt) go to one split together."""
    if not len(rows):
        return rows
    changes = (np.diff(known.file) != 0) | (np.diff(known.record) != 0)
    group = np.concatenate([[0], np.cumsum(changes)])
    return np.flatnonzero(np.isin(group, group[rows]) & alive)


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
    """Before duplicates go: two pairs that contradict each other have the same words."""
    found = [pairs(spec.sources[number].parts) for number in spec.contradictions]
    alive = [fates[n].alive[p.row] for n, p in zip(spec.contradictions, found, strict=True)]
    better, worse = (
        np.concatenate([getattr(p, side)[live] for p, live in zip(found, alive, strict=True)])
        for side in ("better", "worse")
    )
    ends = np.cumsum([live.sum() for live in alive])[:-1]
    wrong = np.split(contradictory(better, worse), ends)
    for number, own, live, bad in zip(spec.contradictions, found, alive, wrong, strict=True):
        fates[number].set(own.row[live][bad], REMOVED, "contradictory")


def _remove_duplicates(spec: SelectSpec, fates: Sequence[_Fates]) -> None:
    assert spec.dedupe is not None
    before = [int(own.alive.sum()) for own in fates]
    own_sources = [signed(s, r, f.alive) for s, r, f in zip(spec.sources, spec.ranks, fates, strict=True)]
    others = [signed(r.source, -1, r.alive(), removable=False) for r in spec.against]
    _apply(fates, decide([*own_sources, *others], spec.dedupe), None)
    for own, had in zip(fates, before, strict=True):
        lost = had - int(own.alive.sum())
        if had and lost / had > spec.max_removed_share:
            raise DataError(
                f"Deduplication would remove {lost:,} of the {had:,} records of source {own.name} "
                f"({lost / had:.1%}, more than dedupe.max_removed_share {spec.max_removed_share:.0%}). "
                f"{_blame(own, [s.name for s in (*spec.sources, *(r.source for r in spec.against))])} "
                "If that is right, raise dedupe.max_removed_share; else keep this source's copies with "
                f"`prefer: [{own.name}]`, or compare sources apart with `scope: within`."
            )


def _blame(own: _Fates, names: Sequence[str]) -> str:
    kept = own.kept_source[own.fate == REMOVED]
    source, count = max(zip(*np.unique(kept, return_counts=True), strict=True), key=lambda pair: pair[1])
    return f"Most of them ({count:,}) stand in {names[source]}."


def _apply(fates: Sequence[_Fates], decisions: Sequence[Decision], reason: str | None) -> None:
    for own, decision in zip(fates, decisions, strict=False):
        for code in np.unique(decision.fate):
            if code:
                own.set(np.flatnonzero(decision.fate == code), REMOVED, reason or _METHODS[code])
        gone = np.flatnonzero(decision.fate)
        own.kept_source[gone] = decision.kept_source[gone]
        own.kept_record[gone] = decision.kept_record[gone]
        own.similarity[gone] = decision.similarity[gone]


def _remove_contaminated(spec: SelectSpec, fates: Sequence[_Fates]) -> None:
    assert spec.contamination is not None
    own_sources = [signed(s, r, f.alive) for s, r, f in zip(spec.sources, spec.ranks, fates, strict=True)]
    items: list[pa.Array] = []
    names: list[str] = []
    for source in spec.evals:
        for part in source.parts:
            for batch in read_batches(str(part.records)):
                items.append(texts(batch, source.kind, spec.contamination.fields))
                names += [f"{source.name} record {n}" for n in batch.column("record").to_pylist()]
    for own, matches in zip(fates, overlap(own_sources, items, spec.contamination), strict=True):
        own.set(matches.records, REMOVED, "contaminated")
        own.similarity[matches.records] = matches.shares
        for record, item, span in zip(
            matches.records.tolist(), matches.items.tolist(), matches.spans.to_pylist(), strict=True
        ):
            own.detail[record] = f"{names[item]}: {span}"


def _remove_leaked(spec: SelectSpec, fates: Sequence[_Fates]) -> None:
    assert spec.leak is not None
    train = [signed(s, r, f.alive) for s, r, f in zip(spec.sources, spec.ranks, fates, strict=True)]
    held = [
        signed(s, r, f.fate == VALIDATION) for s, r, f in zip(spec.sources, spec.ranks, fates, strict=True)
    ]
    _apply(fates, leaked(train, held, spec.leak), "leaked")


def _counts(own: _Fates) -> dict[str, Any]:
    by: dict[str, dict[str, int]] = {}
    for code, fate in enumerate(FATE_CODES):
        rows = own.fate == code
        found = {r: int((own.reason[rows] == i).sum()) for i, r in enumerate(own.reasons)}
        by[fate] = {r: n for r, n in sorted(found.items()) if n} if code else {"": int(rows.sum())}
    return by


def _write(path: Path, own: _Fates, file: NDArray[np.int32], record: NDArray[np.int64]) -> None:
    detail = pa.array(
        [own.detail.get(i) for i in range(len(file))] if own.detail else [None] * len(file), pa.string()
    )
    reason = pa.DictionaryArray.from_arrays(
        pa.array(own.reason, mask=own.reason < 0), pa.array(own.reasons, pa.string())
    )
    batch = pa.record_batch(
        {
            "file": file,
            "record": record,
            "fate": own.fate,
            "reason": reason,
            "kept_source": own.kept_source,
            "kept_record": own.kept_record,
            "similarity": own.similarity,
            "detail": detail,
        }
    )
    write_batch(path, batch)
