"""Kernels: rows of a virtual set, from the addresses of what they are made of. See ``phases/fill.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types

from datamix.jit import intrinsic, kernel
from datamix.phases.kernels import IGNORED


def _reader(kind: Any) -> Any:
    """A compiled read of number ``index`` at an address."""

    @intrinsic  # type: ignore[untyped-decorator]
    def read(_typing: Any, _address: Any, _index: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            numbers = builder.inttoptr(args[0], context.get_value_type(kind).as_pointer())
            return builder.load(builder.gep(numbers, [args[1]]))

        return kind(types.int64, types.int64), build

    return read


_byte, _int, _long = _reader(types.uint8), _reader(types.int32), _reader(types.int64)


@kernel
def _row(order, place):  # type: ignore[no-untyped-def]
    """The source at a place, and the row there."""
    source, row = order
    return (np.int64(source[place]), row[place]) if len(row) else (np.int64(0), np.int64(place))


@kernel
def lengths(bins, order, places, out):  # type: ignore[no-untyped-def]
    for i in range(len(places)):
        source, row = _row(order, places[i])
        out[i] = _long(bins[source, 4], row)


@kernel
def _shard_of(begin, low, high, record):  # type: ignore[no-untyped-def]
    """The last of the shards ``low..high`` that begins at ``record`` or before; ``low - 1`` where there is none."""
    while low < high:
        middle = (low + high) // 2
        if begin[middle] <= record:
            low = middle + 1
        else:
            high = middle
    return low - 1


@kernel
def _place_of(record, address, size):  # type: ignore[no-untyped-def]
    """Where a record stands among the ascending numbers at an address, -1 where it does not."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if _long(address, middle) < record:
            low = middle + 1
        else:
            high = middle
    return low if low < size and _long(address, low) == record else -1


@kernel
def fill(table, order, places, arrays, wanted, how, begin):  # type: ignore[no-untyped-def]
    """Fill the arrays; returns the index of a shard that must be mapped first, or -1 when all is written."""
    bins, first, shard_begin, shards = table
    ids_out, labels_out, positions_out, ones_out = arrays
    want_ids, want_labels, want_positions, want_ones = wanted
    masked, packed = how
    for i in range(len(places)):
        (s, row), at = _row(order, places[i]), begin[i]
        for piece in range(_int(bins[s, 0], row), _int(bins[s, 0], row + 1)):
            record = _long(bins[s, 1], piece)
            k = _shard_of(shard_begin, first[s], first[s + 1], record)
            if shards[k, 10] == 0:
                return k
            local, column = record - shard_begin[k], 0
            place = _place_of(local, shards[k, 4], shards[k, 5])
            if place >= 0:
                local, column = place, 6
            start, n = _int(bins[s, 2], piece), _int(bins[s, 3], piece)
            ids, a = shards[k, column], np.int64(_int(shards[k, column + 1], local)) + start
            mask, b = shards[k, column + 2], np.int64(0)
            if masked:
                b = np.int64(_int(shards[k, column + 3], local)) + start
            # Loops over views from 0 on: plain index arithmetic keeps the compiler from using wide instructions.
            if want_ids:
                view = ids_out[at : at + n]
                for j in range(n):
                    view[j] = _int(ids, a + j)
            if want_labels:
                view = labels_out[at : at + n]
                if masked:
                    for j in range(n):
                        view[j] = _int(ids, a + j) if _byte(mask, b + j) else IGNORED
                else:
                    for j in range(n):
                        view[j] = _int(ids, a + j)
                if packed and n > 0:
                    view[0] = IGNORED
            if want_positions:
                view = positions_out[at : at + n]
                for j in range(n):
                    view[j] = j
            if want_ones:
                ones_out[at : at + n] = 1
            at += n
    return -1
