"""``decide``: which records of all sources are duplicates, from their signatures; a fate for each record.

Keep-first in rank order: sources by ``rank``, then the longer (``rank_by: longest``) or higher score (``score``), then the order of the
sources, then the ordinal. A record is removed only when a kept record matches it, so no chain of likenesses
removes text that no kept record resembles. The result does not depend on threads, nor on how the signatures
are cut into files. ``dedupe`` is the same engine on one Arrow table in memory.

Memory: 8 bytes a record for the current key column (one a thread), 16 for the result, and for each record
that shares a bucket with another about 40 bytes and 8 a band. Texts and sketches are read in memory-mapped
files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import offsets_from_lengths
from datamix.core.errors import RecipeError
from datamix.core.records import RecordKind
from datamix.dedup.kernels import EXACT, STAYS
from datamix.dedup.resolve import Member, Resolved, Threads, resolve
from datamix.dedup.signatures import sign
from datamix.dedup.spec import DedupeSpec, NearSpec
from datamix.dedup.text_columns import Columns, flat_texts, numbers, open_signed

_SLICE_ROWS = 2048
_METHODS = pa.Array.from_buffers(  # ["exact", "near"]
    pa.string(), 2, [None, pa.py_buffer(np.array([0, 5, 9], np.int32)), pa.py_buffer(b"exactnear")]
)


@dataclass(frozen=True)
class Signed:
    """One source with the signatures of its records."""

    source: str
    signatures: tuple[str, ...]  # Arrow IPC files with the columns of ``sign``, in record order
    batches: tuple[str, ...]  # Arrow IPC files with the records, same order; empty: only signatures are left
    kind: RecordKind
    rank: int  # smaller = keeps before the others
    removable: bool = True  # False: removes others, is never removed
    alive: NDArray[np.bool_] | None = None  # [num_records] records in play; None = all
    scores: NDArray[np.float64] | None = (
        None  # [num_records] for ``rank_by: score``; None or NaN: below every score
    )


@dataclass(frozen=True)
class Decision:
    """What became of the records of one source."""

    fate: NDArray[np.uint8]  # [num_records] 0 stays, 1 exact, 2 near
    kept_source: NDArray[np.int16]  # [num_records] index of the source that holds the kept record, -1
    kept_record: NDArray[np.int64]  # [num_records] its ordinal there, -1
    # [num_records] 1 for exact, Jaccard for near (estimated where not verified)
    similarity: NDArray[np.float32]


def decide(sources: Sequence[Signed], spec: DedupeSpec, *, threads: int | None = None) -> list[Decision]:
    """Deduplicate the sources across each other (or each within itself), one decision a source.

    Sources that are not removable come first whatever their rank, and count in both scopes. Raises DataError
    where signatures were made with another spec.
    """
    loaded = [open_signed(s.signatures, s.batches, s.kind, spec) for s in sources]
    return _decide_columns(sources, loaded, spec, threads)


def leaked(
    train: Sequence[Signed], held_out: Sequence[Signed], spec: DedupeSpec, *, threads: int | None = None
) -> list[Decision]:
    """Records of ``train`` that are duplicates of a held-out one; one decision a training source.

    Only held-out records remove; ``kept_source`` is an index into ``held_out``. Near duplicates count where
    ``spec.near`` is given and the records were signed with it.
    """
    references = [replace(s, removable=False) for s in held_out]
    sources = [*references, *(replace(s, removable=True) for s in train)]
    loaded = [open_signed(s.signatures, s.batches, s.kind, spec) for s in sources]
    pooled = replace(spec, scope="across", keep=1)
    return _decide_columns(sources, loaded, pooled, threads, only_references=True)[len(references) :]


def _decide_columns(
    sources: Sequence[Signed],
    loaded: Sequence[Columns],
    spec: DedupeSpec,
    threads: int | None,
    only_references: bool = False,
) -> list[Decision]:
    """``decide`` over open columns; ``only_references``: records that may be removed remove nothing."""
    decisions = [
        Decision(
            np.zeros(columns.num_records, np.uint8),
            np.full(columns.num_records, -1, np.int16),
            np.full(columns.num_records, -1, np.int64),
            np.zeros(columns.num_records, np.float32),
        )
        for columns in loaded
    ]
    pools = [list(range(len(sources)))]
    if spec.scope == "within":
        references = [i for i, s in enumerate(sources) if not s.removable]
        pools = [[*references, i] for i, s in enumerate(sources) if s.removable]
    num_threads = threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(num_threads) as pool:
        for pooled in pools:
            ranked = sorted((sources[i].removable, sources[i].rank, i) for i in pooled)
            order = [i for _, _, i in ranked]
            tiers = sorted({(removable, rank) for removable, rank, _ in ranked})
            members = [
                Member(
                    columns=loaded[i],
                    tier=tiers.index((removable, rank)),
                    removable=removable,
                    counts=not (only_references and removable),
                    alive=sources[i].alive,
                    scores=sources[i].scores,
                )
                for removable, rank, i in ranked
            ]
            _spread(order, members, resolve(members, spec, Threads(pool, num_threads)), decisions)
    return decisions


def _spread(
    order: Sequence[int], members: Sequence[Member], resolved: Resolved, decisions: Sequence[Decision]
) -> None:
    """Write what a pool decided to the decisions of its sources."""
    starts = offsets_from_lengths([m.columns.num_records for m in members])
    removed = resolved.fates > STAYS
    records, keepers = resolved.records[removed], resolved.keepers[removed]
    where = np.searchsorted(starts, records, "right") - 1
    whose = np.searchsorted(starts, keepers, "right") - 1
    for place, source in enumerate(order):
        mine = where == place
        rows, decision = records[mine] - starts[place], decisions[source]
        decision.fate[rows] = resolved.fates[removed][mine]
        decision.kept_source[rows] = np.array(order, np.int16)[whose[mine]]
        decision.kept_record[rows] = (keepers - starts[whose])[mine]
        decision.similarity[rows] = resolved.similarities[removed][mine]


@dataclass(frozen=True)
class Deduplicated:
    """The result of ``dedupe``; no text is copied before ``kept`` is asked for."""

    table: pa.Table  # as given
    stays: pa.BooleanArray  # [num_rows]
    removed: pa.Table  # row, method (exact | near), kept_row, similarity

    @property
    def kept(self) -> pa.Table:
        """The rows that stay, in order."""
        return self.table.filter(self.stays)


def dedupe(
    table: pa.Table,
    column: str = "text",
    spec: DedupeSpec | None = None,
    *,
    threads: int | None = None,
) -> Deduplicated:
    """Remove duplicate rows of a table by the text in one column; the default is exact and near at 0.8,
    verified.

    Raises RecipeError where there is no such column, TypeError where it is not text.
    """
    if column not in table.column_names:
        raise RecipeError(f"dedupe: no column {column!r}; the table has {', '.join(table.column_names)}.")
    spec = spec or DedupeSpec(near=NearSpec())
    num_threads = threads or len(os.sched_getaffinity(0))
    parts = [
        chunk.slice(start, _SLICE_ROWS)
        for chunk in flat_texts(table.column(column))
        for start in range(0, len(chunk), _SLICE_ROWS)
    ]

    def signed(part: pa.Array) -> pa.RecordBatch:
        return sign(pa.RecordBatch.from_arrays([part], ["text"]), "text", spec)

    with ThreadPoolExecutor(num_threads) as pool:
        signatures = list(pool.map(signed, parts))
    source = Signed("table", (), (), "text", 0)
    (decision,) = _decide_columns([source], [Columns(signatures, parts)], spec, num_threads)
    removed = np.flatnonzero(decision.fate)
    audit = {
        "row": numbers(removed),
        "method": _METHODS.take(numbers(decision.fate[removed] - EXACT)),
        "kept_row": numbers(decision.kept_record[removed]),
        "similarity": numbers(decision.similarity[removed]),
    }
    return Deduplicated(table, numbers(decision.fate == STAYS), pa.table(audit))
