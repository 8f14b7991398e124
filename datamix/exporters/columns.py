"""Arrow rows as numpy, without a copy: ragged columns, pieces, and the token dtype a vocabulary asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import IGNORE_INDEX, Ragged, ragged
from datamix.core.errors import DataError


def pieces(batch: pa.RecordBatch) -> tuple[NDArray[np.int64], Ragged]:
    """Pieces a row as ``offsets`` ``[num_rows + 1]`` and piece lengths in tokens as a ragged column."""
    lists = batch.column("records")
    lengths = lists.values.field("length").to_numpy(zero_copy_only=True)
    offsets = lists.offsets.to_numpy().astype(np.int64, copy=False)
    return offsets, Ragged(lengths, offsets)


def piece_ends(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Where each piece ends among all tokens of the batch, ``[num_pieces]``: documents end to end."""
    _, lengths = pieces(batch)
    return np.cumsum(lengths.flat, dtype=np.int64)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 where every id fits, else uint32; both little-endian."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def as_tokens(ids: NDArray[np.generic], dtype: np.dtype[Any]) -> NDArray[np.generic]:
    """``ids`` in ``dtype``, nothing cut off.

    Raises:
        DataError: an id does not fit.
    """
    # a negative id is past every limit when it is seen as unsigned: one pass finds both
    unsigned = ids.view(f"<u{ids.dtype.itemsize}")
    signed_limit = (1 << 8 * ids.dtype.itemsize - 1) - 1
    if len(ids) and int(unsigned.max()) > min(int(np.iinfo(dtype).max), signed_limit):
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise DataError(
            f"token id {wrong} does not fit {dtype.name}, the dtype for the "
            "tokenizer's stated vocabulary; the rows were made with another tokenizer than the one beside them"
        )
    return unsigned.view(dtype) if unsigned.itemsize == dtype.itemsize else unsigned.astype(dtype)


def rechunk(batches: Iterable[pa.RecordBatch], num_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly ``num_rows`` (the last may be smaller), each in one chunk.

    However the rows came cut, the tables are the same: files cut by them have the same bytes.
    """
    return map(_table, regroup(batches, num_rows))


def regroup(batches: Iterable[pa.RecordBatch], num_rows: int) -> Iterator[list[pa.RecordBatch]]:
    """The same rows in lists of slices that hold exactly ``num_rows`` together (the last may hold fewer)."""
    waiting: list[pa.RecordBatch] = []
    held = 0
    for batch in batches:
        start = 0
        while held + len(batch) - start >= num_rows:
            stop = start + num_rows - held
            yield [*waiting, batch.slice(start, stop - start)]
            waiting, held, start = [], 0, stop
        if start < len(batch):
            waiting.append(batch.slice(start))
            held += len(batch) - start
    if held:
        yield waiting


def _table(batches: list[pa.RecordBatch]) -> pa.Table:
    """One compact copy: of a slice, Arrow's writers may put more of its buffers on disk than the slice."""
    empty = batches[0].slice(0, 0)
    columns = [
        pa.concat_arrays([*(batch.column(i) for batch in batches), empty.column(i)])
        for i in range(empty.num_columns)
    ]
    return pa.Table.from_arrays(columns, schema=empty.schema)


def first_schema(
    batches: Iterable[pa.RecordBatch], empty: pa.Schema
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema of the rows that come (``empty`` where none does) and the rows in it.

    Metadata is dropped and the elements of lists are called ``item``: Parquet calls them ``element``, and the same rows
    must be written alike whether they come from a build or from its files.
    """
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        return empty, rest
    schema = pa.schema([pa.field(field.name, _plain(field.type)) for field in first.schema])
    return schema, (_cast(batch, schema) for batch in chain([first], rest))


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(kind.field(i).name, _plain(kind.field(i).type)) for i in range(kind.num_fields)])
    return kind


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [_blank(column.cast(field.type)) for column, field in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _blank(column: pa.Array) -> pa.Array:
    """Zeros under the nulls of a number column: what stands there is anybody's, and would reach the file."""
    if not pa.types.is_floating(column.type) or not column.null_count:
        return column
    nulls = column.is_null().to_numpy(zero_copy_only=False)
    return pa.array(column.fill_null(0.0).to_numpy(), column.type, mask=nulls)


def write_ids(batch: pa.RecordBatch, stream: BinaryIO, dtype: np.dtype[Any]) -> None:
    """Append the ids of a batch."""
    stream.write(as_tokens(ragged(batch, "input_ids").flat, dtype).data)


def write_mask(batch: pa.RecordBatch, stream: BinaryIO) -> None:
    """Append one byte a token: 1 where its label counts."""
    stream.write((ragged(batch, "labels").flat != IGNORE_INDEX).view(np.uint8).data)


class Ends:
    """Where rows and documents end, in tokens from the start of the file; 8 bytes each."""

    def __init__(self) -> None:
        self._rows: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._documents: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]

    def add(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """Note a batch; return the ends of its documents ``[num_documents]``."""
        done = self._rows[-1][-1]
        lengths = ragged(batch, "input_ids").lengths
        if not len(lengths):
            return np.zeros(0, np.int64)
        self._rows.append(done + np.cumsum(lengths))
        self._documents.append(done + piece_ends(batch))
        return self._documents[-1]

    @property
    def rows(self) -> NDArray[np.int64]:
        """``[num_rows + 1]``, from 0."""
        return np.concatenate(self._rows)

    @property
    def documents(self) -> NDArray[np.int64]:
        """``[num_documents + 1]``, from 0."""
        return np.concatenate(self._documents)


def pour(
    batches: Iterable[pa.RecordBatch], tokens: BinaryIO, dtype: np.dtype[Any], mask: BinaryIO | None = None
) -> Ends:
    """Append the ids of all rows to ``tokens`` and, where asked, the mask of their labels; return the ends."""
    ends = Ends()
    for batch in batches:
        write_ids(batch, tokens, dtype)
        if mask is not None:
            write_mask(batch, mask)
        ends.add(batch)
    return ends
