"""Signatures and texts of one source, as they lie in memory-mapped Arrow files or in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.dedupe.spec import DedupeSpec
from datamix.dedupe.texts import places
from datamix.errors import DataError
from datamix.identity import fixed_binary
from datamix.records import RecordKind


@dataclass(frozen=True)
class Columns:
    """The batches of ``sign`` of one source, and the texts that were signed (None: they are gone)."""

    signatures: list[pa.RecordBatch]
    texts: list[pa.Array] | None
    starts: NDArray[np.int64] = field(init=False)  # [num_batches + 1] first record of each batch

    def __post_init__(self) -> None:
        starts = np.cumsum([0, *(len(batch) for batch in self.signatures)], dtype=np.int64)
        object.__setattr__(self, "starts", starts)
        if self.texts is not None and sum(map(len, self.texts)) != self.num_records:
            raise DataError(
                f"dedupe: {self.num_records} signatures, but {sum(map(len, self.texts))} texts. Sign the records again."
            )

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
            out[start : start + len(batch)] = batch.column("bands").field(band).to_numpy()

    def numbers(self, name: str) -> NDArray[np.int64]:
        """A column of integers, over all records."""
        parts = [batch.column(name).to_numpy() for batch in self.signatures]
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
    signed = [batch for path in signatures for batch in map_batches(path)]
    if spec.near is not None:
        for batch in signed:
            names = batch.schema.names
            width = batch.column("bands").type.num_fields if "bands" in names else 0
            if width != spec.near.banding[0]:
                raise DataError(
                    f"dedupe: the signatures in {signatures[0]} have {width} bands, but {spec.near.banding[0]} are asked "
                    "for. Sign the records again with this spec."
                )
    if spec.near is None:
        return Columns(signed, None)
    if all("near_text" in batch.schema.names for batch in signed) and kind != "text":
        return Columns(signed, [batch.column("near_text") for batch in signed])
    if kind == "text" and batches:
        return Columns(signed, [b.column("text") for path in batches for b in map_batches(path)])
    return Columns(signed, None)


def map_batches(path: str) -> list[pa.RecordBatch]:
    """The batches of an Arrow IPC file, memory-mapped; an empty file holds none."""
    if Path(path).stat().st_size == 0:
        return []
    reader = pa.ipc.open_file(pa.memory_map(path))
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]
