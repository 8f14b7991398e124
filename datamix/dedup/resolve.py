"""From key columns to fates: buckets of shared keys, then keep-first in rank order, decided by exact Jaccard.

A record is removed when enough *kept* records before it match it. Such a rule looks sequential; it runs in
parallel without changing its result: candidates (records that share a bucket) are taken in blocks of rank
order, every record of a block is first compared with the kept records of earlier blocks (all threads, nothing
is written that others read), and what survives is split into groups that share no bucket, which cannot see
each other, so that every group is settled by itself, in order.

A pair of candidates is dropped when the sketches or the numbers of shingles rule the threshold out, else both
texts are read again in their files and their sets of 64-bit shingle hashes compared, the record's once and
each other text once a pair. About 4 us a pair of 2.5 kB.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamix.core.arrays import offsets_from_lengths
from datamix.core.errors import DataError
from datamix.core.kernels import Kernel
from datamix.dedup.kernels import COUNTS, REMOVABLE
from datamix.dedup.signatures import Alphabet, ShingleScratch, alphabet, new_shingle_scratch
from datamix.dedup.spec import DedupeSpec, NearSpec
from datamix.dedup.text_columns import Columns

_MAX_RECORDS = 2**31 - 2
_BLOCK = 8192  # candidates decided together: never tuned to a machine
_CHUNK = 128  # candidates a thread takes at a time
_RELEASE_BLOCKS = 16
_SKETCH_SPREAD = 4.5  # standard deviations below the threshold at which a pair is dropped unread
_SLOTS_PER_RECORD = 8

_fill_slots = Kernel("dedup", "sweep", "fill_slots")
_suspects = Kernel("dedup", "sweep", "suspects")
_count_buckets = Kernel("dedup", "sweep", "count_buckets")
_number_buckets = Kernel("dedup", "sweep", "number_buckets")
_sweep = Kernel("dedup", "sweep", "sweep")
_group = Kernel("dedup", "sweep", "group")

# A record that shares a bucket, in rank order: where its text and sketch are, and what became of it.
_CANDIDATE = np.dtype(
    [
        ("address", np.int64),  # of its text
        ("length", np.int64),  # bytes; -1 where only the signature is left
        ("sketch", np.int64),  # address of num_perm bytes
        ("num_shingles", np.int32),
        ("distinct", np.int32),  # distinct shingles, once it was compared
        ("exact", np.int32),  # bucket, -1 where it is alone
        ("matches", np.int32),  # near kept records, up to as many as remove it
        ("keeper", np.int32),  # who stayed instead, -1
        ("similarity", np.float32),
        ("role", np.uint8),
        ("fate", np.uint8),
    ],
    align=True,
)
_COPIES = np.dtype([("first", np.int32), ("num", np.int32)])  # kept records of one exact bucket


@dataclass(frozen=True)
class Member:
    """One source of a pool, in rank order."""

    columns: Columns
    tier: int  # sources of one tier are ranked together by length or score
    removable: bool
    counts: bool  # its kept records remove others
    alive: NDArray[np.bool_] | None
    scores: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Resolved:
    """The records of a pool that share a key with another one, and what became of them."""

    records: NDArray[np.int64]  # [num]
    fates: NDArray[np.uint8]  # [num]
    keepers: NDArray[np.int64]  # [num] record kept instead, -1
    similarities: NDArray[np.float32]  # [num]


class Shared(NamedTuple):
    """The records that share a key, and the bucket (one a key) each is in."""

    records: NDArray[np.int32]  # [num_shared] ascending
    buckets: NDArray[np.int32]  # [num_shared] numbered by first record
    num_buckets: int


class Rules(NamedTuple):
    """When two texts match, and how many matches remove a record."""

    ngram: int
    threshold: float
    num_perm: int
    least_equal: int  # bytes of the sketches that must be equal before texts are read
    verify: bool
    keep: int
    copies_are_near: bool  # equal exact keys mean equal texts


class SweepState(NamedTuple):
    """Everything that a sweep reads and writes. Kept records are linked by bucket, the latest first."""

    candidates: NDArray[np.void]  # [num] _CANDIDATE
    near: NDArray[np.int32]  # [num, num_bands] bucket, -1 where the record is alone
    heads: NDArray[np.int32]  # [num near buckets] latest kept record
    following: NDArray[np.int32]  # [num, num_bands] the kept record before it in the same bucket
    copies: NDArray[np.void]  # [num exact buckets] _COPIES
    rules: Rules
    alphabet: Alphabet


class Scratch(NamedTuple):
    """The memory of one thread; pages are touched only as far as texts need."""

    shingles: ShingleScratch
    this: NDArray[np.uint64]  # [capacity] hash set of the current record
    that: NDArray[np.uint64]  # [capacity] hash set of the text it is compared with
    # [capacity + 1] slots of ``this`` that the other text has hit; at the end the last stamp
    marks: NDArray[np.uint32]
    # [num, 2] kept records that share a bucket with the current record, and how many
    neighbours: NDArray[np.int32]
    heads: NDArray[np.int32]  # [num_bands] position in each list of kept records


class Threads:
    """A pool of threads with one scratch each."""

    def __init__(self, pool: ThreadPoolExecutor, num_threads: int) -> None:
        self.pool, self.num_threads = pool, num_threads

    def share(self, call: Callable[[Any, Any], Any], items: Sequence[Any], scratches: Sequence[Any]) -> None:
        """``call(item, scratch)`` of each item, by as many workers as there are scratches."""
        waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for item in items:
            waiting.put(item)

        def work(scratch: Any) -> None:
            while True:
                try:
                    item = waiting.get_nowait()
                except queue.Empty:
                    return
                call(item, scratch)

        if len(items) == 1 or len(scratches) == 1:
            work(scratches[0])
        else:
            list(self.pool.map(work, scratches))


def resolve(members: Sequence[Member], spec: DedupeSpec, threads: Threads) -> Resolved:
    """Decide all records of a pool. Raises DataError above 2^31 - 2 records."""
    starts = offsets_from_lengths([m.columns.num_records for m in members])
    num_records = int(starts[-1])
    if num_records > _MAX_RECORDS:
        raise DataError(
            f"dedupe: {num_records} records in one pool, at most {_MAX_RECORDS} fit. Use scope: within, or "
            f"build in parts."
        )
    exact, near = _shared_keys(members, starts, spec, threads)
    is_shared = np.zeros(num_records, np.bool_)
    for column in (exact, *near):
        is_shared[column.records] = True
    records = np.flatnonzero(is_shared)  # in rank order: members are, so only length or score can change it
    if spec.rank_by != "first" and len(records):
        if spec.rank_by == "longest":
            first = -np.concatenate([m.columns.numbers("length") for m in members])[records]
        else:
            first = -np.nan_to_num(np.concatenate([_scores(m) for m in members])[records], nan=-np.inf)
        tiers = np.array([m.tier for m in members])[np.searchsorted(starts, records, "right") - 1]
        records = records[np.lexsort((records, first, tiers))]
    near_buckets, candidates = _candidates(members, starts, records, exact, near)
    num_buckets = sum(shared.num_buckets for shared in near), exact.num_buckets
    del exact, near, is_shared
    _decide(candidates, near_buckets, num_buckets, spec, threads, members)
    keeper = candidates["keeper"]
    keepers = np.where(keeper >= 0, records[keeper] if len(records) else -1, -1)
    return Resolved(records, candidates["fate"], keepers, candidates["similarity"])


def _scores(member: Member) -> NDArray[np.float64]:
    return np.full(member.columns.num_records, -np.inf) if member.scores is None else member.scores


def _shared_keys(
    members: Sequence[Member], starts: NDArray[np.int64], spec: DedupeSpec, threads: Threads
) -> tuple[Shared, list[Shared]]:
    """Shared exact keys, and the shared keys of each band; a thread holds one column at a time."""
    num_records = int(starts[-1])
    in_play = np.ones(num_records, np.bool_)
    with_words = np.ones(num_records, np.bool_)
    spans = list(zip((m.columns for m in members), starts[:-1], starts[1:], strict=True))
    for member, (columns, start, stop) in zip(members, spans, strict=True):
        if member.alive is not None:
            in_play[start:stop] = member.alive
        if spec.near is not None:
            with_words[start:stop] = columns.numbers("num_shingles") > 0
    with_words &= in_play
    exact = Shared(np.empty(0, np.int32), np.empty(0, np.int32), 0)
    if spec.exact:
        halves = np.empty((2, num_records), np.uint64)
        for columns, start, stop in spans:
            columns.exact_halves(0, halves[0, start:stop])
            columns.exact_halves(1, halves[1, start:stop])
        exact = _shared(halves[0], halves[1], in_play)
        del halves

    def band(number: int) -> Shared:
        keys = np.empty(num_records, np.uint64)
        for columns, start, stop in spans:
            columns.band(number, keys[start:stop])
            columns.release()
        return _shared(keys, np.empty(0, np.uint64), with_words)

    num_bands = spec.near.banding[0] if spec.near is not None else 0
    return exact, list(threads.pool.map(band, range(num_bands)))


def _shared(keys: NDArray[np.uint64], high: NDArray[np.uint64], in_play: NDArray[np.bool_]) -> Shared:
    """Records in play whose key occurs twice; ``high``: upper halves of 128-bit keys, or empty."""
    bits = max(10, int(len(keys) * _SLOTS_PER_RECORD - 1).bit_length())
    slots = np.zeros(1 << (bits - 5), np.uint64)
    suspects = np.empty(_fill_slots(keys, in_play, slots, bits), np.int32)
    _suspects(keys, in_play, slots, bits, suspects)
    del slots
    num = len(suspects)
    table = np.full(1 << max(4, int(2 * num - 1).bit_length()), -1, np.int32)
    firsts, sizes = np.empty(num, np.int32), np.zeros(num, np.int32)
    num_shared = _count_buckets(keys, high, suspects, table, firsts, sizes)
    records, buckets = np.empty(num_shared, np.int32), np.empty(num_shared, np.int32)
    return Shared(records, buckets, _number_buckets(suspects, firsts, sizes, records, buckets))


def _candidates(
    members: Sequence[Member],
    starts: NDArray[np.int64],
    records: NDArray[np.int64],
    exact: Shared,
    near: Sequence[Shared],
) -> tuple[NDArray[np.int32], NDArray[np.void]]:
    """Near buckets ``[num, num_bands]`` and ``_CANDIDATE`` of each record, in rank order."""
    num = len(records)
    rank = np.empty(int(starts[-1]), np.int32)
    rank[records] = np.arange(num, dtype=np.int32)
    near_buckets = np.full((num, len(near)), -1, np.int32)
    first = 0
    for band, column in enumerate(near):
        near_buckets[rank[column.records], band] = column.buckets + first
        first += column.num_buckets

    candidates = np.zeros(num, _CANDIDATE)
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


def _decide(
    candidates: NDArray[np.void],
    near: NDArray[np.int32],
    num_buckets: tuple[int, int],
    spec: DedupeSpec,
    threads: Threads,
    members: Sequence[Member],
) -> None:
    """Write the fates of all candidates, block after block of rank order."""
    num, num_bands = near.shape
    copies = np.zeros(num_buckets[1], _COPIES)
    copies["first"] = -1
    heads = np.full(num_buckets[0], -1, np.int32)
    rules = _rules(spec)
    state = SweepState(candidates, near, heads, np.empty_like(near), copies, rules, alphabet())
    owners = np.full(sum(num_buckets), -1, np.int32)
    longest = int(candidates["num_shingles"].max(initial=1))
    capacity = 1 << max(6, int(2 * longest - 1).bit_length())
    scratches = [
        Scratch(
            new_shingle_scratch(rules.ngram),
            np.empty(capacity, np.uint64),
            np.empty(capacity, np.uint64),
            np.zeros(capacity + 1, np.uint32),
            np.empty((num, 2), np.int32),
            np.empty(num_bands, np.int32),
        )
        for _ in range(threads.num_threads)
    ]
    for start in range(0, num, _BLOCK):
        size = min(_BLOCK, num - start)
        if start:
            block = np.arange(start, start + size)
            chunks = [block[i : i + _CHUNK] for i in range(0, size, _CHUNK)]
            threads.share(lambda chunk, scratch: _sweep(chunk, 0, False, state, scratch), chunks, scratches)
        parents, survivors = np.empty(size, np.int64), np.empty(size, np.int64)
        ends = np.zeros(size + 1, np.int64)
        num_survivors = _group((start, start + size), candidates, near, owners, parents, ends, survivors)
        cuts = [0]  # spans of about ``_CHUNK`` that split no group
        for group_start in np.unique(ends[1:]).tolist():
            if group_start - cuts[-1] >= _CHUNK:
                cuts.append(group_start)
        groups = [part for part in np.split(survivors[:num_survivors], cuts[1:]) if len(part)]

        def settle(group: NDArray[np.int64], scratch: Scratch, since: int = start) -> None:
            _sweep(group, since, True, state, scratch)

        threads.share(settle, groups, scratches)
        if start // _BLOCK % _RELEASE_BLOCKS == _RELEASE_BLOCKS - 1:
            for member in members:  # pages of mapped files do not add up: a few blocks touch few
                member.columns.release()


def _rules(spec: DedupeSpec) -> Rules:
    near = spec.near or NearSpec()
    bands, rows = near.banding
    num_perm = bands * rows
    chance = near.threshold + (1 - near.threshold) / 256  # of two bytes at the threshold to be equal
    least = num_perm * chance - _SKETCH_SPREAD * sqrt(num_perm * chance * (1 - chance))
    copies_are_near = spec.fields.exact in (None, "all") and not spec.normalize
    return Rules(near.ngram, near.threshold, num_perm, int(least), near.verify, spec.keep, copies_are_near)
