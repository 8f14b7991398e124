"""Kernels: keys that occur twice, candidates against kept records, groups that share no bucket."""

from __future__ import annotations

from numba import float32, int32, int64, uint32, uint64

from datamix.core.jit import inline, kernel
from datamix.dedup.kernels import COUNTS, EXACT, NEAR, REMOVABLE, STAYS
from datamix.dedup.kernels.simd import byte_at
from datamix.dedup.kernels.words import START, next_shingles


@kernel
def fill_slots(keys, in_play, slots, bits):  # type: ignore[no-untyped-def]
    num_suspects = 0
    for record in range(len(keys)):
        if in_play[record]:
            slot = keys[record] >> uint64(64 - bits)
            shift = (slot & uint64(31)) << uint64(1)
            word = slots[slot >> uint64(5)]
            hits = (word >> shift) & uint64(3)
            if hits < 2:
                slots[slot >> uint64(5)] = word + (uint64(1) << shift)
                num_suspects += int64(hits + hits)
            else:
                num_suspects += 1
    return num_suspects


@kernel
def suspects(keys, in_play, slots, bits, records):  # type: ignore[no-untyped-def]
    count = 0
    for record in range(len(keys)):
        if in_play[record]:
            slot = keys[record] >> uint64(64 - bits)
            if (slots[slot >> uint64(5)] >> ((slot & uint64(31)) << uint64(1))) & uint64(3) >= 2:
                records[count] = record
                count += 1


@kernel
def count_buckets(keys, high, suspects, table, firsts, sizes):  # type: ignore[no-untyped-def]
    """Write the first suspect with the key of each, and at that one how many there are; returns how many
    share a key.

    ``table`` is empty (-1) and holds at least twice as many as there are suspects, a power of two.
    """
    capacity = len(table)
    for i in range(len(suspects)):
        key = keys[suspects[i]]
        slot = int64(key & uint64(capacity - 1))
        while table[slot] >= 0:
            other = suspects[table[slot]]
            if keys[other] == key and (len(high) == 0 or high[other] == high[suspects[i]]):
                break
            slot = (slot + 1) & (capacity - 1)
        if table[slot] < 0:
            table[slot] = i
        firsts[i] = table[slot]
        sizes[table[slot]] += 1
    num_shared = 0
    for i in range(len(suspects)):
        num_shared += sizes[firsts[i]] > 1
    return num_shared


@kernel
def number_buckets(suspects, firsts, sizes, records, buckets):  # type: ignore[no-untyped-def]
    """Write the suspects that share a key, and their buckets by first record; returns how many buckets."""
    num_buckets = 0
    count = 0
    for i in range(len(suspects)):
        first = firsts[i]
        if first == i and sizes[i] > 1:
            sizes[i] = -1 - num_buckets  # counted; from here on the number of the bucket
            num_buckets += 1
        if sizes[first] < 0:
            records[count] = suspects[i]
            buckets[count] = -1 - sizes[first]
            count += 1
    return num_buckets


@inline
def _slot(table, capacity, key):  # type: ignore[no-untyped-def]
    """The slot of a key in a hash set, or the empty one where it belongs."""
    slot = int64(key & uint64(capacity - 1))
    while table[slot] != key and table[slot] != 0:
        slot = (slot + 1) & (capacity - 1)
    return slot


@inline
def _scan(text, capacities, stamp, state, scratch):  # type: ignore[no-untyped-def]
    """Go through the shingles of a text; returns how many distinct ones are in ``scratch.this``, and how many
    are not.

    Stamp 0: the latter are put in there. Another stamp: they are put into ``scratch.that``, to be counted
    once.
    """
    shingles, this, marks, that = scratch.shingles.shingles, scratch.this, scratch.marks, scratch.that
    place = (state.candidates[text].address, state.candidates[text].length)
    position = START
    hits, misses = int64(0), int64(0)
    while position[0] < place[1]:
        count, position = next_shingles(place, position, state.rules.ngram, state.alphabet, scratch.shingles)
        for i in range(count):
            key = shingles[i]
            slot = _slot(this, capacities[0], key)
            if this[slot] == key:
                hits += marks[slot] != stamp
                marks[slot] = stamp
            elif stamp == 0:
                misses += 1
                this[slot] = key
                marks[slot] = 0
            else:
                slot = _slot(that, capacities[1], key)
                misses += that[slot] != key
                that[slot] = key
    return hits, misses


@inline
def _capacity(num_shingles):  # type: ignore[no-untyped-def]
    capacity = int64(64)
    while capacity < 2 * num_shingles:
        capacity *= 2
    return capacity


@kernel
def _jaccard(record, other, fresh, state, scratch):  # type: ignore[no-untyped-def]
    """Exact Jaccard of two texts; ``fresh``: ``scratch.this`` does not hold the first one yet."""
    this, that = state.candidates[record], state.candidates[other]
    capacities = _capacity(this.num_shingles), _capacity(that.num_shingles)
    marks = scratch.marks
    hits, misses = int64(0), int64(0)
    # One call of ``_scan``: two would be compiled twice.
    for step in range(int64(0 if fresh else 1), int64(2)):
        table, capacity = (scratch.this, capacities[0]) if step == 0 else (scratch.that, capacities[1])
        for slot in range(capacity):
            table[slot] = 0
        stamp = uint32(0)
        if step == 1:
            stamp = uint32(marks[len(marks) - 1] + uint32(1))
            if stamp == 0:
                for slot in range(len(marks)):
                    marks[slot] = 0
                stamp = uint32(1)
            marks[len(marks) - 1] = stamp
        hits, misses = _scan(record if step == 0 else other, capacities, stamp, state, scratch)
        if step == 0:
            this.distinct = misses
    return hits / (this.distinct + misses)


@kernel
def _neighbours(record, since, state, scratch):  # type: ignore[no-untyped-def]
    """Kept records from ``since`` on that share a bucket, latest first, each once with its number of buckets.

    They are written to ``scratch.neighbours``; returns their count and the most buckets that one shares. The
    lists are in descending order, so they are merged by their heads.
    """
    num_bands = state.near.shape[1]
    rows, heads = scratch.neighbours, scratch.heads
    for band in range(num_bands):
        bucket = state.near[record, band]
        heads[band] = state.heads[bucket] if bucket >= 0 else -1
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
                heads[band] = state.following[latest, band]
                times += 1
        rows[count, 0], rows[count, 1] = latest, times
        if times > most:
            most = times
        count += 1


@inline
def _count_matches(record, since, enough, state, scratch):  # type: ignore[no-untyped-def]
    """Count near matches of a record among those kept from ``since`` on, up to ``enough``.

    Those that share most buckets are compared first, of equals the earliest; the first match is named the
    keeper.
    """
    candidates, rules = state.candidates, state.rules
    this = candidates[record]
    rows = scratch.neighbours
    count, most = _neighbours(record, since, state, scratch)
    fresh = most > 0  # a variable, not the literal True, which numba would compile apart
    for shared in range(most, 0, -1):
        for i in range(count - 1, -1, -1):
            other = int64(rows[i, 0])
            that = candidates[other]
            if rows[i, 1] != shared or (this.exact >= 0 and that.exact == this.exact):
                continue
            equal = 0
            for byte in range(rules.num_perm):
                equal += byte_at(this.sketch + byte) == byte_at(that.sketch + byte)
            similarity = (equal / rules.num_perm - 1 / 256) / (1 - 1 / 256)
            similarity = similarity if similarity > 0 else 0.0
            if rules.verify:
                if this.length >= 0 and that.length >= 0:
                    if equal < rules.least_equal:
                        continue
                    similarity = _jaccard(record, other, fresh, state, scratch)
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
def sweep(members, since, settling, state, scratch):  # type: ignore[no-untyped-def]
    """Compare ``members`` with the records kept from ``since`` on; ``settling``: keep what is not removed."""
    for record in members:
        this = state.candidates[record]
        if this.role & REMOVABLE:
            num = state.copies[this.exact].num if this.exact >= 0 else int32(0)
            enough = state.rules.keep - num
            if this.matches < enough:
                _count_matches(record, since, enough, state, scratch)
            if this.matches >= enough:
                this.fate = NEAR
                if num:
                    this.fate = EXACT
                    this.keeper = state.copies[this.exact].first
                    this.similarity = 1.0
                continue
        if settling:
            this.keeper = -1
            this.similarity = 0.0
            if this.role & COUNTS:
                _insert(record, state)


@kernel
def _insert(record, state):  # type: ignore[no-untyped-def]
    bucket = state.candidates[record].exact
    if bucket >= 0:
        copies = state.copies[bucket]
        if copies.num >= state.rules.keep and state.rules.copies_are_near:
            return  # a further copy that may not be removed: it can match nothing that the others do not
        if copies.num == 0:
            copies.first = record
        copies.num += 1
    for band in range(state.near.shape[1]):
        bucket = state.near[record, band]
        if bucket >= 0:
            state.following[record, band] = state.heads[bucket]
            state.heads[bucket] = record


@kernel
def group(span, candidates, near, owners, parents, ends, members):  # type: ignore[no-untyped-def]
    """Write the survivors of the block ``span``, sorted by group and rank, to ``members``; returns their
    number.

    ``parents`` and ``members`` are as long as the block; ``ends``, one longer, holds zeros: ``ends[1:]`` is
    where groups start after. Groups share no bucket. ``owners [num near + exact buckets]`` holds the latest
    survivor of each bucket; the exact buckets come last.
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
