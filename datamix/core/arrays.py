"""Arrow columns as numpy arrays and back, without copies where Arrow allows it: one spelling for all rooms.

A list column is ``values`` and ``offsets``: row ``i`` holds ``values[offsets[i]:offsets[i + 1]]``. Results of
tasks are Arrow IPC files of one batch, written whole and opened memory-mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.errors import DataError

IGNORE_INDEX = -100  # label of a token that is not trained (torch.nn.CrossEntropyLoss)


def offsets_from_lengths(
    lengths: Sequence[int] | NDArray[Any], dtype: type[np.integer[Any]] = np.int64
) -> NDArray[Any]:
    """``[2, 0, 3]`` -> ``[0, 2, 2, 5]``: where each row begins and the last one ends, ``[num_rows + 1]``."""
    offsets = np.zeros(len(lengths) + 1, dtype)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True)
class Ragged:
    """A list column: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``."""

    values: NDArray[Any]  # [offsets[-1]] at least
    offsets: NDArray[np.int64]  # [num_rows + 1]

    def __getitem__(self, i: int) -> NDArray[Any]:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    @property
    def flat(self) -> NDArray[Any]:
        """All rows end to end, ``[num_values]``."""
        return self.values[self.offsets[0] : self.offsets[-1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Values a row, ``[num_rows]``."""
        return np.diff(self.offsets)


def ragged(batch: pa.RecordBatch, name: str) -> Ragged:
    """A list-of-numbers column of a batch as views of its buffers. Raises DataError where a row is null."""
    column = batch.column(name)
    if column.null_count:
        raise DataError(f"column {name!r} holds {column.null_count} nulls where every row needs a list")
    offsets = column.offsets.to_numpy().astype(np.int64, copy=False)
    return Ragged(column.values.to_numpy(zero_copy_only=True), offsets)


def list_buffers(column: pa.ListArray) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Values and offsets of a list column as kernels take them, zero-copy."""
    return column.values.to_numpy(zero_copy_only=True), column.offsets.to_numpy(zero_copy_only=True)


def list_column(values: NDArray[Any] | pa.Array, lengths: NDArray[Any]) -> pa.ListArray:
    """``values`` cut by ``lengths`` into a list column."""
    return pa.ListArray.from_arrays(pa.array(offsets_from_lengths(lengths, np.int32)), pa.array(values))


def parent_rows(lists: pa.ListArray) -> NDArray[np.int64]:
    """The row of each value of a list column, ``[num_values]``."""
    rows: NDArray[np.int64] = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    return rows


def lists_by_row(values: pa.Array, rows: NDArray[np.int64], num_rows: int) -> pa.ListArray:
    """Values as a list column in which each is in the list of its row; ``rows`` ascend."""
    return list_column(values, np.bincount(rows, minlength=num_rows))


def row_dicts(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as dicts: lists of integers as numpy arrays, everything else as Python values."""
    columns: list[list[Any]] = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        integers = pa.types.is_list(column.type) and pa.types.is_integer(column.type.value_type)
        lists = ragged(batch, name) if integers and not column.null_count else None
        columns.append([lists[i] for i in range(len(batch))] if lists else column.to_pylist())
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """Write an Arrow IPC file of one batch, uncompressed, to be memory-mapped."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def open_batch(path: Path) -> pa.RecordBatch:
    """The only batch of an Arrow IPC file, memory-mapped; the map lives as long as the batch."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
