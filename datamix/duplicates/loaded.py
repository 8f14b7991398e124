"""Signatures and texts of one source, as they lie in memory-mapped Arrow files or in memory."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.duplicates.spec import DedupeSpec
from datamix.duplicates.texts import as_numpy, places
from datamix.errors import DataError
from datamix.identity import fixed_binary
from datamix.records import RecordKind


@dataclass(frozen=True)
class Columns:
    """The batches of ``sign`` of one source, and the texts that were signed (None: they are gone)."""

    signatures: list[pa.RecordBatch]
    texts: list[pa.Array] | None
    files: tuple[MappedFile, ...] = ()  # where they lie, if they are mapped
    starts: NDArray[np.int64] = field(init=False)  # [num_batches + 1] first record of each batch

    def __post_init__(self) -> None:
        starts = np.cumsum([0, *(len(batch) for batch in self.signatures)], dtype=np.int64)
        object.__setattr__(self, "starts", starts)
        if self.texts is not None and sum(map(len, self.texts)) != self.num_records:
            raise DataError(
                f"dedupe: {self.num_records} signatures, but {sum(map(len, self.texts))} texts. Sign the records again."
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
        """Addresses and bytes of the texts of ascending ``records``; -1 bytes where texts are gone."""
        addresses = np.zeros(len(records), np.int64)
        lengths = np.full(len(records), -1, np.int64)
        for array, rows, place in _split(records, self.texts or []):
            found = places(array)
            addresses[place], lengths[place] = found.addresses[rows], found.lengths[rows]
        return addresses, lengths


def _split(records: NDArray[np.int64], parts: Sequence[pa.Array | pa.RecordBatch]):  # type: ignore[no-untyped-def]
    """For each part that holds some of the ascending records: the part, their rows in it, their slice of ``records``."""
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
                f"dedupe: the signatures in {signatures[0]} have {width} bands, but {spec.near.banding[0]} are asked "
                "for. Sign the records again with this spec."
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
