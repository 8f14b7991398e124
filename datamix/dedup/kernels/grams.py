"""Kernels: n-grams of texts, a table of them, their MinHash values and band keys."""

from __future__ import annotations

from numba import int64, uint32, uint64

from datamix.core.jit import kernel
from datamix.dedup.kernels import LANES, PER_PASS
from datamix.dedup.kernels.words import ODD_A, ODD_B, START, next_shingles


@kernel
def place(keys, slots):  # type: ignore[no-untyped-def]
    """Put the numbers of distinct keys into the empty slots of a hash table."""
    mask = len(slots) - 1
    for number in range(len(keys)):
        slot = int64(keys[number] & uint64(mask))
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = number


@kernel
def text_grams(text, ngram, alphabet, scratch, keys, starts):  # type: ignore[no-untyped-def]
    """All n-grams of ``text`` (address, bytes) into ``keys``; with scratch starts, where each word starts
    (bytes).

    Returns their number. A text of fewer than n words is one gram of all of them.
    """
    position = START
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
    """Write rows (text, key number, place in words) wherever a text holds a gram of the table, as many as
    fit.

    Returns how many there are.
    """
    addresses, lengths = texts
    count = 0
    mask = len(table.slots) - 1
    for text in range(len(addresses)):
        place = (addresses[text], lengths[text])
        position = START
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


@kernel
def sign(places, ngram, alphabet, permutations, scratch, work, out):  # type: ignore[no-untyped-def]
    """Write MinHash values ``[n, num_perm]`` and numbers of shingles ``[n]`` of the texts at ``places``."""
    addresses, lengths = places
    least, short = work
    values, counts = out
    for text in range(len(addresses)):
        for p in range(len(least)):
            least[p] = uint32(0xFFFFFFFF)
        position = START
        place = (addresses[text], lengths[text])
        while position[0] < lengths[text]:
            num_shingles, position = next_shingles(place, position, ngram, alphabet, scratch)
            if num_shingles:
                for i in range(num_shingles):
                    short[i] = uint32(scratch.shingles[i] >> uint64(16))
                padded = (num_shingles + LANES - 1) // LANES * LANES
                for i in range(num_shingles, padded):
                    short[i] = short[num_shingles - 1]
                _lower(short, padded, permutations, least)
        counts[text] = position[2]
        for p in range(values.shape[1]):
            values[text, p] = least[p]


@kernel
def _lower(short, num_shingles, permutations, least):  # type: ignore[no-untyped-def]
    """Lower ``least`` to the smallest value of each permutation over ``short[:num_shingles]``."""
    multipliers, offsets = permutations[0], permutations[1]
    for p in range(0, len(least), PER_PASS):
        a0, a1, a2, a3 = multipliers[p], multipliers[p + 1], multipliers[p + 2], multipliers[p + 3]
        b0, b1, b2, b3 = offsets[p], offsets[p + 1], offsets[p + 2], offsets[p + 3]
        m0, m1, m2, m3 = least[p], least[p + 1], least[p + 2], least[p + 3]
        for i in range(num_shingles):
            h = short[i]
            v0, v1 = uint32(h * a0 + b0), uint32(h * a1 + b1)
            v2, v3 = uint32(h * a2 + b2), uint32(h * a3 + b3)
            m0 = v0 if v0 < m0 else m0
            m1 = v1 if v1 < m1 else m1
            m2 = v2 if v2 < m2 else m2
            m3 = v3 if v3 < m3 else m3
        least[p], least[p + 1], least[p + 2], least[p + 3] = m0, m1, m2, m3


@kernel
def band_keys(values, salts, keys):  # type: ignore[no-untyped-def]
    """Write the band keys ``[num_bands, n]`` of ``values [n, num_perm]``; other salts never share one."""
    num_bands = len(keys)
    rows = values.shape[1] // num_bands
    for text in range(len(values)):
        for band in range(num_bands):
            key = salts[text] ^ (uint64(band + 1) * ODD_A)
            for row in range(rows):
                key = (key ^ uint64(values[text, band * rows + row])) * ODD_B
                key ^= key >> uint64(29)
            keys[band, text] = key
