"""Packing: which pieces of which records share a row, decided from lengths alone.

``one_each``   a row a record.
``concat``     documents joined in a given order and cut every ``max_length`` tokens (the classical block).
``best_fit``   documents kept whole: each goes, longest first, into the row that it fills best (best-fit decreasing,
               "Fewer Truncations Improve Language Modeling", arXiv 2404.10830).

Only a row's free space matters for best fit, so open rows lie on one stack per free space and a tree of 64-bit words
says which stacks are not empty: a piece costs one look into the tree (3 words for rows up to 262,144 tokens), whatever
the number of rows. Everything is integers: packing spans shards, needs about 40 bytes a piece, and packing again reads
no token. The result depends on the lengths and their order alone.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from datamix.contracts import Bins

Pieces = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]  # record, start, length: [num_pieces]
Cuts = tuple[NDArray[np.int64], NDArray[np.int32]]  # offsets [num_long + 1], positions [num_cuts]

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
    """Join the records of ``order`` end to end and cut every ``max_length`` tokens; the last block may be shorter.

    Lengths ``[5, 4]`` at 6: rows ``[(0, 0, 5), (1, 0, 1)]`` and ``[(1, 1, 3)]`` as (record, start, length).
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1 token, not {max_length}")
    return Bins(*_concat(np.ascontiguousarray(lengths), np.ascontiguousarray(order, np.int64), max_length))


def best_fit(
    pieces_record: NDArray[np.int64],
    pieces_start: NDArray[np.int32],
    pieces_length: NDArray[np.int32],
    max_length: int,
) -> Bins:
    """Fill rows of at most ``max_length`` tokens with whole pieces, best fit first.

    Pieces of one row stand in input order and rows in the order of their first piece, so that neighbours stay near.
    Lengths ``[5, 4, 1]`` at 6: rows ``{0, 2}`` and ``{1}``.

    Raises:
        ValueError: a piece is empty or longer than ``max_length``, or there are 2^31 of them.
    """
    lengths = np.ascontiguousarray(pieces_length, np.int32)
    if len(lengths) and (int(lengths.min()) < 1 or int(lengths.max()) > max_length):
        raise ValueError(
            f"pieces of {int(lengths.min())} to {int(lengths.max())} tokens cannot be packed into rows of 1 to "
            f"{max_length}: split or drop the long ones first"
        )
    if len(lengths) >= 2**31:
        raise ValueError(f"{len(lengths)} pieces in one source: at most 2,147,483,647 can be packed together")
    offsets, place = _fill(lengths, max_length)
    record = np.empty(len(lengths), np.int64)
    start, length = np.empty(len(lengths), np.int32), np.empty(len(lengths), np.int32)
    _scatter(place, pieces_record, pieces_start, lengths, (record, start, length))
    return Bins(offsets, record, start, length)


def split_long(lengths: NDArray[np.int32], max_length: int, cuts: Cuts | None = None) -> Pieces:
    """Cut records longer than ``max_length`` into pieces that fit; the others are one piece each, empty ones none.

    A cut is made at the last allowed place in the second half of the block, else at its end. The last piece of a
    record has at least two tokens. ``cuts`` holds, for each record longer than ``max_length`` in order, the ascending
    token positions before which it may be cut (a paragraph's or a sentence's beginning).

    Raises:
        ValueError: ``max_length`` is below 3, or ``cuts`` is not about as many records as are too long.
    """
    if max_length < MIN_LAST_TOKENS + 1:
        raise ValueError(f"max_length must be at least {MIN_LAST_TOKENS + 1} tokens, not {max_length}")
    lengths = np.ascontiguousarray(lengths)
    num_long = int(np.count_nonzero(lengths > max_length))
    if cuts is None:
        cuts = np.zeros(num_long + 1, np.int64), np.empty(0, np.int32)
    offsets, positions = cuts
    if len(offsets) != num_long + 1:
        raise ValueError(f"cuts are given for {len(offsets) - 1} records, {num_long} are too long")
    # A piece of a long record but its last one holds more than half a block.
    room = len(lengths) + int((lengths[lengths > max_length] // (max_length // 2)).sum()) + num_long
    out = np.empty(room, np.int64), np.empty(room, np.int32), np.empty(room, np.int32)
    size = _split(lengths, max_length, offsets, positions, out)
    return out[0][:size].copy(), out[1][:size].copy(), out[2][:size].copy()


@njit(cache=True, nogil=True)
def _concat(lengths, order, max_length):  # type: ignore[no-untyped-def]
    total, room = 0, 0
    for i in order:
        total += lengths[i]
        room += lengths[i] > 0
    num_rows = (total + max_length - 1) // max_length
    offsets = np.zeros(num_rows + 1, np.int64)
    record = np.empty(room + num_rows, np.int64)
    start = np.empty(room + num_rows, np.int32)
    length = np.empty(room + num_rows, np.int32)
    n, row, free = 0, 0, max_length
    for i in order:
        at, left = 0, lengths[i]
        while left > 0:
            if free == 0:
                row += 1
                offsets[row] = n
                free = max_length
            take = min(left, free)
            record[n], start[n], length[n] = i, at, take
            n, at, left, free = n + 1, at + take, left - take, free - take
    if num_rows:
        offsets[num_rows] = n
    return offsets, record[:n].copy(), start[:n].copy(), length[:n].copy()


@njit(cache=True, nogil=True)
def _split(lengths, max_length, offsets, positions, out):  # type: ignore[no-untyped-def]
    record, start, length = out
    n, long = 0, 0
    for i in range(len(lengths)):
        end, at = lengths[i], 0
        first, last = 0, 0
        if end > max_length:
            first, last = offsets[long], offsets[long + 1]
            long += 1
        while end - at > max_length:
            # The most that may be taken: a block, less what the last piece must keep.
            cut = min(at + max_length, end - 2)
            while first < last and positions[first] <= at + max_length // 2:
                first += 1
            while first < last and positions[first] <= cut:
                if first + 1 == last or positions[first + 1] > cut:
                    cut = positions[first]
                first += 1
            record[n], start[n], length[n] = i, at, cut - at
            n += 1
            at = cut
        if end > at:
            record[n], start[n], length[n] = i, at, end - at
            n += 1
    return n


# The tree of free spaces. Level 0 has one bit a free space, level k + 1 one bit a word of level k.

_DEBRUIJN = np.uint64(0x03F79D71B4CB0A89)
_ONE, _SIX, _LOW = np.uint64(1), np.uint64(6), np.uint64(63)


def _bit_places() -> NDArray[np.uint8]:
    places = np.zeros(64, np.uint8)
    for bit in range(64):
        places[((int(_DEBRUIJN) << bit) & (2**64 - 1)) >> 58] = bit
    return places


_BIT_PLACE = _bit_places()  # position of the lowest bit, by the top six bits of bit * _DEBRUIJN


@njit(cache=True, nogil=True, inline="always")
def _lowest(word):  # type: ignore[no-untyped-def]
    return _BIT_PLACE[((word & (~word + _ONE)) * _DEBRUIJN) >> np.uint64(58)]


@njit(cache=True, nogil=True)
def _mark(tree, level_start, space, full):  # type: ignore[no-untyped-def]
    """Say whether the stack of ``space`` holds rows."""
    for level in range(len(level_start) - 1):
        word = level_start[level] + (space >> 6)
        bit = _ONE << np.uint64(space & 63)
        before = tree[word]
        tree[word] = before | bit if full else before & ~bit
        if (before == 0) == (tree[word] == 0):
            return
        space >>= 6


@njit(cache=True, nogil=True)
def _next(tree, level_start, space):  # type: ignore[no-untyped-def]
    """The smallest free space of at least ``space`` that some row has, or -1."""
    num_levels = len(level_start) - 1
    for level in range(num_levels):
        word = space >> 6
        if level_start[level] + word >= level_start[level + 1]:
            return -1
        rest = tree[level_start[level] + word] >> np.uint64(space & 63)
        if rest != 0:
            space += _lowest(rest)
            for below in range(level - 1, -1, -1):
                space = (space << 6) + _lowest(tree[level_start[below] + space])
            return space
        space = word + 1
    return -1


@njit(cache=True, nogil=True)
def _levels(max_length):  # type: ignore[no-untyped-def]
    """Where each level of the tree begins, for free spaces of 0 to ``max_length``."""
    starts = [0]
    width = max_length + 1
    while True:
        width = (width + 63) >> 6
        starts.append(starts[-1] + width)
        if width == 1:
            return np.array(starts)


@njit(cache=True, nogil=True)
def _longest_first(lengths, max_length):  # type: ignore[no-untyped-def]
    """Pieces by falling length, equal ones in input order (counting sort)."""
    begin = np.zeros(max_length + 2, np.int64)
    for x in lengths:
        begin[max_length - x + 1] += 1
    for x in range(1, max_length + 2):
        begin[x] += begin[x - 1]
    order = np.empty(len(lengths), np.int32)
    for i in range(len(lengths)):
        order[begin[max_length - lengths[i]]] = i
        begin[max_length - lengths[i]] += 1
    return order


@njit(cache=True, nogil=True)
def _choose_rows(lengths, max_length):  # type: ignore[no-untyped-def]
    """The row of each piece, rows in order of opening, and their number.

    A row with room for several pieces of one length takes them at once: after the first it is the best fit again.
    """
    level_start = _levels(max_length)
    tree = np.zeros(level_start[-1], np.uint64)
    top = np.full(max_length + 1, -1, np.int32)  # the row last put on the stack of each free space
    under = np.empty(len(lengths), np.int32)  # the row below a row on its stack
    row_of = np.empty(len(lengths), np.int32)
    order = _longest_first(lengths, max_length)
    num_rows, n = 0, 0
    while n < len(order):
        length = lengths[order[n]]
        space = _next(tree, level_start, length)
        if space < 0:
            row, space = num_rows, max_length
            num_rows += 1
        else:
            row = top[space]
            top[space] = under[row]
            if top[space] < 0:
                _mark(tree, level_start, space, False)
        while True:
            row_of[order[n]] = row
            space -= length
            n += 1
            if n == len(order) or space < length or lengths[order[n]] != length:
                break
        if space > 0:
            if top[space] < 0:
                _mark(tree, level_start, space, True)
            under[row] = top[space]
            top[space] = row
    return row_of, num_rows


@njit(cache=True, nogil=True)
def _fill(lengths, max_length):  # type: ignore[no-untyped-def]
    """Offsets of the rows in order of their first piece, and the place of each piece among them."""
    row_of, num_rows = _choose_rows(lengths, max_length)
    rank = np.full(num_rows, -1, np.int32)
    offsets = np.zeros(num_rows + 1, np.int64)
    seen = 0
    for i in range(len(row_of)):
        if rank[row_of[i]] < 0:
            rank[row_of[i]] = seen
            seen += 1
        row_of[i] = rank[row_of[i]]
        offsets[row_of[i] + 1] += 1
    for row in range(num_rows):
        offsets[row + 1] += offsets[row]
    filled = offsets[:-1].copy()
    place = np.empty(len(row_of), np.int64)
    for i in range(len(row_of)):
        place[i] = filled[row_of[i]]
        filled[row_of[i]] += 1
    return offsets, place


@njit(cache=True, nogil=True)
def _scatter(place, record_in, start_in, length_in, out):  # type: ignore[no-untyped-def]
    record, start, length = out
    for i in range(len(place)):
        record[place[i]] = record_in[i]
        start[place[i]] = start_in[i]
        length[place[i]] = length_in[i]
