"""What later phases need of one source: names of files in the cache, and whose record each one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import open_batch
from datamix.core.records import RecordKind
from datamix.pipeline.token_store import TokenShard


@dataclass(frozen=True)
class SlicePlace:
    """Where a slice of a prepared file comes from: records count on from ``base`` in manifest input ``file``."""

    file: int
    base: int  # records of the same file before this slice
    line_base: int  # lines of the same file before this slice


@dataclass(frozen=True)
class PreparedPart:
    """One prepare task's folder, and the place of each of its slices."""

    folder: Path
    places: tuple[SlicePlace, ...]

    @property
    def records(self) -> Path:
        return self.folder / "records.arrow"


@dataclass(frozen=True)
class SourceShards:
    """All that lies in the cache of one source; ``key`` fingerprints it."""

    name: str
    kind: RecordKind
    key: str
    parts: tuple[PreparedPart, ...]
    shards: tuple[TokenShard, ...] = ()
    signatures: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Identities:
    """Which record each prepared record is. Arrays are ``[num_records]``."""

    file: NDArray[np.int32]  # index into the manifest's inputs
    record: NDArray[np.int64]  # ordinal in that file
    key: NDArray[np.uint8]  # [num_records, 16] content key


def identities(parts: Sequence[PreparedPart]) -> Identities:
    """Read the id columns of prepared files. Memory: 28 bytes a record."""
    files, records, keys = [np.empty(0, np.int32)], [np.empty(0, np.int64)], [np.empty((0, 16), np.uint8)]
    for part in parts:
        file_of = np.array([p.file for p in part.places], np.int32)
        base_of = np.array([p.base for p in part.places], np.int64)
        with pa.memory_map(str(part.records)) as source, pa.ipc.open_file(source) as reader:
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                slices = batch.column("slice").to_numpy()
                files.append(file_of[slices])
                records.append(base_of[slices] + batch.column("record").to_numpy())
                key = batch.column("key")
                view = np.frombuffer(key.buffers()[1], np.uint8, len(key) * 16, key.offset * 16)
                keys.append(view.reshape(-1, 16).copy())
    return Identities(np.concatenate(files), np.concatenate(records), np.concatenate(keys))


class RecordStore:
    """Prepared records of one source by ordinal, memory-mapped."""

    def __init__(self, parts: Sequence[PreparedPart]) -> None:
        self._readers: list[pa.ipc.RecordBatchFileReader] = []
        self._where: list[tuple[int, int]] = []
        sizes: list[int] = []
        for number, part in enumerate(parts):
            reader = pa.ipc.open_file(pa.memory_map(str(part.records)))
            self._readers.append(reader)
            for index in range(reader.num_record_batches):
                self._where.append((number, index))
                sizes.append(reader.get_batch(index).num_rows)
        self._begin = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def take(self, records: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """The named columns of ``records``, in the order asked."""
        batch_of = np.searchsorted(self._begin, records, side="right") - 1
        tables: list[pa.Table] = []
        places: list[NDArray[np.int64]] = []
        for index in np.unique(batch_of):
            number, batch_index = self._where[index]
            here = np.flatnonzero(batch_of == index)
            batch = self._readers[number].get_batch(batch_index).select(list(columns))
            tables.append(pa.Table.from_batches([batch.take(pa.array(records[here] - self._begin[index]))]))
            places.append(here)
        if not tables:
            return pa.table({})
        order = np.argsort(np.concatenate(places), kind="stable")
        return pa.concat_tables(tables).take(pa.array(order))


def used_records(order: Path, bins: Path, number: int, num_records: int) -> NDArray[np.bool_]:
    """Which records of source ``number`` have a piece in an order. ``[num_records]``."""
    held = open_batch(order)
    rows = np.unique(held.column("row").to_numpy()[held.column("source").to_numpy() == number])
    lists = open_batch(bins).column("rows")
    offsets = lists.offsets.to_numpy()
    taken = np.zeros(len(offsets) - 1, np.bool_)
    taken[rows] = True
    used = np.zeros(num_records, np.bool_)
    used[lists.values.field("record").to_numpy()[np.repeat(taken, np.diff(offsets))]] = True
    return used
