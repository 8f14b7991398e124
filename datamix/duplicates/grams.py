"""N-grams of evaluation items, and where training texts hold them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamix.compiled import Kernel
from datamix.duplicates.alphabet import Alphabet
from datamix.duplicates.texts import Places
from datamix.duplicates.words import Scratch

_place = Kernel("duplicates", "grams", "place")
_text_grams = Kernel("duplicates", "grams", "text_grams")
_hits = Kernel("duplicates", "grams", "hits")


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


def hits(
    places: Places, ngram: int, table: GramTable, alphabet: Alphabet, scratch: Scratch
) -> NDArray[np.int64]:
    """Rows (text, key number, place in words) ``[num_hits, 3]`` wherever a text holds a gram of the table."""
    rows = np.empty((256, 3), np.int64)
    while (count := _hits(tuple(places), ngram, table, alphabet, scratch, rows)) > len(rows):
        rows = np.empty((count, 3), np.int64)
    return rows[:count]


def all_grams(place: tuple[int, int], ngram: int, alphabet: Alphabet, scratch: Scratch) -> NDArray[np.uint64]:
    """The n-grams of one text, in order."""
    keys = np.empty(place[1] + 1, np.uint64)
    return keys[: _text_grams(place, ngram, alphabet, scratch, keys, np.empty(0, np.int64))]


def word_starts(place: tuple[int, int], alphabet: Alphabet, scratch: Scratch) -> NDArray[np.int64]:
    """The byte at which each word of one text starts; the scratch must note starts."""
    starts = np.empty(place[1] + 1, np.int64)
    return starts[: _text_grams(place, 1, alphabet, scratch, np.empty(place[1] + 1, np.uint64), starts)]
