"""Keep-first in rank order over candidates, each decided by exact Jaccard.

A record goes when enough *kept* records before it match it. Such a rule looks sequential; it is run in parallel without
changing its result: candidates are taken in blocks of rank order, every record of a block is first compared with the
kept records of earlier blocks (all threads, nothing is written that others read), and what survives is split into
groups that share no bucket, which cannot see each other, so that every group is settled on its own, in order.

A candidate pair shares a bucket. It is dropped when the sketches or the numbers of shingles rule the threshold out, else both
texts are read again where they lie and their sets of 64-bit shingle hashes compared, the record's own once and each
other text once a pair. About 4 us a pair of 2.5 kB.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamix.core.kernels import Kernel
from datamix.dedup.signatures import Alphabet, ShingleScratch, alphabet, new_shingle_scratch

sweep = Kernel("dedup", "sweep", "sweep")
group = Kernel("dedup", "sweep", "group")

# A record that shares a bucket, in rank order: where its text and sketch lie, and what became of it.
CANDIDATE = np.dtype(
    [
        ("address", np.int64),  # of its text
        ("length", np.int64),  # bytes; -1 where only the signature is left
        ("sketch", np.int64),  # address of num_perm bytes
        ("num_shingles", np.int32),
        ("distinct", np.int32),  # distinct shingles, once it was compared
        ("exact", np.int32),  # bucket, -1 where it is alone
        ("matches", np.int32),  # kept records found near, up to as many as remove it
        ("keeper", np.int32),  # who stayed instead, -1
        ("similarity", np.float32),
        ("role", np.uint8),
        ("fate", np.uint8),
    ],
    align=True,
)
COPIES = np.dtype([("first", np.int32), ("num", np.int32)])  # kept records of one exact bucket


class Rules(NamedTuple):
    """When two texts match, and how many matches remove a record."""

    ngram: int
    threshold: float
    num_perm: int
    least_equal: int  # bytes of the sketches that must be equal before texts are read
    verify: bool
    keep: int
    copies_are_near: bool  # equal exact keys mean equal texts


class SweepState(NamedTuple):
    """Everything that a sweep reads and writes. Kept records are linked by bucket, the latest first."""

    candidates: NDArray[np.void]  # [num] CANDIDATE
    near: NDArray[np.int32]  # [num, num_bands] bucket, -1 where the record is alone
    heads: NDArray[np.int32]  # [num near buckets] latest kept record
    following: NDArray[np.int32]  # [num, num_bands] the kept record before it in the same bucket
    copies: NDArray[np.void]  # [num exact buckets] COPIES
    rules: Rules
    alphabet: Alphabet


class Scratch(NamedTuple):
    """What one thread works in."""

    scratch: ShingleScratch
    own: NDArray[np.uint64]  # [capacity] hash set of the record in hand
    other: NDArray[np.uint64]  # [capacity]
    # [capacity + 1] slots of ``own`` that the other text has hit; at the end the last stamp
    marks: NDArray[np.uint32]
    # [num, 2] kept records that share a bucket with the record in hand, and how many
    found: NDArray[np.int32]
    heads: NDArray[np.int32]  # [num_bands] where the lists of kept records are being read


def new_sweep_state(
    candidates: NDArray[np.void], near: NDArray[np.int32], num_near: int, num_exact: int, rules: Rules
) -> SweepState:
    """Nothing is kept yet."""
    copies = np.zeros(num_exact, COPIES)
    copies["first"] = -1
    heads = np.full(num_near, -1, np.int32)
    return SweepState(candidates, near, heads, np.empty_like(near), copies, rules, alphabet())


def new_scratch(board: SweepState, max_shingles: int) -> Scratch:
    """A desk for texts of at most ``max_shingles``; its memory is touched only as far as texts need."""
    capacity = 1 << max(6, int(2 * max_shingles - 1).bit_length())
    tables = np.empty(capacity, np.uint64), np.empty(capacity, np.uint64)
    num, num_bands = board.near.shape
    lists = np.empty((num, 2), np.int32), np.empty(num_bands, np.int32)
    return Scratch(new_shingle_scratch(board.rules.ngram), *tables, np.zeros(capacity + 1, np.uint32), *lists)


_SLOTS_PER_RECORD = 8


_fill_slots = Kernel("dedup", "buckets", "fill_slots")
_suspects = Kernel("dedup", "buckets", "suspects")
_count_buckets = Kernel("dedup", "buckets", "count_buckets")
_number_buckets = Kernel("dedup", "buckets", "number_buckets")


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
