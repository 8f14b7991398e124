"""Rows straight from the mapped tokens into the arrays of a batch.

Every buffer that a row is made of (bins, lengths, tokens, masks) has its address in a small table, so that one compiled
call walks from places to tokens and copies each once, widened to int64. Cost of a batch: its tokens and about ten
microseconds. A shard is mapped when a row first needs it; the table keeps what it maps alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import open_batch
from datamix.core.kernels import Kernel, address
from datamix.pipeline.shards import TokenShard

_LENGTHS = Kernel("pipeline", "fill", "lengths")
_FILL = Kernel("pipeline", "fill", "fill")
_COLUMNS = ("input_ids", "labels", "position_ids", "attention_mask")
Order = tuple[NDArray[np.uint16], NDArray[np.int64]]


class AddressTable:
    """Addresses of the numbers of every source of a split.

    ``order`` is the source and its row at each place; both are empty where places are the rows of the only source.
    """

    def __init__(
        self,
        order: Order,
        bins: Sequence[Path],
        shards: Sequence[Sequence[TokenShard]],
        masked: bool,
        packed: bool,
    ) -> None:
        self._masked, self._how = masked, (masked, packed)
        self._shards = [shard for group in shards for shard in group]
        self._mapped: list[Any] = [order]  # what addresses point into
        self._fills: dict[tuple[str, ...], Callable[..., int]] = {}
        tables: list[list[int]] = []
        for path in bins:
            batch = open_batch(path)
            flat = batch.column("rows").values
            pieces = [self._address(flat.field(name)) for name in ("record", "start", "length")]
            tables.append(
                [self._offsets(batch.column("rows")), *pieces, self._address(batch.column("tokens"))]
            )
        self.bins = np.array(tables, np.int64).reshape(-1, 5)
        self.first = np.cumsum([0, *(len(group) for group in shards)])  # [num_sources + 1] shards
        begins = [np.cumsum([0, *(s.num_rows for s in group)])[:-1] for group in shards]
        self.begin = np.concatenate(begins).astype(np.int64)  # [num_shards] first record, in its source
        # addresses; the last says that the shard is mapped
        self.shards = np.zeros((len(self._shards), 11), np.int64)
        source, row = order
        self._order = (source.ctypes.data, row.ctypes.data) if len(row) else (0, 0)  # mapped, read only

    @cached_property
    def _lengths(self) -> Callable[..., int]:
        return _LENGTHS.bound(address(self.bins), self._order, num_rest=3)

    def lengths(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each row. ``[num_rows]``."""
        out = np.empty(len(places), np.int64)
        self._lengths(len(places), address(places), address(out))
        return out

    def fill(
        self,
        block: NDArray[np.int64],
        columns: Sequence[str],
        places: NDArray[np.int64],
        begin: NDArray[np.int64],
    ) -> None:
        """Copy the columns of each row to ``block[:, begin[i]:]``; padding is left alone."""
        names = tuple(columns)
        if names not in self._fills:
            table = address(self.bins), address(self.first), address(self.begin), address(self.shards)
            lines = tuple(names.index(name) if name in names else -1 for name in _COLUMNS)
            self._fills[names] = _FILL.bound(table, self._order, self._how, lines, num_rest=5)
        call = len(places), address(places), address(begin), address(block), block.shape[1]
        while (missing := self._fills[names](*call)) >= 0:
            shard = self._shards[missing]
            self.shards[missing, :4] = self._lists(open_batch(shard.tokens))
            if shard.fitted is not None:
                batch = open_batch(shard.fitted)
                known = batch.column("row")
                self.shards[missing, 4:10] = [self._address(known), len(known), *self._lists(batch)]
            self.shards[missing, 10] = 1

    def _lists(self, batch: pa.RecordBatch) -> list[int]:
        names = ("ids", "mask") if self._masked else ("ids",)
        columns = [batch.column(name) for name in names]
        addresses = [at for column in columns for at in (self._address(column.values), self._offsets(column))]
        return addresses if self._masked else [*addresses, 0, 0]

    def _address(self, numbers: pa.Array) -> int:
        """Address of the first number; 0 where there is none."""
        return self._map(numbers.buffers()[1], numbers.offset * numbers.type.bit_width // 8)

    def _offsets(self, lists: pa.ListArray) -> int:
        return self._map(lists.buffers()[1], lists.offset * lists.offsets.type.bit_width // 8)

    def _map(self, buffer: pa.Buffer | None, skipped: int) -> int:
        self._mapped.append(buffer)
        return 0 if buffer is None else int(buffer.address) + skipped
