"""Kernels: lists of mapped Arrow batches, from the addresses of their numbers. See ``load/stores.py``."""

from __future__ import annotations

from datamix.core.jit import int8_at, int32_at, int64_at, kernel, owner, put_int64


@kernel
def lengths(lists, num, places, out):  # type: ignore[no-untyped-def]
    """Numbers in the first column; returns the index of a batch that must be mapped first, or -1 at the end."""
    table, starts, num_batches, _, num_columns = lists
    for i in range(num):
        place = int64_at(places, i)
        k = owner(starts, 0, num_batches, place)
        row, offsets = place - int64_at(starts, k), int64_at(table, 2 * k * num_columns)
        if offsets == 0:
            return k
        put_int64(out, i, int32_at(offsets, row + 1) - int32_at(offsets, row))
    return -1


@kernel
def fill(lists, num, places, begin, block, width):  # type: ignore[no-untyped-def]
    """Copy every column of the rows to the block; returns as ``lengths`` does."""
    table, starts, num_batches, sizes, num_columns = lists
    for i in range(num):
        place, at = int64_at(places, i), int64_at(begin, i)
        k = owner(starts, 0, num_batches, place)
        row = place - int64_at(starts, k)
        for column in range(num_columns):
            cell = 2 * (k * num_columns + column)
            offsets, numbers = int64_at(table, cell), int64_at(table, cell + 1)
            if offsets == 0:
                return k
            first, to = int32_at(offsets, row), block + 8 * (column * width + at)
            if int64_at(sizes, column) == 4:
                numbers += 4 * first
                for j in range(int32_at(offsets, row + 1) - first):
                    put_int64(to, j, int32_at(numbers, j))
            else:
                numbers += first
                for j in range(int32_at(offsets, row + 1) - first):
                    put_int64(to, j, int8_at(numbers, j))
    return -1
