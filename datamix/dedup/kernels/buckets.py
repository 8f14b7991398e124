"""Kernels: which keys stand more than once."""

from __future__ import annotations

from numba import int64, uint64

from datamix.core.jit import kernel


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
def suspects(keys, in_play, slots, bits, found):  # type: ignore[no-untyped-def]
    count = 0
    for record in range(len(keys)):
        if in_play[record]:
            slot = keys[record] >> uint64(64 - bits)
            if (slots[slot >> uint64(5)] >> ((slot & uint64(31)) << uint64(1))) & uint64(3) >= 2:
                found[count] = record
                count += 1


@kernel
def count_buckets(keys, high, suspects, table, firsts, sizes):  # type: ignore[no-untyped-def]
    """Write the first suspect with the key of each, and at that one how many there are; returns how many share a key.

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
    """Write the suspects that share a key and their buckets, numbered by their first record; returns the number of buckets."""
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
