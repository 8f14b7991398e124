"""Which characters make words, as tables over the Basic Multilingual Plane.

A word is a run of letters, marks, digits and underscores, lower-cased character by character. Scripts that put no
space between words (Han, kana, bopomofo, Thai, Lao, Khmer, Myanmar) give one word a character; Hangul is spaced and
gives words. Everything else parts words.

The tables come from Unicode 3.2, which every Python carries beside its own newer version, so that the same words come
out of every Python. Letters that Unicode gained later are words without case. Building them costs 30 ms, once a
process.
"""

from __future__ import annotations

import functools
from typing import NamedTuple
from unicodedata import ucd_3_2_0

import numpy as np
from numpy.typing import NDArray

from datamix.duplicates.kernels import SINGLE, WORD

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # Han iteration mark and zero
    (0x3040, 0x312F),  # kana, bopomofo
    (0x31A0, 0x31BF),  # bopomofo
    (0x31F0, 0x31FF),  # kana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # halfwidth kana
)
_SYMBOLS = ((0x2000, 0x2BFF), (0x3000, 0x303F), (0xD800, 0xF8FF), (0xFE00, 0xFE2F), (0xFFF0, 0xFFFF))
_KELVIN = 0x212A  # its lower case is an ASCII letter, and ASCII words are hashed by their bytes


class Alphabet(NamedTuple):
    """What a character is, by code point below 65,536."""

    classes: NDArray[np.uint8]  # [65536] SEPARATOR | WORD | SINGLE
    lower: NDArray[np.uint16]  # [65536] its lower case


@functools.cache
def alphabet() -> Alphabet:
    """The one alphabet of the house."""
    characters = [chr(point) for point in range(65536)]
    categories = "".join(map(ucd_3_2_0.category, characters)).encode()
    major, minor = np.frombuffer(categories, "S1").reshape(-1, 2).T
    letters = (major == b"L") | (major == b"N")
    words = letters | (major == b"M") | ((major == b"C") & (minor == b"n"))
    words[ord("_")] = True
    for first, last in _SYMBOLS:
        words[first : last + 1] = letters[first : last + 1]
    classes = words.astype(np.uint8)
    for first, last in _UNSPACED:
        classes[first : last + 1] *= SINGLE
    lower = np.arange(65536, dtype=np.uint16)
    for point in np.flatnonzero((classes == WORD) & letters).tolist():
        small = characters[point].lower()
        if small != characters[point] and len(small) == 1 and point != _KELVIN:
            lower[point] = ord(small)
    return Alphabet(classes, lower)
