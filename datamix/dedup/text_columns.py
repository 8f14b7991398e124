"""Signatures and texts of one source, in memory-mapped Arrow files or in memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.arrays import lists_by_row, offsets_from_lengths, parent_rows
from datamix.core.errors import DataError
from datamix.core.hashing import fixed_binary
from datamix.core.records import Fields, RecordKind, texts
from datamix.dedup.spec import DedupeSpec


@dataclass(frozen=True)
class Columns:
    """The batches of ``sign`` of one source, and the texts that were signed (None: no longer available)."""

    signatures: list[pa.RecordBatch]
    texts: list[pa.Array] | None
    files: tuple[MappedFile, ...] = ()  # that hold them, if they are mapped
    starts: NDArray[np.int64] = field(init=False)  # [num_batches + 1] first record of each batch

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", offsets_from_lengths([len(batch) for batch in self.signatures]))
        if self.texts is not None and sum(map(len, self.texts)) != self.num_records:
            raise DataError(
                f"dedupe: {self.num_records} signatures, but {sum(map(len, self.texts))} texts. Sign the "
                f"records again."
            )

    def release(self) -> None:
        """Give back the memory of all pages that were read."""
        for file in self.files:
            file.release()

    @property
    def num_records(self) -> int:
        return int(self.starts[-1])

    def exact_halves(self, half: int, out: NDArray[np.uint64]) -> None:
        """Write the lower (0) or upper (1) half of the exact keys to ``out [num_records]``."""
        for batch, start in zip(self.signatures, self.starts.tolist(), strict=False):
            out[start : start + len(batch)] = fixed_binary(batch.column("exact")).view(np.uint64)[:, half]

    def band(self, band: int, out: NDArray[np.uint64]) -> None:
        """Write the keys of one band to ``out [num_records]``."""
        for batch, start in zip(self.signatures, self.starts.tolist(), strict=False):
            out[start : start + len(batch)] = as_numpy(batch.column("bands").field(band))

    def numbers(self, name: str) -> NDArray[np.int64]:
        """A column of integers, over all records."""
        parts = [as_numpy(batch.column(name)) for batch in self.signatures]
        return np.concatenate(parts).astype(np.int64, copy=False) if parts else np.empty(0, np.int64)

    def sketches(self, records: NDArray[np.int64]) -> NDArray[np.int64]:
        """Addresses of the sketches of ascending ``records``."""
        addresses = np.empty(len(records), np.int64)
        for batch, rows, place in _split(records, self.signatures):
            column = batch.column("sketch")
            width = column.type.byte_width
            addresses[place] = column.buffers()[1].address + (rows + column.offset) * width
        return addresses

    def places(self, records: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Addresses and bytes of the texts of ascending ``records``; -1 bytes where there are no texts."""
        addresses = np.zeros(len(records), np.int64)
        lengths = np.full(len(records), -1, np.int64)
        for array, rows, place in _split(records, self.texts or []):
            part = places(array)
            addresses[place], lengths[place] = part.addresses[rows], part.lengths[rows]
        return addresses, lengths


def _split(
    records: NDArray[np.int64], parts: Sequence[pa.Array | pa.RecordBatch]
) -> Iterator[tuple[Any, NDArray[np.int64], slice]]:
    """For each part with some of the ascending records: the part, their rows in it, their slice of ``records``."""
    start = 0
    for part in parts:
        low, high = np.searchsorted(records, (start, start + len(part)))
        if low < high:
            yield part, records[low:high] - start, slice(low, high)
        start += len(part)


def open_signed(
    signatures: Sequence[str], batches: Sequence[str], kind: RecordKind, spec: DedupeSpec
) -> Columns:
    """Map the files of one source. Raises DataError where the signatures do not fit the spec."""
    files = [map_file(path) for path in signatures]
    signed = [batch for file in files for batch in file.batches]
    if spec.near is None:
        return Columns(signed, None, tuple(files))
    for batch in signed:
        names = batch.schema.names
        width = batch.column("bands").type.num_fields if "bands" in names else 0
        if width != spec.near.banding[0]:
            raise DataError(
                f"dedupe: the signatures in {signatures[0]} have {width} bands, but {spec.near.banding[0]} "
                f"are asked for. Sign the records again with this spec."
            )
    if kind != "text" and all("near_text" in batch.schema.names for batch in signed):
        return Columns(signed, [batch.column("near_text") for batch in signed], tuple(files))
    if kind != "text" or not batches:
        return Columns(signed, None, tuple(files))
    records = [map_file(path) for path in batches]
    texts = [batch.column("text") for file in records for batch in file.batches]
    return Columns(signed, texts, (*files, *records))


@dataclass(frozen=True)
class MappedFile:
    """An Arrow IPC file in memory as far as it is touched."""

    memory: mmap.mmap | None  # None: the file is empty
    batches: list[pa.RecordBatch]

    def release(self) -> None:
        """Give back the memory of pages that were read; they are read again when they are touched."""
        if self.memory is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED)


def map_file(path: str) -> MappedFile:
    """Map an Arrow IPC file; an empty file holds no batches."""
    with open(path, "rb") as file:
        if file.seek(0, 2) == 0:
            return MappedFile(None, [])
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = pa.ipc.open_file(pa.py_buffer(memory))
    return MappedFile(memory, [reader.get_batch(i) for i in range(reader.num_record_batches)])


class Places(NamedTuple):
    """Texts by address. Valid only while the Arrow arrays they come from are alive."""

    addresses: NDArray[np.int64]  # [num_texts]
    lengths: NDArray[np.int64]  # [num_texts] bytes; null counts as the empty text


def places(array: pa.Array) -> Places:
    """Addresses of the texts of a string or large_string array, slices and nulls included.

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
    """As ``pa.array`` of numbers or flags, which imports pandas (0.2 s) where it is installed."""
    stored = np.packbits(values, bitorder="little") if values.dtype == bool else np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(stored)])


def as_numpy(column: pa.Array) -> NDArray[Any]:
    """A view of numbers without nulls; ``to_numpy`` imports pandas as well."""
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

    Two records with one long system turn are not near duplicates for it; that turn must be equal instead
    (``contexts``), so that the same question to two personas stays twice.
    """
    if kind == "text" or fields == "answer":
        return texts(batch, kind, fields)
    messages = batch.column("messages")
    turns = messages.flatten()
    others = pc.not_equal(turns.field("role"), "system").fill_null(True)
    if pc.all(others).as_py() is False:
        rows = parent_rows(messages)[others.to_numpy(zero_copy_only=False)]
        place = batch.schema.get_field_index("messages")
        columns = batch.columns
        columns[place] = lists_by_row(turns.filter(others), rows, len(batch))
        batch = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    return texts(batch, kind, fields)


def contexts(batch: pa.RecordBatch, kind: RecordKind) -> pa.Array:
    """What near duplicates must share: system turns and tools, null where a record has neither."""
    if kind == "text":
        return pa.nulls(len(batch), pa.string())
    messages = batch.column("messages")
    turns = messages.flatten()
    system = pc.equal(turns.field("role"), "system").fill_null(False)
    rows = parent_rows(messages)[system.to_numpy(zero_copy_only=False)]
    lists = lists_by_row(turns.field("content").filter(system).fill_null(""), rows, len(batch))
    joined = pc.if_else(pc.equal(pc.list_value_length(lists), 0), None, pc.binary_join(lists, "\x1e"))
    tools = batch.column("tools")
    # "skip" would drop rows in which both are null
    both = pc.binary_join_element_wise(joined, tools, "\x1d", null_handling="replace", null_replacement="")
    return pc.if_else(pc.and_(joined.is_null(), tools.is_null()), None, both)
