"""Kernels: rows from the addresses of what they are made of. See ``pipeline/gather_tokens.py``."""

from __future__ import annotations

import numpy as np

from datamix.core.arrays import IGNORE_INDEX
from datamix.core.jit import int32_at, int64_at, kernel, owner, put_int64, uint8_at, uint16_at


@kernel
def _row(order, place):  # type: ignore[no-untyped-def]
    """The source at a place, and the row there."""
    source, row = order
    return (uint16_at(source, place), int64_at(row, place)) if row else (np.int64(0), place)


@kernel
def lengths(bins, order, num, places, out):  # type: ignore[no-untyped-def]
    for i in range(num):
        source, row = _row(order, int64_at(places, i))
        put_int64(out, i, int64_at(int64_at(bins, 5 * source + 4), row))


@kernel
def _place_of(record, address, size):  # type: ignore[no-untyped-def]
    """Where a record is among the ascending numbers at an address, -1 where it is not."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if int64_at(address, middle) < record:
            low = middle + 1
        else:
            high = middle
    return low if low < size and int64_at(address, low) == record else -1


@kernel
def fill(table, order, how, lines, num, places, begin, block, width):  # type: ignore[no-untyped-def]
    """Write each column that has a line in the block; returns a shard that must be mapped first, or -1 at the end."""
    bins, first, shard_begin, shards = table
    masked, packed = how
    ids_line, labels_line, positions_line, ones_line = lines
    for i in range(num):
        (s, row), at = _row(order, int64_at(places, i)), int64_at(begin, i)
        edges, records = int64_at(bins, 5 * s), int64_at(bins, 5 * s + 1)
        starts, sizes = int64_at(bins, 5 * s + 2), int64_at(bins, 5 * s + 3)
        for piece in range(int32_at(edges, row), int32_at(edges, row + 1)):
            record = int64_at(records, piece)
            k = owner(shard_begin, int64_at(first, s), int64_at(first, s + 1), record)
            shard = shards + 88 * k
            if int64_at(shard, 10) == 0:
                return k
            local, column = record - int64_at(shard_begin, k), 0
            place = _place_of(local, int64_at(shard, 4), int64_at(shard, 5))
            if place >= 0:
                local, column = place, 6
            start, n = int32_at(starts, piece), int32_at(sizes, piece)
            ids, a = int64_at(shard, column), int32_at(int64_at(shard, column + 1), local) + start
            mask, b = int64_at(shard, column + 2), np.int64(0)
            if masked:
                b = int32_at(int64_at(shard, column + 3), local) + start
            # Each loop counts from 0 over addresses of its own: the compiler then uses wide instructions.
            ids, mask, to = ids + 4 * a, mask + b, block + 8 * at
            if ids_line >= 0:
                ids_out = to + 8 * width * ids_line
                for j in range(n):
                    put_int64(ids_out, j, int32_at(ids, j))
            if labels_line >= 0:
                labels_out = to + 8 * width * labels_line
                if masked:
                    for j in range(n):
                        put_int64(labels_out, j, int32_at(ids, j) if uint8_at(mask, j) else IGNORE_INDEX)
                else:
                    for j in range(n):
                        put_int64(labels_out, j, int32_at(ids, j))
                if packed and n > 0:
                    put_int64(labels_out, 0, np.int64(IGNORE_INDEX))
            if positions_line >= 0:
                positions_out = to + 8 * width * positions_line
                for j in range(n):
                    put_int64(positions_out, j, np.int64(j))
            if ones_line >= 0:
                ones_out = to + 8 * width * ones_line
                for j in range(n):
                    put_int64(ones_out, j, np.int64(1))
            at += n
    return -1
