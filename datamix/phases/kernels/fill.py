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


_byte, _short = _reader(types.uint8), _reader(types.uint16)
_int, _long = _reader(types.int32), _reader(types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def _put(_typing: Any, _address: Any, _index: Any, _value: Any) -> Any:
    """Write an int64 as number ``index`` at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = builder.inttoptr(args[0], context.get_value_type(types.int64).as_pointer())
        builder.store(args[2], builder.gep(numbers, [args[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), build


@kernel
def _row(order, place):  # type: ignore[no-untyped-def]
    """The source at a place, and the row there."""
    source, row = order
    return (np.int64(_short(source, place)), _long(row, place)) if row else (np.int64(0), place)


@kernel
def lengths(bins, order, num, places, out):  # type: ignore[no-untyped-def]
    for i in range(num):
        source, row = _row(order, _long(places, i))
        _put(out, i, _long(_long(bins, 5 * source + 4), row))


@kernel
def _shard_of(begin, low, high, record):  # type: ignore[no-untyped-def]
    """The last of the shards ``low..high`` that begins at ``record`` or before; ``low - 1`` where there is none."""
    while low < high:
        middle = (low + high) // 2
        if _long(begin, middle) <= record:
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
def fill(table, order, how, num, places, begin, ids_out, labels_out, positions_out, ones_out):  # type: ignore[no-untyped-def]
    """Write each column that has an address; returns the index of a shard that must be mapped first, or -1 at the end."""
    bins, first, shard_begin, shards = table
    masked, packed = how
    for i in range(num):
        (s, row), at = _row(order, _long(places, i)), _long(begin, i)
        edges, records = _long(bins, 5 * s), _long(bins, 5 * s + 1)
        starts, sizes = _long(bins, 5 * s + 2), _long(bins, 5 * s + 3)
        for piece in range(_int(edges, row), _int(edges, row + 1)):
            record = _long(records, piece)
            k = _shard_of(shard_begin, _long(first, s), _long(first, s + 1), record)
            shard = shards + 88 * k
            if _long(shard, 10) == 0:
                return k
            local, column = record - _long(shard_begin, k), 0
            place = _place_of(local, _long(shard, 4), _long(shard, 5))
            if place >= 0:
                local, column = place, 6
            start, n = _int(starts, piece), _int(sizes, piece)
            ids, a = _long(shard, column), np.int64(_int(_long(shard, column + 1), local)) + start
            mask, b = _long(shard, column + 2), np.int64(0)
            if masked:
                b = np.int64(_int(_long(shard, column + 3), local)) + start
            # Each loop counts from 0 over addresses of its own: the compiler then uses wide instructions.
            ids, mask, to = ids + 4 * a, mask + b, 8 * at
            if ids_out:
                for j in range(n):
                    _put(ids_out + to, j, np.int64(_int(ids, j)))
            if labels_out:
                if masked:
                    for j in range(n):
                        _put(labels_out + to, j, np.int64(_int(ids, j) if _byte(mask, j) else IGNORED))
                else:
                    for j in range(n):
                        _put(labels_out + to, j, np.int64(_int(ids, j)))
                if packed and n > 0:
                    _put(labels_out + to, 0, np.int64(IGNORED))
            if positions_out:
                for j in range(n):
                    _put(positions_out + to, j, np.int64(j))
            if ones_out:
                for j in range(n):
                    _put(ones_out + to, j, np.int64(1))
            at += n
    return -1
