"""Kernels: cutting and packing pieces by their lengths. See ``tokenize/pack.py``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datamix.core.jit import inline, kernel


@kernel
def concat(lengths, order, max_length, out):  # type: ignore[no-untyped-def]
    """Returns the number of pieces."""
    offsets, record, start, length = out
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
    offsets[len(offsets) - 1] = n
    return n


@kernel
def choose_cuts(tokens, begin, end, ends, max_length, first, positions):  # type: ignore[no-untyped-def]
    """Write where ``split`` will cut each long record, where that is after a token that ends something."""
    for i in range(len(begin)):
        n, at, length = first[i], 0, end[i] - begin[i]
        while length - at > max_length:
            block = min(at + max_length, length - 2)
            cut = block
            while cut > at + max_length // 2 and not ends[tokens[begin[i] + cut - 1]]:
                cut -= 1
            if cut > at + max_length // 2:
                positions[n] = cut
                n += 1
                at = cut
            else:
                at = block
    return 0


@kernel
def split(lengths, max_length, offsets, positions, out):  # type: ignore[no-untyped-def]
    record, start, length = out
    n, long = 0, 0
    for i in range(len(lengths)):
        end, at = lengths[i], 0
        first, last = 0, 0
        if end > max_length:
            first, last = offsets[long], offsets[long + 1]
            long += 1
        while end - at > max_length:
            # At most a block, less what the last piece needs.
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


@inline
def _lowest(word):  # type: ignore[no-untyped-def]
    return _BIT_PLACE[((word & (~word + _ONE)) * _DEBRUIJN) >> np.uint64(58)]


@kernel
def _mark(tree, level_start, space, full):  # type: ignore[no-untyped-def]
    """Mark whether the stack of ``space`` holds rows."""
    for level in range(len(level_start) - 1):
        word = level_start[level] + (space >> 6)
        bit = _ONE << np.uint64(space & 63)
        before = tree[word]
        tree[word] = before | bit if full else before & ~bit
        if (before == 0) == (tree[word] == 0):
            return
        space >>= 6


@kernel
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


@kernel
def longest_first(lengths, max_length, begin, order):  # type: ignore[no-untyped-def]
    """Write the pieces by descending length, stable (counting sort; ``begin`` holds zeros)."""
    for x in lengths:
        begin[max_length - x + 1] += 1
    for x in range(1, max_length + 2):
        begin[x] += begin[x - 1]
    for i in range(len(lengths)):
        order[begin[max_length - lengths[i]]] = i
        begin[max_length - lengths[i]] += 1


@kernel
def choose_rows(lengths, max_length, order, tree_of_spaces, stacks, row_of):  # type: ignore[no-untyped-def]
    """Write the row of each piece, rows in order of opening; returns their number. ``order``: longest first.

    A row with room for several pieces of a length takes them at once: it stays the best fit.
    """
    tree, level_start = tree_of_spaces
    top, under = stacks
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
    return num_rows


@kernel
def place(row_of, rank, filled, offsets, places):  # type: ignore[no-untyped-def]
    """Number the rows by their first piece; write where each row begins, and the place of each piece."""
    seen = 0
    for i in range(len(row_of)):
        if rank[row_of[i]] < 0:
            rank[row_of[i]] = seen
            seen += 1
        row_of[i] = rank[row_of[i]]
        offsets[row_of[i] + 1] += 1
    for row in range(len(filled)):
        offsets[row + 1] += offsets[row]
        filled[row] = offsets[row]
    for i in range(len(row_of)):
        places[i] = filled[row_of[i]]
        filled[row_of[i]] += 1


@kernel
def scatter(place, record_in, start_in, length_in, out):  # type: ignore[no-untyped-def]
    record, start, length = out
    for i in range(len(place)):
        record[place[i]] = record_in[i]
        start[place[i]] = start_in[i]
        length[place[i]] = length_in[i]
