"""``decide``: which records of all sources are duplicates, from their signatures; a fate for each record.

Keep-first in rank order: sources by ``rank``, then (``rank_by: longest``) the longer, then the order of the sources, then the
ordinal. A record is removed only when a kept record matches it, so no chain of likenesses removes text that nothing
kept resembles. The result does not depend on threads, nor on how the signatures are cut into files.

Memory: 8 bytes a record for the key column in hand (one a thread), 16 for the result, and for each record that shares
a bucket with another about 40 bytes and 8 a band. Texts and sketches are read where they lie in memory-mapped files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from datamix.core.records import RecordKind
from datamix.dedup.resolve import Member, Resolved, Threads, resolve
from datamix.dedup.spec import DedupeSpec
from datamix.dedup.text_columns import Columns, open_signed


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

    Sources that are not removable come first whatever their rank, and count in both scopes. Raises DataError where
    signatures were made with another spec.
    """
    loaded = [open_signed(s.signatures, s.batches, s.kind, spec) for s in sources]
    return decide_columns(sources, loaded, spec, threads=threads)


def leaked(
    train: Sequence[Signed], held_out: Sequence[Signed], spec: DedupeSpec, *, threads: int | None = None
) -> list[Decision]:
    """Records of ``train`` that are duplicates of a held-out one; one decision a training source.

    Only held-out records remove; ``kept_source`` is an index into ``held_out``. Near duplicates are found where ``spec.near``
    is given and the records were signed with it.
    """
    references = [replace(s, removable=False) for s in held_out]
    sources = [*references, *(replace(s, removable=True) for s in train)]
    loaded = [open_signed(s.signatures, s.batches, s.kind, spec) for s in sources]
    pooled = replace(spec, scope="across", keep=1)
    return decide_columns(sources, loaded, pooled, threads=threads, only_references=True)[len(references) :]


def decide_columns(
    sources: Sequence[Signed],
    loaded: Sequence[Columns],
    spec: DedupeSpec,
    *,
    threads: int | None = None,
    only_references: bool = False,
) -> list[Decision]:
    """``decide`` over columns that are open already; ``only_references``: records that may be removed remove nothing."""
    if spec.scope == "across":
        pools = [list(range(len(sources)))]
    else:
        references = [i for i, s in enumerate(sources) if not s.removable]
        pools = [[*references, i] for i, s in enumerate(sources) if s.removable]
    decisions = [_all_stay(columns.num_records) for columns in loaded]
    num_threads = threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(num_threads) as pool:
        for pooled in pools:
            order = sorted(pooled, key=lambda i: (sources[i].removable, sources[i].rank, i))
            members = _members(order, sources, loaded, only_references)
            _write(order, members, resolve(members, spec, Threads(pool, num_threads)), decisions)
    return decisions


def _members(
    order: Sequence[int], sources: Sequence[Signed], loaded: Sequence[Columns], only_references: bool
) -> list[Member]:
    tiers = sorted({(sources[i].removable, sources[i].rank) for i in order})
    return [
        Member(
            columns=loaded[i],
            tier=tiers.index((sources[i].removable, sources[i].rank)),
            removable=sources[i].removable,
            counts=not (only_references and sources[i].removable),
            alive=sources[i].alive,
        )
        for i in order
    ]


def _write(
    order: Sequence[int], members: Sequence[Member], resolved: Resolved, decisions: Sequence[Decision]
) -> None:
    """Spread what a pool decided over the decisions of its sources."""
    starts = np.cumsum([0, *(m.columns.num_records for m in members)], dtype=np.int64)
    removed = resolved.fates > 0
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


def _all_stay(num_records: int) -> Decision:
    return Decision(
        np.zeros(num_records, np.uint8),
        np.full(num_records, -1, np.int16),
        np.full(num_records, -1, np.int64),
        np.zeros(num_records, np.float32),
    )
