"""Kernels: candidates compared with kept records, and groups that share no bucket."""

from __future__ import annotations

from numba import float32, int32, int64, uint32, uint64

from datamix.duplicates.kernels import COUNTS, EXACT, NEAR, REMOVABLE, STAYS
from datamix.duplicates.kernels.simd import byte_at, inline, kernel
from datamix.duplicates.kernels.words import next_shingles


@inline
def _scan(text, table, capacity, stamp, board, desk):  # type: ignore[no-untyped-def]
    """Walk the shingles of a text over a hash set and count distinct ones.

    Stamp 0: those that are new, which are put in. Another stamp: those that stand in the set already.
    """
    shingles, marks = desk.scratch.shingles, desk.marks
    place = (board.candidates[text].address, board.candidates[text].length)
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


@inline
def _capacity(num_shingles):  # type: ignore[no-untyped-def]
    capacity = int64(64)
    while capacity < 2 * num_shingles:
        capacity *= 2
    return capacity


@kernel
def _jaccard(record, other, fresh, board, desk):  # type: ignore[no-untyped-def]
    """Exact Jaccard of two texts, or 0 where their sizes rule a match out; ``fresh``: ``desk.own`` is not filled yet."""
    candidates, marks = board.candidates, desk.marks
    this, that = candidates[record], candidates[other]
    for step in range(3):  # one call of ``_scan``: three would be compiled into three copies
        text = record if step == 0 else other
        table = desk.other if step == 1 else desk.own
        stamp = uint32(0)
        if (step == 0 and not fresh) or (step == 1 and that.distinct > 0):
            continue
        capacity = _capacity(candidates[text if step < 2 else record].num_shingles)
        if step == 2:
            fewer, more = this.distinct, that.distinct
            if fewer > more:
                fewer, more = more, fewer
            if fewer / more < board.rules.threshold:
                return 0.0
            stamp = _next_stamp(marks)
        else:
            for slot in range(capacity):
                table[slot] = 0
        hits = _scan(text, table, capacity, stamp, board, desk)
        if step == 0:
            this.distinct = hits
        elif step == 1:
            that.distinct = hits
    return hits / (this.distinct + that.distinct - hits)


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
