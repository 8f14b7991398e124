"""Kernels: MinHash values and band keys."""

from __future__ import annotations

from numba import int64, uint32, uint64

from datamix.core.jit import kernel
from datamix.dedup.kernels import LANES, PER_PASS
from datamix.dedup.kernels.words import next_shingles

_ODD_A = uint64(0x9E3779B97F4A7C15)
_ODD_B = uint64(0xFF51AFD7ED558CCD)


@kernel
def sign(places, ngram, alphabet, permutations, scratch, desk, out):  # type: ignore[no-untyped-def]
    addresses, lengths = places
    least, short = desk
    values, counts = out
    for text in range(len(addresses)):
        for p in range(len(least)):
            least[p] = uint32(0xFFFFFFFF)
        position = (int64(0), int64(0), int64(0))
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
            v0, v1, v2, v3 = (
                uint32(h * a0 + b0),
                uint32(h * a1 + b1),
                uint32(h * a2 + b2),
                uint32(h * a3 + b3),
            )
            m0 = v0 if v0 < m0 else m0
            m1 = v1 if v1 < m1 else m1
            m2 = v2 if v2 < m2 else m2
            m3 = v3 if v3 < m3 else m3
        least[p], least[p + 1], least[p + 2], least[p + 3] = m0, m1, m2, m3


@kernel
def band_keys(values, salts, keys):  # type: ignore[no-untyped-def]
    """Write the key of each band of ``values [n, num_perm]`` to ``keys [num_bands, n]``; records of other salt never share one."""
    num_bands = len(keys)
    rows = values.shape[1] // num_bands
    for text in range(len(values)):
        for band in range(num_bands):
            key = salts[text] ^ (uint64(band + 1) * _ODD_A)
            for row in range(rows):
                key = (key ^ uint64(values[text, band * rows + row])) * _ODD_B
                key ^= key >> uint64(29)
            keys[band, text] = key
