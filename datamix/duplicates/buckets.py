"""Which records share a key with another one.

Most keys stand once. Two bits a slot (never, once, more often) tell so in a table of 2 to 4 bytes a record that mostly
fits the cache; only keys whose slot was hit twice, the shared ones and one in ten others, go through a hash table. One
key column is in memory at a time. About 20 ns a record and column on one core.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamix.compiled import Kernel

_SLOTS_PER_RECORD = 8


_fill_slots = Kernel("duplicates", "buckets", "fill_slots")
_suspects = Kernel("duplicates", "buckets", "suspects")
_count_buckets = Kernel("duplicates", "buckets", "count_buckets")
_number_buckets = Kernel("duplicates", "buckets", "number_buckets")


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
