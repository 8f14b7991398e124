"""Kernels: n-grams of texts, and a table of them."""

from __future__ import annotations

from numba import int64, uint64

from datamix.core.jit import kernel
from datamix.dedup.kernels.words import next_shingles


@kernel
def place(keys, slots):  # type: ignore[no-untyped-def]
    mask = len(slots) - 1
    for number in range(len(keys)):
        slot = int64(keys[number] & uint64(mask))
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = number


@kernel
def text_grams(text, ngram, alphabet, scratch, keys, starts):  # type: ignore[no-untyped-def]
    """All n-grams of ``text`` (address, bytes) into ``keys``; with scratch starts, where each word starts (bytes).

    Returns their number. A text of fewer than n words is one gram of all of them.
    """
    position = (int64(0), int64(0), int64(0))
    total = 0
    while position[0] < text[1]:
        base = position[0]
        count, position = next_shingles(text, position, ngram, alphabet, scratch)
        for i in range(count):
            keys[total + i] = scratch.shingles[i]
            if len(starts):
                starts[total + i] = base + scratch.starts[i]
        total += count
    return total


@kernel
def hits(texts, ngram, table, alphabet, scratch, rows):  # type: ignore[no-untyped-def]
    """Write rows (text, key number, place in words) wherever a text holds a gram of the table, as many as fit.

    Returns how many there are.
    """
    addresses, lengths = texts
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
                    if count < len(rows):
                        rows[count, 0] = text
                        rows[count, 1] = table.slots[slot]
                        rows[count, 2] = base + i
                    count += 1
    return count
