"""Packing: which pieces of which records share a row, decided from lengths alone.

``one_each``   one row per record.
``concat``     documents joined in a given order and cut every ``max_length`` tokens (the classical block).
``best_fit``   documents stay whole: each goes, longest first, into the row that it fills best (best-fit
               decreasing, "Fewer Truncations Improve Language Modeling", arXiv 2404.10830).

Only a row's free space matters for best fit, so there is one stack of open rows per free space and a tree of
64-bit words marks the stacks that are not empty: a piece costs one search of the tree (3 words for rows up to
262,144 tokens), whatever the number of rows. Everything is integers: packing spans shards, needs about 40
bytes a piece, and packing again reads no token. The result depends on the lengths and their order alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datamix.core.arrays import offsets_from_lengths
from datamix.core.contracts import Bins
from datamix.core.kernels import Kernel

# record, start, length: [num_pieces]
PackedPieces = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]
Cuts = tuple[NDArray[np.int64], NDArray[np.int32]]  # offsets [num_long + 1], positions [num_cuts]

_concat = Kernel("tokenize", "pack", "concat")
_choose_cuts = Kernel("tokenize", "pack", "choose_cuts")
_split = Kernel("tokenize", "pack", "split")
_longest_first = Kernel("tokenize", "pack", "longest_first")
_choose_rows = Kernel("tokenize", "pack", "choose_rows")
_place = Kernel("tokenize", "pack", "place")
_scatter = Kernel("tokenize", "pack", "scatter")

MIN_LAST_TOKENS = 2  # one token alone has nothing to predict


def one_each(lengths: NDArray[np.int32], records: NDArray[np.int64]) -> Bins:
    """One row for each of ``records``, whole: ``lengths[record]`` tokens from 0."""
    records = np.ascontiguousarray(records, np.int64)
    return Bins(
        offsets=np.arange(len(records) + 1, dtype=np.int64),
        record=records,
        start=np.zeros(len(records), np.int32),
        length=np.ascontiguousarray(lengths[records], np.int32),
    )


def concat(lengths: NDArray[np.int32], order: NDArray[np.int64], max_length: int) -> Bins:
    """Join the records of ``order`` and cut every ``max_length`` tokens; the last block may be shorter.

    Lengths ``[5, 4]`` at 6: rows ``[(0, 0, 5), (1, 0, 1)]`` and ``[(1, 1, 3)]`` as (record, start, length).
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1 token, not {max_length}")
    lengths, order = np.ascontiguousarray(lengths), np.ascontiguousarray(order, np.int64)
    selected = lengths[order]
    num_rows = -(-int(selected.sum(dtype=np.int64)) // max_length)
    room = int(np.count_nonzero(selected)) + num_rows
    offsets, record = np.zeros(num_rows + 1, np.int64), np.empty(room, np.int64)
    start, length = np.empty(room, np.int32), np.empty(room, np.int32)
    size = _concat(lengths, order, max_length, (offsets, record, start, length))
    return Bins(offsets, record[:size].copy(), start[:size].copy(), length[:size].copy())


def best_fit(
    pieces_record: NDArray[np.int64],
    pieces_start: NDArray[np.int32],
    pieces_length: NDArray[np.int32],
    max_length: int,
) -> Bins:
    """Fill rows of at most ``max_length`` tokens with whole pieces, best fit first.

    Pieces of a row are in input order and rows in the order of their first piece, so that neighbours stay
    near. Lengths ``[5, 4, 1]`` at 6: rows ``{0, 2}`` and ``{1}``.

    Raises ValueError where a piece is empty or longer than ``max_length``, or there are 2^31 of them.
    """
    lengths = np.ascontiguousarray(pieces_length, np.int32)
    if len(lengths) and (int(lengths.min()) < 1 or int(lengths.max()) > max_length):
        raise ValueError(
            f"pieces of {int(lengths.min())} to {int(lengths.max())} tokens cannot be packed into rows of 1 "
            f"to {max_length}: split or drop the long ones first"
        )
    if len(lengths) >= 2**31:
        raise ValueError(f"{len(lengths)} pieces in one source: at most 2,147,483,647 can be packed together")
    offsets, place = _best_fit(lengths, max_length)
    record = np.empty(len(lengths), np.int64)
    start, length = np.empty(len(lengths), np.int32), np.empty(len(lengths), np.int32)
    _scatter(place, pieces_record, pieces_start, lengths, (record, start, length))
    return Bins(offsets, record, start, length)


def room_for_cuts(lengths: NDArray[np.int32], max_length: int) -> Cuts:
    """No cuts yet, with room for all that records of these lengths, each above ``max_length``, can have."""
    offsets = offsets_from_lengths(lengths // (max_length // 2) + 1)
    return offsets, np.full(offsets[-1], np.iinfo(np.int32).max, np.int32)


def choose_cuts(
    cuts: Cuts,
    places: NDArray[np.int64],
    tokens: NDArray[np.int32] | NDArray[np.uint8],
    spans: tuple[NDArray[np.int64], NDArray[np.int64]],
    ends: NDArray[np.bool_],
    max_length: int,
) -> None:
    """Choose the best cuts of the records ``places`` of ``cuts``: ``tokens[begin:end]`` by ``spans``.

    ``ends``: ``[vocab_size]``, after which tokens a document is best cut. Reads tokens back from the end of
    each block to the first such token: a few in a hundred.
    """
    _choose_cuts(tokens, *spans, ends.view(np.uint8), max_length, cuts[0][places], cuts[1])


def split_long(lengths: NDArray[np.int32], max_length: int, cuts: Cuts | None = None) -> PackedPieces:
    """Cut records longer than ``max_length`` into pieces that fit; others are one piece, empty ones none.

    A cut is made at the last allowed place in the second half of the block, else at its end. The last piece
    of a record has at least two tokens. ``cuts`` holds, for each record longer than ``max_length`` in order,
    the ascending token positions before which it may be cut (a paragraph's or a sentence's beginning).

    Raises ValueError where ``max_length`` is below 3, or ``cuts`` is for another number of long records.
    """
    if max_length < MIN_LAST_TOKENS + 1:
        raise ValueError(f"max_length must be at least {MIN_LAST_TOKENS + 1} tokens, not {max_length}")
    lengths = np.ascontiguousarray(lengths)
    num_long = int(np.count_nonzero(lengths > max_length))
    if cuts is None:
        cuts = np.zeros(num_long + 1, np.int64), np.empty(0, np.int32)
    offsets, positions = np.ascontiguousarray(cuts[0], np.int64), np.ascontiguousarray(cuts[1], np.int32)
    if len(offsets) != num_long + 1:
        raise ValueError(f"cuts are given for {len(offsets) - 1} records, {num_long} are too long")
    # Each piece of a long record except its last holds more than half a block.
    room = len(lengths) + int((lengths[lengths > max_length] // (max_length // 2)).sum()) + num_long
    out = np.empty(room, np.int64), np.empty(room, np.int32), np.empty(room, np.int32)
    size = _split(lengths, max_length, offsets, positions, out)
    return out[0][:size].copy(), out[1][:size].copy(), out[2][:size].copy()


def _best_fit(lengths: NDArray[np.int32], max_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets of the rows in order of their first piece, and the place of each piece among them."""
    order = np.empty(len(lengths), np.int32)
    _longest_first(lengths, max_length, np.zeros(max_length + 2, np.int64), order)
    starts, width = (
        [0],
        max_length + 1,
    )  # where each level of the tree begins, for free spaces of 0 to max_length
    while width > 1 or len(starts) == 1:
        width = (width + 63) >> 6
        starts.append(starts[-1] + width)
    levels = np.array(starts, np.int64)
    spaces = np.full(max_length + 1, -1, np.int32)  # the row last put on the stack of each free space
    under = np.empty(len(lengths), np.int32)  # the row below a row on its stack
    row_of = np.empty(len(lengths), np.int32)
    tree = np.zeros(int(levels[-1]), np.uint64), levels
    num_rows = _choose_rows(lengths, max_length, order, tree, (spaces, under), row_of)
    offsets, place = np.zeros(num_rows + 1, np.int64), np.empty(len(lengths), np.int64)
    _place(row_of, np.full(num_rows, -1, np.int32), np.empty(num_rows, np.int64), offsets, place)
    return offsets, place
