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
    num_suspects = _fill_slots(keys, in_play, slots, bits)
    suspects = _suspects(keys, in_play, slots, bits, num_suspects)
    del slots
    return Shared(*_buckets(keys, high, suspects))


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
def _suspects(keys, in_play, slots, bits, num_suspects):  # type: ignore[no-untyped-def]
    suspects = np.empty(num_suspects, np.int32)
    count = 0
    for record in range(len(keys)):
        if in_play[record]:
            slot = keys[record] >> uint64(64 - bits)
            if (slots[slot >> uint64(5)] >> ((slot & uint64(31)) << uint64(1))) & uint64(3) >= 2:
                suspects[count] = record
                count += 1
    return suspects


@njit(nogil=True, cache=True)
def _buckets(keys, high, suspects):  # type: ignore[no-untyped-def]
    """Buckets of two and more among the suspects, numbered by their first record."""
    capacity = 16
    while capacity < 2 * len(suspects):
        capacity *= 2
    table = np.full(capacity, -1, np.int32)  # first suspect with the key
    firsts = np.empty(len(suspects), np.int32)  # of each suspect
    sizes = np.zeros(len(suspects), np.int32)  # at the first suspect of a bucket
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
    records = np.empty(num_shared, np.int32)
    buckets = np.empty(num_shared, np.int32)
    num_buckets = 0
    count = 0
    numbers = np.empty(len(suspects), np.int32)  # of a bucket, at its first suspect
    for i in range(len(suspects)):
        first = firsts[i]
        if sizes[first] > 1:
            if first == i:
                numbers[i] = num_buckets
                num_buckets += 1
            records[count] = suspects[i]
            buckets[count] = numbers[first]
            count += 1
    return records, buckets, num_buckets
