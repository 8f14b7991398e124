"""Kernels: candidates compared with kept records, and groups that share no bucket."""

from __future__ import annotations

from numba import float32, int32, int64, uint32, uint64

from datamix.core.jit import inline, kernel
from datamix.dedup.kernels import COUNTS, EXACT, NEAR, REMOVABLE, STAYS
from datamix.dedup.kernels.simd import byte_at
from datamix.dedup.kernels.words import next_shingles


@inline
def _slot(table, capacity, key):  # type: ignore[no-untyped-def]
    """Where a key stands in a hash set, or would stand."""
    slot = int64(key & uint64(capacity - 1))
    while table[slot] != key and table[slot] != 0:
        slot = (slot + 1) & (capacity - 1)
    return slot


@inline
def _scan(text, capacities, stamp, board, desk):  # type: ignore[no-untyped-def]
    """Walk the shingles of a text; returns how many distinct ones stand in ``desk.own``, and how many do not.

    Stamp 0: the latter are put in there. Another stamp: they are put into ``desk.other``, to be counted once.
    """
    shingles, own, marks, other = desk.scratch.shingles, desk.own, desk.marks, desk.other
    place = (board.candidates[text].address, board.candidates[text].length)
    position = (int64(0), int64(0), int64(0))
    hits, misses = int64(0), int64(0)
    while position[0] < place[1]:
        count, position = next_shingles(place, position, board.rules.ngram, board.alphabet, desk.scratch)
        for i in range(count):
            key = shingles[i]
            slot = _slot(own, capacities[0], key)
            if own[slot] == key:
                hits += marks[slot] != stamp
                marks[slot] = stamp
            elif stamp == 0:
                misses += 1
                own[slot] = key
                marks[slot] = 0
            else:
                slot = _slot(other, capacities[1], key)
                misses += other[slot] != key
                other[slot] = key
    return hits, misses


@inline
def _capacity(num_shingles):  # type: ignore[no-untyped-def]
    capacity = int64(64)
    while capacity < 2 * num_shingles:
        capacity *= 2
    return capacity


@kernel
def _jaccard(record, other, fresh, board, desk):  # type: ignore[no-untyped-def]
    """Exact Jaccard of two texts; ``fresh``: ``desk.own`` does not hold the first one yet."""
    this, that = board.candidates[record], board.candidates[other]
    capacities = _capacity(this.num_shingles), _capacity(that.num_shingles)
    hits, misses = int64(0), int64(0)
    for step in range(
        int64(0 if fresh else 1), int64(2)
    ):  # one call of ``_scan``: two would be compiled twice
        table, capacity = (desk.own, capacities[0]) if step == 0 else (desk.other, capacities[1])
        for slot in range(capacity):
            table[slot] = 0
        stamp = uint32(0) if step == 0 else _next_stamp(desk.marks)
        hits, misses = _scan(record if step == 0 else other, capacities, stamp, board, desk)
        if step == 0:
            this.distinct = misses
    return hits / (this.distinct + misses)


@inline
def _next_stamp(marks):  # type: ignore[no-untyped-def]
    stamp = marks[len(marks) - 1] + uint32(1)
    if stamp == 0:
        for slot in range(len(marks)):
            marks[slot] = 0
        stamp = uint32(1)
    marks[len(marks) - 1] = stamp
    return stamp


@inline
def _equal_bytes(left, right, num_perm):  # type: ignore[no-untyped-def]
    equal = 0
    for i in range(num_perm):
        equal += byte_at(left + i) == byte_at(right + i)
    return equal


@kernel
def _found(record, since, board, desk):  # type: ignore[no-untyped-def]
    """Kept records from ``since`` on that share a bucket, latest first, each once with its number of buckets.

    They are written to ``desk.found``; returns their count and the most buckets that one shares. The lists are in
    descending order, so they are merged by their heads.
    """
    num_bands = board.near.shape[1]
    rows, heads = desk.found, desk.heads
    for band in range(num_bands):
        bucket = board.near[record, band]
        heads[band] = board.heads[bucket] if bucket >= 0 else -1
    count = 0
    most = int32(0)
    while True:
        latest = int32(-1)
        for band in range(num_bands):
            if heads[band] > latest:
                latest = heads[band]
        if latest < since:
            return count, most
        times = int32(0)
        for band in range(num_bands):
            if heads[band] == latest:
                heads[band] = board.following[latest, band]
                times += 1
        rows[count, 0], rows[count, 1] = latest, times
        if times > most:
            most = times
        count += 1


@inline
def _look(record, since, enough, board, desk):  # type: ignore[no-untyped-def]
    """Count near matches of a record among those kept from ``since`` on, up to ``enough``.

    Those that share most buckets are compared first, of equals the earliest; the first match is named the keeper.
    """
    candidates, rules = board.candidates, board.rules
    this = candidates[record]
    rows = desk.found
    count, most = _found(record, since, board, desk)
    fresh = most > 0  # a variable, not the literal True, which numba would compile apart
    for shared in range(most, 0, -1):
        for i in range(count - 1, -1, -1):
            other = int64(rows[i, 0])
            that = candidates[other]
            if rows[i, 1] != shared or (this.exact >= 0 and that.exact == this.exact):
                continue
            equal = _equal_bytes(this.sketch, that.sketch, rules.num_perm)
            similarity = (equal / rules.num_perm - 1 / 256) / (1 - 1 / 256)
            similarity = similarity if similarity > 0 else 0.0
            if rules.verify:
                if this.length >= 0 and that.length >= 0:
                    if equal < rules.least_equal:
                        continue
                    similarity = _jaccard(record, other, fresh, board, desk)
                    fresh = most < 0
                if similarity < rules.threshold:
                    continue
            if this.matches == 0:
                this.keeper = other
                this.similarity = float32(similarity)
            this.matches += 1
            if this.matches >= enough:
                return


@kernel
def sweep(members, since, settling, board, desk):  # type: ignore[no-untyped-def]
    """Compare ``members`` with the records kept from ``since`` on; ``settling``: keep what is not removed, for good."""
    for record in members:
        this = board.candidates[record]
        if this.role & REMOVABLE:
            num = board.copies[this.exact].num if this.exact >= 0 else int32(0)
            enough = board.rules.keep - num
            if this.matches < enough:
                _look(record, since, enough, board, desk)
            if this.matches >= enough:
                this.fate = NEAR
                if num:
                    this.fate = EXACT
                    this.keeper = board.copies[this.exact].first
                    this.similarity = 1.0
                continue
        if settling:
            this.keeper = -1
            this.similarity = 0.0
            if this.role & COUNTS:
                _insert(record, board)


@kernel
def _insert(record, board):  # type: ignore[no-untyped-def]
    bucket = board.candidates[record].exact
    if bucket >= 0:
        copies = board.copies[bucket]
        if copies.num >= board.rules.keep and board.rules.copies_are_near:
            return  # a further copy that may not be removed: it can match nothing that the others do not
        if copies.num == 0:
            copies.first = record
        copies.num += 1
    for band in range(board.near.shape[1]):
        bucket = board.near[record, band]
        if bucket >= 0:
            board.following[record, band] = board.heads[bucket]
            board.heads[bucket] = record


@kernel
def group(span, candidates, near, owners, parents, ends, members):  # type: ignore[no-untyped-def]
    """Write the survivors of the block ``span``, sorted by group and rank, to ``members``; returns their number.

    ``parents`` and ``members`` are as long as the block; ``ends``, one longer, holds zeros: where groups start stands
    in ``ends[1:]`` after. Groups share no bucket. ``owners [num near + exact buckets]`` holds the latest survivor of
    each bucket; the exact buckets come last.
    """
    start, stop = span
    num_bands = near.shape[1]
    num_near = len(owners)
    for record in range(start, stop):
        parents[record - start] = record - start
        if candidates[record].fate != STAYS:
            continue
        for band in range(num_bands + 1):
            bucket = near[record, band] if band < num_bands else candidates[record].exact
            if bucket < 0:
                continue
            bucket = bucket if band < num_bands else num_near - 1 - bucket
            owner = owners[bucket]
            owners[bucket] = record
            if owner >= start:
                a, b = _root(parents, owner - start), _root(parents, record - start)
                if a < b:
                    parents[b] = a
                else:
                    parents[a] = b
    for record in range(start, stop):
        if candidates[record].fate == STAYS:
            ends[_root(parents, record - start) + 1] += 1
    for i in range(stop - start):
        ends[i + 1] += ends[i]
    num_survivors = ends[stop - start]
    for record in range(stop - 1, start - 1, -1):
        if candidates[record].fate == STAYS:
            root = _root(parents, record - start)
            ends[root + 1] -= 1
            members[ends[root + 1]] = record  # ``ends`` has become the starts when all are placed
    return num_survivors


@kernel
def _root(parents, member):  # type: ignore[no-untyped-def]
    while parents[member] != member:
        parents[member] = parents[parents[member]]
        member = parents[member]
    return member
