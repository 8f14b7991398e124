"""Kernels: n-grams of evaluation items, and where training texts hold them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import int64, njit, uint64
from numpy.typing import NDArray

from datamix.duplicates.alphabet import Alphabet
from datamix.duplicates.words import Scratch, next_shingles


class GramTable(NamedTuple):
    """An open-addressed table of n-gram keys; the entries of key k are ``firsts[k]..firsts[k + 1]``."""

    slots: NDArray[np.int32]  # [power of two, at most a quarter full] number of the key, -1
    keys: NDArray[np.uint64]  # [num_keys]
    firsts: NDArray[np.int64]  # [num_keys + 1]


def gram_table(keys: NDArray[np.uint64], firsts: NDArray[np.int64]) -> GramTable:
    """A table of distinct keys."""
    slots = np.full(1 << max(8, int(4 * len(keys)).bit_length()), -1, np.int32)
    _place(keys, slots)
    return GramTable(slots, keys, firsts)


@njit(nogil=True, cache=True)
def _place(keys, slots):  # type: ignore[no-untyped-def]
    mask = len(slots) - 1
    for number in range(len(keys)):
        slot = int64(keys[number] & uint64(mask))
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = number


@njit(nogil=True, cache=True)
def text_grams(place, ngram, alphabet, scratch, keys, starts):  # type: ignore[no-untyped-def]
    """All n-grams of the text at ``place`` (address, bytes) into ``keys``; with scratch starts, where each word starts (bytes).

    Returns their number. A text of fewer than n words is one gram of all of them.
    """
    position = (int64(0), int64(0), int64(0))
    total = 0
    while position[0] < place[1]:
        base = position[0]
        count, position = next_shingles(place, position, ngram, alphabet, scratch)
        for i in range(count):
            keys[total + i] = scratch.shingles[i]
            if len(starts):
                starts[total + i] = base + scratch.starts[i]
        total += count
    return total


@njit(nogil=True, cache=True)
def hits(addresses, lengths, ngram, table, alphabet, scratch):  # type: ignore[no-untyped-def]
    """Rows (text, key number, place in words) ``[num_hits, 3]`` wherever a text holds a gram of the table."""
    rows = np.empty((256, 3), np.int64)
    count = 0
    mask = len(table.slots) - 1
    for text in range(len(addresses)):
        place = (addresses[text], lengths[text])
        position = (int64(0), int64(0), int64(0))
        while position[0] < place[1]:
            base = position[2]
            num_grams, position = next_shingles(place, position, ngram, alphabet, scratch)
            for i in range(num_grams):
                key = scratch.shingles[i]
                slot = int64(key & uint64(mask))
                while table.slots[slot] >= 0 and table.keys[table.slots[slot]] != key:
                    slot = (slot + 1) & mask
                if table.slots[slot] >= 0:
                    if count == len(rows):
                        rows = np.concatenate((rows, np.empty_like(rows)))
                    rows[count, 0] = text
                    rows[count, 1] = table.slots[slot]
                    rows[count, 2] = base + i
                    count += 1
    return rows[:count]


def all_grams(place: tuple[int, int], ngram: int, alphabet: Alphabet, scratch: Scratch) -> NDArray[np.uint64]:
    """The n-grams of one text, in order."""
    keys = np.empty(place[1] + 1, np.uint64)
    return keys[: text_grams(place, ngram, alphabet, scratch, keys, np.empty(0, np.int64))]


def word_starts(place: tuple[int, int], alphabet: Alphabet, scratch: Scratch) -> NDArray[np.int64]:
    """The byte at which each word of one text starts; the scratch must note starts."""
    starts = np.empty(place[1] + 1, np.int64)
    return starts[: text_grams(place, 1, alphabet, scratch, np.empty(place[1] + 1, np.uint64), starts)]
