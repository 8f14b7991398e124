"""From key columns to fates: buckets, candidates in rank order, the sweep, all over a pool of threads."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamix.core.errors import DataError
from datamix.dedup.spec import DedupeSpec, NearSpec
from datamix.dedup.text_columns import Columns

if TYPE_CHECKING:
    from datamix.dedup.candidates import Rules, Shared

_MAX_RECORDS = 2**31 - 2
_BLOCK = 8192  # candidates decided together: never tuned to a machine
_CHUNK = 128  # candidates a thread takes at a time
_RELEASE_BLOCKS = 16
_SKETCH_SPREAD = 4.5  # standard deviations below the threshold at which a pair is dropped unread


@dataclass(frozen=True)
class Member:
    """One source of a pool, in rank order."""

    columns: Columns
    tier: int  # sources of one tier are ranked together by length
    removable: bool
    counts: bool  # its kept records remove others
    alive: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Resolved:
    """The records that share a key with another one, and what became of them; a pool numbers records through."""

    records: NDArray[np.int64]  # [num]
    fates: NDArray[np.uint8]  # [num]
    keepers: NDArray[np.int64]  # [num] record kept instead, -1
    similarities: NDArray[np.float32]  # [num]


class Threads:
    """A pool of threads whose workers each hold a desk of their own."""

    def __init__(self, pool: ThreadPoolExecutor, num_threads: int) -> None:
        self._pool = pool
        self._num_threads = num_threads

    def map(self, call: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """``call`` of each item, results in order."""
        return list(self._pool.map(call, items))

    def share(self, call: Callable[[Any, Any], None], items: Sequence[Any], desks: Sequence[Any]) -> None:
        """``call(item, desk)`` of each item, by as many workers as there are desks."""
        if len(items) == 1 or len(desks) == 1:
            for item in items:
                call(item, desks[0])
            return
        waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for item in items:
            waiting.put(item)

        def work(desk: Any) -> None:
            while True:
                try:
                    item = waiting.get_nowait()
                except queue.Empty:
                    return
                call(item, desk)

        self.map(work, desks)

    @property
    def num(self) -> int:
        return self._num_threads


def resolve(members: Sequence[Member], spec: DedupeSpec, threads: Threads) -> Resolved:
    """Decide all records of a pool. Raises DataError above 2^31 - 2 records."""
    starts = np.cumsum([0, *(m.columns.num_records for m in members)], dtype=np.int64)
    if starts[-1] > _MAX_RECORDS:
        raise DataError(
            f"dedupe: {starts[-1]} records in one pool, at most {_MAX_RECORDS} fit. Use scope: within, or build in parts."
        )
    exact, near = _buckets(members, starts, spec, threads)
    records = _union([exact, *near], int(starts[-1]))
    records = _ranked(members, starts, records, spec)
    near_buckets, candidates = _candidates(members, starts, records, exact, near)
    num_near = sum(shared.num_buckets for shared in near)
    num_buckets = (num_near, exact.num_buckets)
    del exact, near
    _sweep(candidates, near_buckets, num_buckets, spec, threads, members)
    keeper = candidates["keeper"]
    keepers = np.where(keeper >= 0, records[keeper] if len(records) else -1, -1)
    return Resolved(records, candidates["fate"], keepers, candidates["similarity"])


def _buckets(
    members: Sequence[Member], starts: NDArray[np.int64], spec: DedupeSpec, threads: Threads
) -> tuple[Shared, list[Shared]]:
    """Shared exact keys, and the shared keys of each band; a thread holds one column at a time."""
    from datamix.dedup.candidates import Shared, shared

    num_records = int(starts[-1])
    in_play = np.ones(num_records, np.bool_)
    with_words = np.ones(num_records, np.bool_)
    for member, start, stop in zip(members, starts[:-1], starts[1:], strict=True):
        if member.alive is not None:
            in_play[start:stop] = member.alive
        if spec.near is not None:
            with_words[start:stop] = member.columns.numbers("num_shingles") > 0
    with_words &= in_play
    nothing = np.empty(0, np.uint64)

    def exact(_: int) -> Shared:
        if not spec.exact:
            return Shared(np.empty(0, np.int32), np.empty(0, np.int32), 0)
        halves = np.empty((2, num_records), np.uint64)
        for member, start, stop in zip(members, starts[:-1], starts[1:], strict=True):
            member.columns.exact_halves(0, halves[0, start:stop])
            member.columns.exact_halves(1, halves[1, start:stop])
        return shared(halves[0], halves[1], in_play)

    def band(number: int) -> Shared:
        keys = np.empty(num_records, np.uint64)
        for member, start, stop in zip(members, starts[:-1], starts[1:], strict=True):
            member.columns.band(number, keys[start:stop])
            member.columns.release()
        return shared(keys, nothing, with_words)

    bands = range(spec.near.banding[0]) if spec.near is not None else ()
    return exact(0), threads.map(band, bands)


def _union(columns: Sequence[Shared], num_records: int) -> NDArray[np.int64]:
    """Records that share any bucket, ascending."""
    flags = np.zeros(num_records, np.bool_)
    for column in columns:
        flags[column.records] = True
    return np.flatnonzero(flags)


def _ranked(
    members: Sequence[Member], starts: NDArray[np.int64], records: NDArray[np.int64], spec: DedupeSpec
) -> NDArray[np.int64]:
    """The records in rank order: members are in order already, so only length can change it."""
    if spec.rank_by == "first" or len(records) == 0:
        return records
    lengths = np.concatenate([m.columns.numbers("length") for m in members])[records]
    tiers = np.array([m.tier for m in members])[np.searchsorted(starts, records, "right") - 1]
    return records[np.lexsort((records, -lengths, tiers))]


def _candidates(
    members: Sequence[Member],
    starts: NDArray[np.int64],
    records: NDArray[np.int64],
    exact: Shared,
    near: Sequence[Shared],
) -> tuple[NDArray[np.int32], NDArray[np.void]]:
    """Near buckets ``[num, num_bands]`` and ``CANDIDATE`` of each record, in rank order."""
    from datamix.dedup.candidates import CANDIDATE
    from datamix.dedup.kernels import COUNTS, REMOVABLE

    num = len(records)
    rank = np.empty(int(starts[-1]), np.int32)
    rank[records] = np.arange(num, dtype=np.int32)
    near_buckets = np.full((num, len(near)), -1, np.int32)
    first = 0
    for band, column in enumerate(near):
        near_buckets[rank[column.records], band] = column.buckets + first
        first += column.num_buckets

    candidates = np.zeros(num, CANDIDATE)
    candidates["keeper"] = candidates["exact"] = -1
    candidates["exact"][rank[exact.records]] = exact.buckets
    ascending = np.sort(records)
    for member, start, stop in zip(members, starts[:-1], starts[1:], strict=True):
        low, high = np.searchsorted(ascending, (start, stop))
        mine = ascending[low:high]
        places, local = rank[mine], mine - start
        candidates["role"][places] = REMOVABLE * member.removable + COUNTS * member.counts
        if near:
            candidates["address"][places], candidates["length"][places] = member.columns.places(local)
            candidates["sketch"][places] = member.columns.sketches(local)
            candidates["num_shingles"][places] = member.columns.numbers("num_shingles")[local]
    return near_buckets, candidates


def _sweep(
    candidates: NDArray[np.void],
    near: NDArray[np.int32],
    num_buckets: tuple[int, int],
    spec: DedupeSpec,
    threads: Threads,
    members: Sequence[Member],
) -> None:
    """Write the fates of all candidates, block after block of rank order."""
    from datamix.dedup.candidates import group, new_scratch, new_sweep_state, sweep

    num = len(candidates)
    board = new_sweep_state(candidates, near, *num_buckets, _rules(spec))
    owners = np.full(sum(num_buckets), -1, np.int32)
    longest = int(candidates["num_shingles"].max(initial=1))
    desks = [new_scratch(board, longest) for _ in range(threads.num)]
    for start in range(0, num, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, num))

        def look(members: NDArray[np.int64], desk: Any) -> None:
            sweep(members, 0, False, board, desk)

        def settle(members: NDArray[np.int64], desk: Any, since: int = start) -> None:
            sweep(members, since, True, board, desk)

        if start:
            threads.share(look, [block[i : i + _CHUNK] for i in range(0, len(block), _CHUNK)], desks)
        size = len(block)
        parents, ends, survivors = (
            np.empty(size, np.int64),
            np.zeros(size + 1, np.int64),
            np.empty(size, np.int64),
        )
        num_survivors = group((start, start + size), candidates, near, owners, parents, ends, survivors)
        threads.share(settle, [survivors[slice(*s)] for s in _whole_groups(ends[1:], num_survivors)], desks)
        if start // _BLOCK % _RELEASE_BLOCKS == _RELEASE_BLOCKS - 1:
            _release(members)


def _release(members: Sequence[Member]) -> None:
    """Keep the pages of mapped files from adding up: their memory is bounded by what a few blocks touch."""
    for member in members:
        member.columns.release()


def _whole_groups(starts: NDArray[np.int64], num_survivors: int) -> list[tuple[int, int]]:
    """Cut the survivors into spans of about ``_CHUNK`` that split no group."""
    spans, low = [], 0
    for start in np.unique(starts).tolist():
        if start - low >= _CHUNK:
            spans.append((low, start))
            low = start
    if low < num_survivors:
        spans.append((low, num_survivors))
    return spans


def _rules(spec: DedupeSpec) -> Rules:
    from datamix.dedup.candidates import Rules

    near = spec.near or NearSpec()
    bands, rows = near.banding
    num_perm = bands * rows
    chance = near.threshold + (1 - near.threshold) / 256  # of two bytes at the threshold to be equal
    least = num_perm * chance - _SKETCH_SPREAD * sqrt(num_perm * chance * (1 - chance))
    copies = spec.fields.exact in (None, "all") and not spec.normalize
    return Rules(near.ngram, near.threshold, num_perm, int(least), near.verify, spec.keep, copies)
