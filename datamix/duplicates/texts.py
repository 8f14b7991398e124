"""Where texts lie in memory, and the texts of a record that dedupe compares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.records import Fields, RecordKind, texts


class Places(NamedTuple):
    """Texts by address. Valid only while the Arrow arrays they come from are alive."""

    addresses: NDArray[np.int64]  # [num_texts]
    lengths: NDArray[np.int64]  # [num_texts] bytes; null counts as the empty text


def places(array: pa.Array) -> Places:
    """Where the texts of a string or large_string array lie; slices and nulls are minded.

    Raises TypeError for other arrays: kernels read raw buffers.
    """
    large = pa.types.is_large_string(array.type)
    if not large and not pa.types.is_string(array.type):
        raise TypeError(f"texts must be string or large_string, not {array.type}")
    _validity, offset_buffer, values = array.buffers()
    if len(array) == 0 or values is None:
        return Places(np.zeros(len(array), np.int64), np.zeros(len(array), np.int64))
    width = np.dtype(np.int64 if large else np.int32)
    offsets = np.frombuffer(offset_buffer, width, len(array) + 1, array.offset * width.itemsize).astype(
        np.int64
    )
    lengths = np.diff(offsets)
    if array.null_count:
        lengths[pc.is_null(array).to_numpy(zero_copy_only=False)] = 0
    return Places(values.address + offsets[:-1], lengths)


def numbers(values: NDArray[Any]) -> pa.Array:
    """As ``pa.array`` of numbers or flags. That, like ``pa.scalar``, imports pandas (0.2 s) where it is installed."""
    stored = np.packbits(values, bitorder="little") if values.dtype == bool else np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(stored)])


def as_numpy(column: pa.Array) -> NDArray[Any]:
    """The values of numbers without nulls where they lie; ``to_numpy`` imports pandas as well."""
    dtype = np.dtype(column.type.to_pandas_dtype())
    if len(column) == 0:
        return np.empty(0, dtype)
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * dtype.itemsize)


def flat_texts(column: pa.Array | pa.ChunkedArray) -> Iterable[pa.Array]:
    """The chunks of a text column as string or large_string arrays (dictionaries and views are written out).

    Raises TypeError where the column is not text.
    """
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        if pa.types.is_dictionary(chunk.type):
            chunk = chunk.dictionary_decode()
        if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
            yield chunk
        elif pa.types.is_null(chunk.type) or pa.types.is_string_view(chunk.type):
            yield chunk.cast(pa.large_string())
        else:
            raise TypeError(f"a text column is needed, not one of type {chunk.type}")


def near_texts(batch: pa.RecordBatch, kind: RecordKind, fields: Fields) -> pa.Array:
    """The texts whose n-grams are compared: those of ``fields`` without the system turns.

    Two records with one long system turn are not near duplicates for it; what stands in it must be equal instead
    (``contexts``), so that the same question to two personas stays twice.
    """
    if kind == "text" or fields == "answer":
        return texts(batch, kind, fields)
    return texts(_without_system(batch), kind, fields)


def contexts(batch: pa.RecordBatch, kind: RecordKind) -> pa.Array:
    """What must be equal for two records to be near duplicates: system turns and tools, null where there are none."""
    if kind == "text":
        return pa.nulls(len(batch), pa.string())
    messages = batch.column("messages")
    turns = messages.flatten()
    system = pc.equal(turns.field("role"), "system").fill_null(False)
    rows = pc.list_parent_indices(messages).filter(system).to_numpy(zero_copy_only=False)
    offsets = _offsets(rows, len(batch))
    lists = pa.ListArray.from_arrays(pa.array(offsets), turns.field("content").filter(system).fill_null(""))
    joined = pc.if_else(pc.equal(pc.list_value_length(lists), 0), None, pc.binary_join(lists, "\x1e"))
    tools = batch.column("tools")
    some = pc.binary_join_element_wise(
        joined, tools, "\x1d", null_handling="replace", null_replacement=""
    )  # "skip" would drop rows in which both are null
    return pc.if_else(pc.and_(joined.is_null(), tools.is_null()), None, some)


def _without_system(batch: pa.RecordBatch) -> pa.RecordBatch:
    messages = batch.column("messages")
    turns = messages.flatten()
    others = pc.not_equal(turns.field("role"), "system").fill_null(True)
    if pc.all(others).as_py() is not False:
        return batch
    rows = pc.list_parent_indices(messages).filter(others).to_numpy(zero_copy_only=False)
    lists = pa.ListArray.from_arrays(pa.array(_offsets(rows, len(batch))), turns.filter(others))
    place = batch.schema.get_field_index("messages")
    columns = [lists if i == place else column for i, column in enumerate(batch.columns)]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _offsets(rows: NDArray[np.int64], num_rows: int) -> NDArray[np.int32]:
    offsets = np.zeros(num_rows + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=num_rows), out=offsets[1:])
    return offsets
