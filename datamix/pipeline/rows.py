"""Rows of the training set, gathered from tokens on disk in the order of the schedule.

Tokens are copied once, from the memory map into the arrays of the batch. Memory: one batch of about two million tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import open_batch
from datamix.core.records import SCHEMAS
from datamix.exporters import SetInfo, Weighing
from datamix.pipeline.gather_tokens import AddressTable
from datamix.pipeline.source_rows import RowView, SourceColumns, SourceRows, trainer_columns

_BATCH_TOKENS = 1 << 21
_BATCH_ROWS = 4096


@dataclass(frozen=True)
class RowSet:
    """One split of a set as integers and names of files: enough to make any of its rows."""

    info: SetInfo
    sources: tuple[SourceRows, ...]
    num_rows: int
    order: Path | None  # None: the rows of the only source, as they stand (validation)
    stage_ends: tuple[int, ...]


class RecordTexts:
    """The words of emitted records, for formats that hold text: found again by (file, record)."""

    def __init__(self, sources: Sequence[SourceRows]) -> None:
        self._sources = [SourceColumns(s) for s in sources]
        self._at: dict[int, tuple[int, NDArray[np.int64], NDArray[np.int64]]] | None = None

    def fetch_many(self, files: NDArray[np.int64], records: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Records as their rows of ``records.SCHEMAS``, in the order asked; one read a source."""
        if self._at is None:
            self._at = self._places()
        found: list[dict[str, Any]] = [{}] * len(files)
        rows = np.empty(len(files), np.int64)
        source_of = np.empty(len(files), np.int64)
        for file in np.unique(files):
            here = np.flatnonzero(files == file)
            source_of[here], known, known_rows = self._at[int(file)]
            rows[here] = known_rows[np.searchsorted(known, records[here])]
        for number in np.unique(source_of):
            here = np.flatnonzero(source_of == number)
            source = self._sources[number]
            table = source.records.take(rows[here], SCHEMAS[source.kind].names)
            for place, record in zip(here.tolist(), table.to_pylist(), strict=True):
                found[place] = record
        return found

    def _places(self) -> dict[int, tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Of each file: its source, its records in order, and their rows in that source."""
        places: dict[int, tuple[int, NDArray[np.int64], NDArray[np.int64]]] = {}
        for number, source in enumerate(self._sources):
            files, records = source.identities
            for name in np.unique(files):
                rows = np.flatnonzero(files == name)
                places[int(name)] = (number, records[rows], rows)
        return places


class RowReader:
    """Any rows of a set, by their places in the training order."""

    lengths_at_hand = True

    def __init__(self, rows: RowSet) -> None:
        self._set = rows
        self._sources = [SourceColumns(s) for s in rows.sources]
        self._stage_ends = np.array(rows.stage_ends, np.int64)

    @cached_property
    def _order(self) -> tuple[NDArray[np.uint16], NDArray[np.int64]] | None:
        if self._set.order is None:
            return None
        order = open_batch(self._set.order)
        # to_numpy loads pandas
        sources, rows = (order.column(name).buffers()[1] for name in ("source", "row"))
        return np.frombuffer(sources, np.uint16, len(order)), np.frombuffer(rows, np.int64, len(order))

    def __len__(self) -> int:
        return self._set.num_rows

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._set.info.schema.names)

    def locate(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which source, and which of its rows, stands at each place."""
        if self._order is None:
            return np.zeros(len(places), np.int64), places
        source, row = self._order
        return source[places].astype(np.int64), row[places].astype(np.int64)

    def read(self, places: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """The rows at some places, in the order asked; source and stage need no token reads."""
        info, wanted = self._set.info, list(columns or self.columns)
        source_of, row_of = self.locate(places)
        stage_of = np.minimum(np.searchsorted(self._stage_ends, places, side="right"), len(info.stages) - 1)
        found = {
            "source": _named([s.name for s in self._sources], source_of),
            "stage": _named(info.stages, stage_of),
        }
        if "weight" in wanted:
            trained = [s.loss_tokens for s in self._sources]
            found["weight"] = weights(info.weighing, trained, source_of, row_of)
        if not found.keys() >= set(wanted):
            view = RowView(self._sources, source_of, row_of)
            found |= {"records": view.records(), **trainer_columns(info, view)}
            if "meta" in wanted:
                found["meta"] = view.meta(info.packed)
        schema = pa.schema([info.schema.field(name) for name in wanted])
        return pa.RecordBatch.from_arrays([found[name] for name in wanted], schema=schema)

    @cached_property
    def _addresses(self) -> AddressTable:
        sources, info = self._set.sources, self._set.info
        shards = [s.source.shards for s in sources]
        order = self._order or (np.empty(0, np.uint16), np.empty(0, np.int64))
        return AddressTable(order, [s.bins for s in sources], shards, info.kind == "sft", info.packed)

    def num_tokens(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the rows at some places."""
        return self._addresses.lengths(places)

    def fill(
        self,
        block: NDArray[np.int64],
        columns: Sequence[str],
        places: NDArray[np.int64],
        begin: NDArray[np.int64],
    ) -> None:
        """Copy the columns of each row to ``block[:, begin[i]:]``."""
        self._addresses.fill(block, columns, places, begin)

    def table(self, columns: Sequence[str], start: int, stop: int) -> pa.Table:
        """Rows ``start..stop`` as they are."""
        return pa.Table.from_batches([self.read(np.arange(start, stop), columns)])

    def batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Rows ``start..stop`` in batches of about two million tokens."""
        for a, b in _cuts(self.num_tokens(np.arange(start, stop))):
            yield self.read(np.arange(start + a, start + b))

    def __reduce__(self) -> tuple[type[RowReader], tuple[RowSet]]:
        return RowReader, (self._set,)  # another process maps the files itself


def _cuts(tokens: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    start = 0
    total = np.concatenate([[0], np.cumsum(tokens)])
    while start < len(tokens):
        stop = int(np.searchsorted(total, total[start] + _BATCH_TOKENS, side="right")) - 1
        stop = min(max(stop, start + 1), start + _BATCH_ROWS, len(tokens))
        yield start, stop
        start = stop


def _named(names: Sequence[str], codes: NDArray[np.int64]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(
        pa.array(codes.astype(np.int32)), pa.array(names, pa.string())
    ).cast(pa.string())


def weights(
    how: Weighing | None,
    loss_tokens: Sequence[NDArray[np.int64]],
    source_of: NDArray[np.int64],
    row_of: NDArray[np.int64],
) -> pa.Array:
    """The weight of row ``row_of[i]`` of source ``source_of[i]``; ``loss_tokens[s]`` are those of the rows of source s."""
    from datamix import mix

    assert how is not None, "the schema has a weight only where rows are weighed"
    own = np.zeros(len(row_of), np.int64)
    for number in np.unique(source_of):
        here = source_of == number
        own[here] = loss_tokens[number][row_of[here]]
    wanted: mix.LossNorm = "example" if how.trainer == "token" else "token"
    return pa.array(mix.row_weights(own, how.trainer, wanted, how.mean_loss_tokens))
