"""Rows of a virtual set, straight from the mapped tokens into the arrays of a batch.

Every buffer that a row is made of (bins, lengths, tokens, masks) has its address in a small table, so that one compiled
call walks from places to tokens and copies each once, widened to int64. Cost of a batch: its tokens and about ten
microseconds. A shard is mapped when a row first needs it; the table keeps what it maps alive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numba import carray, njit  # type: ignore[attr-defined]
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from .tokens import Shard, open_batch

IGNORED = -100
_NONE = np.empty(0, np.int64)
Order = tuple[NDArray[np.uint16], NDArray[np.int64]]


class AddressTable:
    """Where the numbers of every source of a split lie in memory.

    ``order`` is the source and its row at each place; both are empty where places are the rows of the only source.
    """

    def __init__(
        self,
        order: Order,
        bins: Sequence[Path],
        shards: Sequence[Sequence[Shard]],
        masked: bool,
        packed: bool,
    ) -> None:
        self._order, self._masked, self._packed = order, masked, packed
        self._shards = [shard for group in shards for shard in group]
        self._kept: list[Any] = []
        self.bins = np.array([self._bins(path) for path in bins], np.int64).reshape(-1, 5)
        self.first = np.cumsum([0, *(len(group) for group in shards)])  # [num_sources + 1] shards
        begins = [np.cumsum([0, *(s.num_rows for s in group)])[:-1] for group in shards]
        self.begin = np.concatenate(begins).astype(np.int64)  # [num_shards] first record, in its source
        self.shards = np.zeros(
            (len(self._shards), 11), np.int64
        )  # addresses; the last says that they are there

    def lengths(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each row. ``[num_rows]``."""
        out = np.empty(len(places), np.int64)
        _lengths(self.bins, self._order, places, out)
        return out

    def fill(
        self, out: Mapping[str, NDArray[np.int64]], places: NDArray[np.int64], begin: NDArray[np.int64]
    ) -> None:
        """Write the columns in ``out`` of each row to ``out[name][begin[i]:]``; flat arrays, padding left alone."""
        names = ("input_ids", "labels", "position_ids", "attention_mask")
        arrays = tuple(out.get(name, _NONE) for name in names)
        wanted = tuple(name in out for name in names)
        table = self.bins, self.first, self.begin, self.shards
        how = self._masked, self._packed
        while (missing := _fill(table, self._order, places, arrays, wanted, how, begin)) >= 0:
            self._map(missing)

    def _bins(self, path: Path) -> list[int]:
        batch = open_batch(path)
        flat = batch.column("rows").values
        pieces = [self._address(flat.field(name)) for name in ("record", "start", "length")]
        return [self._offsets(batch.column("rows")), *pieces, self._address(batch.column("tokens"))]

    def _map(self, index: int) -> None:
        shard = self._shards[index]
        self.shards[index, :4] = self._lists(open_batch(shard.tokens))
        if shard.fitted is not None:
            batch = open_batch(shard.fitted)
            known = batch.column("row")
            self.shards[index, 4:10] = [self._address(known), len(known), *self._lists(batch)]
        self.shards[index, 10] = 1

    def _lists(self, batch: pa.RecordBatch) -> list[int]:
        names = ("ids", "mask") if self._masked else ("ids",)
        columns = [batch.column(name) for name in names]
        found = [at for column in columns for at in (self._address(column.values), self._offsets(column))]
        return found if self._masked else [*found, 0, 0]

    def _address(self, numbers: pa.Array) -> int:
        """Where the first number lies; 0 where there is none."""
        return self._keep(numbers.buffers()[1], numbers.offset * numbers.type.bit_width // 8)

    def _offsets(self, lists: pa.ListArray) -> int:
        return self._keep(lists.buffers()[1], lists.offset * lists.offsets.type.bit_width // 8)

    def _keep(self, buffer: pa.Buffer | None, skipped: int) -> int:
        self._kept.append(buffer)
        return 0 if buffer is None else int(buffer.address) + skipped


def _pointer(kind: Any) -> Any:
    """A compiled cast of an address to a pointer to ``kind``."""

    @intrinsic
    def cast(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        pointer: Any = types.CPointer
        return pointer(kind)(types.int64), generate

    return cast


_bytes, _ints, _longs = _pointer(types.uint8), _pointer(types.int32), _pointer(types.int64)


@njit(nogil=True, cache=True)
def _row(order, place):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The source at a place, and the row there."""
    source, row = order
    return (np.int64(source[place]), row[place]) if len(row) else (np.int64(0), np.int64(place))


@njit(nogil=True, cache=True)
def _lengths(bins, order, places, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    for i in range(len(places)):
        source, row = _row(order, places[i])
        out[i] = carray(_longs(bins[source, 4]), (row + 1,))[row]


@njit(nogil=True, cache=True)
def _find(values, low, high, wanted):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The last place in ``low..high`` whose value is at most ``wanted``; ``low - 1`` where there is none."""
    while low < high:
        middle = (low + high) // 2
        if values[middle] <= wanted:
            low = middle + 1
        else:
            high = middle
    return low - 1


@njit(nogil=True, cache=True)
def _fill(table, order, places, arrays, wanted, how, begin):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Fill the arrays; returns the index of a shard that must be mapped first, or -1 when all is written."""
    bins, first, shard_begin, shards = table
    ids_out, labels_out, positions_out, ones_out = arrays
    want_ids, want_labels, want_positions, want_ones = wanted
    masked, packed = how
    for i in range(len(places)):
        (s, row), at = _row(order, places[i]), begin[i]
        edges = carray(_ints(bins[s, 0]), (row + 2,))
        low, high = edges[row], edges[row + 1]
        records = carray(_longs(bins[s, 1]), (high,))
        starts, lengths = carray(_ints(bins[s, 2]), (high,)), carray(_ints(bins[s, 3]), (high,))
        for piece in range(low, high):
            k = _find(shard_begin, first[s], first[s + 1], records[piece])
            if shards[k, 10] == 0:
                return k
            local, column = records[piece] - shard_begin[k], 0
            if shards[k, 5] > 0:
                known = carray(_longs(shards[k, 4]), (shards[k, 5],))
                place = _find(known, 0, shards[k, 5], local)
                if place >= 0 and known[place] == local:
                    local, column = place, 6
            n, start = lengths[piece], starts[piece]
            a = carray(_ints(shards[k, column + 1]), (local + 1,))[local] + start
            ids = carray(_ints(shards[k, column]), (a + n,))[a:]
            # Loops over views from 0 on: plain index arithmetic keeps the compiler from using wide instructions.
            if want_ids:
                view = ids_out[at : at + n]
                for j in range(n):
                    view[j] = ids[j]
            if want_labels:
                view = labels_out[at : at + n]
                if masked:
                    b = carray(_ints(shards[k, column + 3]), (local + 1,))[local] + start
                    mask = carray(_bytes(shards[k, column + 2]), (b + n,))[b:]
                    for j in range(n):
                        view[j] = ids[j] if mask[j] else IGNORED
                else:
                    for j in range(n):
                        view[j] = ids[j]
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
