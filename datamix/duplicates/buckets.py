"""Kernels: which records share a key with another one.

Most keys stand once. Two bits a slot (never, once, more often) tell so in a table of 2 to 4 bytes a record that mostly
fits the cache; only keys whose slot was hit twice, the shared ones and one in ten others, go through a hash table. One
key column is in memory at a time. About 20 ns a record and column on one core.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import int64, njit, uint64
from numpy.typing import NDArray

_SLOTS_PER_RECORD = 8


class Shared(NamedTuple):
    """The records that share a key, and the bucket (one a key) each is in."""

    records: NDArray[np.int32]  # [num_shared] ascending
    buckets: NDArray[np.int32]  # [num_shared] numbered by first record
    num_buckets: int


def shared(keys: NDArray[np.uint64], high: NDArray[np.uint64], in_play: NDArray[np.bool_]) -> Shared:
    """Records in play whose key stands at least twice; ``high`` are the upper halves of 128-bit keys, or empty."""
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


@njit(nogil=True, cache=True)
def _fill_slots(keys, in_play, slots, bits):  # type: ignore[no-untyped-def]
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


@njit(nogil=True, cache=True)
def _suspects(keys, in_play, slots, bits, suspects):  # type: ignore[no-untyped-def]
    count = 0
    for record in range(len(keys)):
        if in_play[record]:
            slot = keys[record] >> uint64(64 - bits)
            if (slots[slot >> uint64(5)] >> ((slot & uint64(31)) << uint64(1))) & uint64(3) >= 2:
                suspects[count] = record
                count += 1


@njit(nogil=True, cache=True)
def _count_buckets(keys, high, suspects, table, firsts, sizes):  # type: ignore[no-untyped-def]
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


@njit(nogil=True, cache=True)
def _number_buckets(suspects, firsts, sizes, records, buckets):  # type: ignore[no-untyped-def]
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
