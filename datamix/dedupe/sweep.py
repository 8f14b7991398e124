"""Kernels: keep-first in rank order over candidates, each decided by exact Jaccard.

A record goes when enough *kept* records before it match it. Such a rule looks sequential; it is run in parallel without
changing its result: candidates are taken in blocks of rank order, every record of a block is first compared with the
kept records of earlier blocks (all threads, nothing is written that others read), and what survives is split into
groups that share no bucket, which cannot see each other, so that every group is settled on its own, in order.

A candidate pair shares a bucket. It is dropped when the sketches or the numbers of shingles rule the threshold out, else both
texts are read again where they lie and their sets of 64-bit shingle hashes compared. About 4 us a pair of 2.5 kB.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import float32, int32, int64, njit, uint32, uint64
from numpy.typing import NDArray

from datamix.dedupe.alphabet import Alphabet
from datamix.dedupe.simd import copy_bytes
from datamix.dedupe.words import Scratch, new_scratch, next_shingles

REMOVABLE, COUNTS = 1, 2  # bits of a role: may be removed; removes others when kept
STAYS, EXACT, NEAR = 0, 1, 2
NO_TEXT = -1


class Candidates(NamedTuple):
    """Records that share a bucket, in rank order."""

    addresses: NDArray[np.int64]  # [num] of their texts
    lengths: NDArray[np.int64]  # [num] bytes; NO_TEXT where only the signature is left
    num_shingles: NDArray[np.int32]  # [num]
    sketches: NDArray[np.int64]  # [num] addresses of num_perm bytes each
    roles: NDArray[np.uint8]  # [num]
    near: NDArray[np.int32]  # [num, num_bands] bucket, -1 where the record is alone
    exact: NDArray[np.int32]  # [num] bucket, -1 where the record is alone


class Kept(NamedTuple):
    """Kept records by bucket: linked lists, the latest first."""

    heads: NDArray[np.int32]  # [num near buckets]
    following: NDArray[np.int32]  # [num, num_bands]
    first_exact: NDArray[np.int32]  # [num exact buckets]
    num_exact: NDArray[np.int32]  # [num exact buckets]
    owners: NDArray[np.int32]  # [num near + exact buckets] latest survivor of the block, for grouping


class Outcome(NamedTuple):
    """What became of each candidate."""

    fates: NDArray[np.uint8]  # [num]
    keepers: NDArray[np.int32]  # [num] who stayed instead, -1
    similarities: NDArray[np.float32]  # [num]
    matches: NDArray[np.int32]  # [num] kept records found near
    distinct: NDArray[np.int32]  # [num] distinct shingles, 0 = not counted yet


class Rules(NamedTuple):
    """When two texts match, and how many matches remove a record."""

    ngram: int
    threshold: float
    num_perm: int
    least_equal: int  # bytes of the sketches that must be equal before texts are read
    verify: bool
    keep: int
    copies_are_near: bool  # equal exact keys mean equal texts


class Board(NamedTuple):
    """Everything that a sweep reads and writes."""

    candidates: Candidates
    kept: Kept
    outcome: Outcome
    rules: Rules
    alphabet: Alphabet


class Desk(NamedTuple):
    """What one thread works in."""

    scratch: Scratch
    own: NDArray[np.uint64]  # [capacity] hash set of the record in hand
    other: NDArray[np.uint64]  # [capacity]
    marks: NDArray[np.uint32]  # [capacity] slots of ``own`` that the other text has hit
    stamp: NDArray[np.uint32]  # [1]
    own_sketch: NDArray[np.uint8]  # [num_perm]
    other_sketch: NDArray[np.uint8]  # [num_perm]


def new_desk(ngram: int, max_shingles: int, num_perm: int) -> Desk:
    """A desk for texts of at most ``max_shingles``; its memory is touched only as far as texts need."""
    capacity = 1 << max(6, int(2 * max_shingles - 1).bit_length())
    tables = np.empty(capacity, np.uint64), np.empty(capacity, np.uint64), np.zeros(capacity, np.uint32)
    sketches = np.empty(num_perm, np.uint8), np.empty(num_perm, np.uint8)
    return Desk(new_scratch(ngram), *tables, np.zeros(1, np.uint32), *sketches)


@njit(nogil=True, cache=True)
def _scan(text, table, capacity, stamp, board, desk):  # type: ignore[no-untyped-def]
    """Walk the shingles of a text over a hash set and count distinct ones.

    Stamp 0: those that are new, which are put in. Another stamp: those that stand in the set already.
    """
    shingles, marks = desk.scratch.shingles, desk.marks
    place = (board.candidates.addresses[text], board.candidates.lengths[text])
    position = (int64(0), int64(0), int64(0))
    hits = int64(0)
    while position[0] < place[1]:
        count, position = next_shingles(place, position, board.rules.ngram, board.alphabet, desk.scratch)
        for i in range(count):
            key = shingles[i]
            slot = int64(key & uint64(capacity - 1))
            while table[slot] != key and table[slot] != 0:
                slot = (slot + 1) & (capacity - 1)
            if stamp == 0:
                hits += table[slot] == 0
                table[slot] = key
            elif table[slot] == key and marks[slot] != stamp:
                marks[slot] = stamp
                hits += 1
    return hits


@njit(inline="always")
def _capacity(num_shingles):  # type: ignore[no-untyped-def]
    capacity = int64(64)
    while capacity < 2 * num_shingles:
        capacity *= 2
    return capacity


@njit(nogil=True, cache=True)
def _jaccard(record, other, fresh, board, desk):  # type: ignore[no-untyped-def]
    """Exact Jaccard of two texts, or 0 where their sizes rule a match out; ``fresh``: ``desk.own`` is not filled yet."""
    distinct, threshold = board.outcome.distinct, board.rules.threshold
    steps = ((record, desk.own, fresh), (other, desk.other, distinct[other] == 0))
    for text, table, needed in steps:
        if needed:
            capacity = _capacity(board.candidates.num_shingles[text])
            for slot in range(capacity):
                table[slot] = 0
            distinct[text] = _scan(text, table, capacity, uint32(0), board, desk)
    mine, theirs = distinct[record], distinct[other]
    if min(mine, theirs) < threshold * max(mine, theirs) * 0.999999:
        return 0.0
    desk.stamp[0] += uint32(1)
    if desk.stamp[0] == 0:
        for slot in range(len(desk.marks)):
            desk.marks[slot] = 0
        desk.stamp[0] = 1
    capacity = _capacity(board.candidates.num_shingles[record])
    common = _scan(other, desk.own, capacity, desk.stamp[0], board, desk)
    return common / (mine + theirs - common)


@njit(nogil=True, cache=True)
def _estimate(other, board, desk):  # type: ignore[no-untyped-def]
    """Bytes of the sketches that are equal, and the similarity they suggest."""
    num_perm = len(desk.other_sketch)
    copy_bytes(desk.other_sketch, board.candidates.sketches[other], num_perm)
    equal = 0
    for i in range(num_perm):
        equal += desk.own_sketch[i] == desk.other_sketch[i]
    chance = 1.0 / 256.0
    return equal, max(0.0, (equal / num_perm - chance) / (1.0 - chance))


@njit(nogil=True, cache=True)
def _found(record, since, board):  # type: ignore[no-untyped-def]
    """Kept records from ``since`` on that share a bucket, latest first, each once with its number of buckets.

    The lists are in descending order, so they are merged by their heads.
    """
    near, kept = board.candidates.near, board.kept
    num_bands = near.shape[1]
    found, times, heads = np.empty(64, np.int32), np.empty(64, np.int32), np.empty(num_bands, np.int32)
    for band in range(num_bands):
        bucket = near[record, band]
        heads[band] = kept.heads[bucket] if bucket >= 0 else -1
    count = 0
    while True:
        latest = int32(-1)
        for band in range(num_bands):
            latest = max(latest, heads[band])
        if latest < since:
            return count, found, times
        if count == len(found):
            found = np.concatenate((found, found))
            times = np.concatenate((times, times))
        found[count] = latest
        times[count] = 0
        for band in range(num_bands):
            if heads[band] == latest:
                heads[band] = kept.following[latest, band]
                times[count] += 1
        count += 1


@njit(nogil=True, cache=True)
def _look(record, since, board, desk):  # type: ignore[no-untyped-def]
    """Count kept matches of a record from ``since`` on, up to as many as remove it.

    Those that share most buckets are compared first, of equals the earliest; the first match is named the keeper.
    """
    candidates, outcome, rules = board.candidates, board.outcome, board.rules
    bucket = candidates.exact[record]
    enough = rules.keep - (board.kept.num_exact[bucket] if bucket >= 0 else 0)
    if outcome.matches[record] >= enough:
        return
    count, found, times = _found(record, since, board)
    if count == 0:
        return
    most = 0
    for i in range(count):
        most = max(most, times[i])
    copy_bytes(desk.own_sketch, candidates.sketches[record], rules.num_perm)
    fresh = most > 0  # a variable, not the literal True, which numba would compile apart
    for shared in range(most, 0, -1):
        for i in range(count - 1, -1, -1):
            other = found[i]
            if times[i] != shared or (bucket >= 0 and candidates.exact[other] == bucket):
                continue
            equal, similarity = _estimate(other, board, desk)
            if rules.verify:
                if candidates.lengths[record] >= 0 and candidates.lengths[other] >= 0:
                    if equal < rules.least_equal:
                        continue
                    similarity = _jaccard(record, other, fresh, board, desk)
                    fresh = most < 0
                if similarity < rules.threshold:
                    continue
            if outcome.matches[record] == 0:
                outcome.keepers[record] = other
                outcome.similarities[record] = float32(similarity)
            outcome.matches[record] += 1
            if outcome.matches[record] >= enough:
                return


@njit(nogil=True, cache=True)
def sweep(members, since, settling, board, desk):  # type: ignore[no-untyped-def]
    """Compare ``members`` with the records kept from ``since`` on; ``settling``: keep what is not removed, for good."""
    candidates, kept, outcome = board.candidates, board.kept, board.outcome
    for record in members:
        bucket = candidates.exact[record]
        if candidates.roles[record] & REMOVABLE:
            _look(record, since, board, desk)
            copies = kept.num_exact[bucket] if bucket >= 0 else 0
            if copies + outcome.matches[record] >= board.rules.keep:
                outcome.fates[record] = EXACT if copies else NEAR
                if copies:
                    outcome.keepers[record] = kept.first_exact[bucket]
                    outcome.similarities[record] = 1.0
                continue
        if settling:
            outcome.keepers[record] = -1
            outcome.similarities[record] = 0
            if candidates.roles[record] & COUNTS:
                _insert(record, board)


@njit(nogil=True, cache=True)
def _insert(record, board):  # type: ignore[no-untyped-def]
    candidates, kept, rules = board.candidates, board.kept, board.rules
    bucket = candidates.exact[record]
    if bucket >= 0:
        if kept.num_exact[bucket] >= rules.keep and rules.copies_are_near:
            return  # a further copy that may not be removed: it can match nothing that the others do not
        if kept.num_exact[bucket] == 0:
            kept.first_exact[bucket] = record
        kept.num_exact[bucket] += 1
    for band in range(candidates.near.shape[1]):
        bucket = candidates.near[record, band]
        if bucket >= 0:
            kept.following[record, band] = kept.heads[bucket]
            kept.heads[bucket] = record


def new_kept(candidates: Candidates, num_near: int, num_exact: int) -> Kept:
    """Empty lists for that many buckets."""
    return Kept(
        np.full(num_near, -1, np.int32),
        np.empty(candidates.near.shape, np.int32),
        np.full(num_exact, -1, np.int32),
        np.zeros(num_exact, np.int32),
        np.full(num_near + num_exact, -1, np.int32),
    )


def new_outcome(num: int) -> Outcome:
    """Everything stays."""
    return Outcome(
        np.zeros(num, np.uint8),
        np.full(num, -1, np.int32),
        np.zeros(num, np.float32),
        np.zeros(num, np.int32),
        np.zeros(num, np.int32),
    )


@njit(nogil=True, cache=True)
def group(start, stop, board):  # type: ignore[no-untyped-def]
    """Survivors of a block, sorted by group and rank, and where each group starts: groups share no bucket."""
    candidates, kept, outcome = board.candidates, board.kept, board.outcome
    num_bands = candidates.near.shape[1]
    parents = np.arange(stop - start)
    for record in range(start, stop):
        if outcome.fates[record] != STAYS:
            continue
        for band in range(num_bands + 1):
            if band < num_bands:
                bucket = candidates.near[record, band]
            else:
                bucket = candidates.exact[record]
                bucket = bucket + len(kept.heads) if bucket >= 0 else bucket
            if bucket < 0:
                continue
            owner = kept.owners[bucket]
            kept.owners[bucket] = record
            if owner >= start:
                a, b = _root(parents, owner - start), _root(parents, record - start)
                parents[max(a, b)] = min(a, b)
    sizes = np.zeros(stop - start + 1, np.int64)
    for record in range(start, stop):
        if outcome.fates[record] == STAYS:
            sizes[_root(parents, record - start) + 1] += 1
    ends = np.cumsum(sizes)
    places = ends[:-1].copy()
    members = np.empty(ends[-1], np.int32)
    for record in range(start, stop):
        if outcome.fates[record] == STAYS:
            root = _root(parents, record - start)
            members[places[root]] = record
            places[root] += 1
    return members, ends


@njit(nogil=True, cache=True)
def _root(parents, member):  # type: ignore[no-untyped-def]
    while parents[member] != member:
        parents[member] = parents[parents[member]]
        member = parents[member]
    return member
