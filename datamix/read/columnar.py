"""Parquet and Arrow files to rows, a batch at a time.

A slice is a range of row groups (Parquet) or record batches (Arrow file). A null inside a struct is an absent
key: writers fill the fields that other rows have with nulls. Values that JSON lacks become text: times and
dates in ISO 8601, decimals by their digits, bytes as UTF-8, where a byte that is not becomes a lone surrogate,
so that a record made of it is rejected and an unused column does no harm; NaN, which pandas writes for
"missing", is null. A compressed Parquet or Arrow file is unpacked into an unnamed temporary file first, since
both are read from their end. Memory: a batch of about 8 MiB, or the longest value.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datamix.core.contracts import Reject, Rows, Slice
from datamix.core.errors import DataError, shown_name
from datamix.read.decompress import full_blocks, open_stream
from datamix.read.lines import MAX_RECORD_BYTES
from datamix.read.storage import State, check_unchanged, is_remote, open_file

_CHUNK_BYTES = 8 << 20


def read_parquet(piece: Slice, chunk_records: int) -> Iterator[Rows]:
    """The rows of a range of row groups."""
    with opened(piece.path, piece.compression, piece.state) as source:
        parquet = pq.ParquetFile(source)
        stop = parquet.num_row_groups if piece.stop is None else piece.stop
        groups = range(piece.start, min(stop, parquet.num_row_groups))
        sizes = [parquet.metadata.row_group(group) for group in groups]
        steps = [_step(size.total_byte_size, size.num_rows, chunk_records) for size in sizes]
        batches = (parquet.iter_batches(s, row_groups=[g]) for s, g in zip(steps, groups, strict=True))
        yield from _rows(chain.from_iterable(batches), chunk_records)


def read_arrow(piece: Slice, chunk_records: int) -> Iterator[Rows]:
    """The rows of a range of record batches of an Arrow file, or of a whole Arrow stream."""
    with opened(piece.path, piece.compression, piece.state) as source:
        if piece.container == "arrow_stream":
            yield from _rows(pa.ipc.open_stream(source), chunk_records)
            # a stream cut between two batches reads without an error: only its missing end mark shows it
            source.seek(max(source.tell() - 8, 0))
            if source.read(8) != b"\xff\xff\xff\xff\x00\x00\x00\x00":
                raise pa.ArrowInvalid("the stream has no end mark")
            return
        file = pa.ipc.open_file(source)
        stop = file.num_record_batches if piece.stop is None else piece.stop
        indices = range(piece.start, min(stop, file.num_record_batches))
        yield from _rows((file.get_batch(i) for i in indices), chunk_records)


def record_batches(piece: Slice) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow file or stream, as they are stored."""
    with opened(piece.path, piece.compression, piece.state) as source:
        if piece.container == "arrow_stream":
            yield from pa.ipc.open_stream(source)
        else:
            file = pa.ipc.open_file(source)
            yield from (file.get_batch(i) for i in range(file.num_record_batches))


def num_parts(path: str, container: str) -> tuple[int, list[int]]:
    """How many row groups or batches a file has, and the bytes of each where the file stores them."""
    with opened(path, None) as source:
        if container == "parquet":
            metadata = pq.ParquetFile(source).metadata
            sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
            return len(sizes), sizes
        return pa.ipc.open_file(source).num_record_batches, []


def _rows(batches: Iterable[pa.RecordBatch], chunk_records: int) -> Iterator[Rows]:
    record = 0
    for part, is_utf8 in _parts(batches, chunk_records):
        rejects = [] if is_utf8 else _not_utf8(part, record)
        if part.num_rows == 1 and part.nbytes > MAX_RECORD_BYTES:
            detail = f"{part.nbytes} bytes, more than {MAX_RECORD_BYTES >> 20} MiB"
            rejects = [Reject(record, None, "too_long", detail, b"")]
        bad = {reject.record - record for reject in rejects}
        sound = [i for i in range(part.num_rows) if i not in bad]
        values = _values(part.take(pa.array(sound, pa.int64())) if bad else part)
        yield Rows(values, [record + i for i in sound], [None] * len(sound), [b""] * len(sound), rejects)
        record += part.num_rows


def _parts(batches: Iterable[pa.RecordBatch], chunk_records: int) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """Batches of about ``_CHUNK_BYTES``, and whether their texts are UTF-8; rows alone where one may be above the bound.

    Raises ArrowInvalid where the file is damaged: offsets then point anywhere in memory.
    """
    for batch in batches:
        is_utf8 = True
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid:
            for column in batch.columns:
                column.view(_as_bytes(column.type)).validate(full=True)
            is_utf8 = False
        # of a dictionary every slice counts the whole
        columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
        batch = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
        step = _step(batch.nbytes, batch.num_rows, chunk_records)
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            is_long = part.nbytes > MAX_RECORD_BYTES
            yield from (
                ((part.slice(i, 1), is_utf8) for i in range(part.num_rows)) if is_long else [(part, is_utf8)]
            )


def _step(num_bytes: int, num_rows: int, chunk_records: int) -> int:
    """How many rows are about ``_CHUNK_BYTES``."""
    return max(min(_CHUNK_BYTES * num_rows // max(num_bytes, 1), chunk_records), 1)


def _not_utf8(batch: pa.RecordBatch, record: int) -> list[Reject]:
    """Rejects for rows with text that is not UTF-8."""
    rejects: list[Reject] = []
    for i in range(batch.num_rows):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.slice(i, 1).validate(full=True)
            except pa.ArrowInvalid:
                stored = column.view(_as_bytes(column.type))[i].as_py()
                detail = f"column {name!r} holds bytes that are not UTF-8"
                raw = stored if isinstance(stored, bytes) else b""
                rejects.append(Reject(record + i, None, "utf8", detail, raw))
                break
    return rejects


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """A type with binary in the place of text: the same memory without the promise of UTF-8."""
    types = pa.types
    if types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_as_bytes(kind.key_type), _as_bytes(kind.item_type))
    if types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _as_bytes(kind.value_type), kind.ordered)
    for is_list, make in ((types.is_list, pa.list_), (types.is_large_list, pa.large_list)):
        if is_list(kind):
            return make(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)), kind.list_size)
    return {
        pa.string(): pa.binary(),
        pa.large_string(): pa.large_binary(),
        pa.string_view(): pa.binary_view(),
    }.get(kind, kind)


def _values(batch: pa.RecordBatch) -> list[Any]:
    """Rows as JSON has them."""
    names = batch.schema.names
    columns: list[list[Any]] = []
    for column in batch.columns:
        try:
            cells = column.to_pylist()
        except (ValueError, OverflowError, LookupError):  # a date that Python does not have
            cells = [_cell(cell) for cell in column]
        columns.append(cells if _is_json(column) else [_plain(cell) for cell in cells])
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _is_json(column: pa.Array) -> bool:
    """Whether a column's values come out of Arrow as JSON has them."""
    kind, types = column.type, pa.types
    if types.is_struct(kind):
        fields = [column.field(i) for i in range(kind.num_fields)]
        return all(not field.null_count and _is_json(field) for field in fields)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_json(column.values)
    if types.is_dictionary(kind):
        return _is_json(column.dictionary)
    if types.is_floating(kind):
        return not bool(pc.any(pc.is_nan(column)).as_py())
    checks = (types.is_string, types.is_large_string, types.is_string_view)
    return any(check(kind) for check in (*checks, types.is_integer, types.is_boolean, types.is_null))


def _cell(cell: pa.Scalar) -> Any:
    """A value one part at a time; a date beyond Python's years as Arrow writes it."""
    if cell.is_valid and isinstance(cell, pa.StructScalar):
        return {name: _cell(part) for name, part in cell.items()}
    if cell.is_valid and isinstance(cell, pa.ListScalar):
        return [_cell(part) for part in cell]
    try:
        return cell.as_py()
    except (ValueError, OverflowError, LookupError):
        try:
            return cell.cast(pa.string()).as_py()
        except pa.ArrowException:
            return str(cell)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, dict):  # a field that other rows have is null here: the row does not have it
        cells = {key: _plain(item) for key, item in value.items()}
        return {key: cell for key, cell in cells.items() if cell is not None}
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) and len(item) == 2 for item in value):  # an Arrow map
            return {str(_plain(key)): _plain(item) for key, item in value}
        return [_plain(item) for item in value]
    if isinstance(value, bytes):  # what is not UTF-8 becomes lone surrogates, which no record may hold
        return value.decode("utf-8", "surrogateescape")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


@contextmanager
def opened(path: str, compression: str | None, state: State = ()) -> Iterator[Any]:
    """A file that Arrow can seek in; what Arrow throws while it is read becomes a DataError."""
    try:
        if compression is not None:
            with open_stream(path, compression, state) as stream, tempfile.TemporaryFile() as unpacked:
                for block in full_blocks(stream):
                    unpacked.write(block)
                unpacked.seek(0)
                yield pa.PythonFile(unpacked, "r")
        elif is_remote(path):
            with open_file(path) as stored:
                yield pa.PythonFile(stored, "r")
        else:
            with pa.OSFile(path, "rb") as local:
                check_unchanged(path, state, os.fstat(local.fileno()))
                yield local
                check_unchanged(path, state, os.fstat(local.fileno()))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        detail = " ".join(str(error).split())[:300].rstrip(".")
        raise DataError(
            f"{shown_name(path)}: damaged or truncated: {detail}. Download or copy it again, or write it again "
            "with pyarrow."
        ) from error
