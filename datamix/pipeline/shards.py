"""What the cache holds of one source, by the ordinal of its prepared records: identities, records, lengths, tokens.

Files in order, records in order. Memory: 28 bytes a record for identities, 14 for lengths and what encoding decided, plus
the records that were truncated; records and tokens stay on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import offsets_from_lengths, open_batch
from datamix.core.records import RecordKind


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

    def identify(self, batch: pa.RecordBatch) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """File and ordinal of records that a task names by ``slice`` and ``record``."""
        slices = batch.column("slice").to_numpy()
        file = np.array([p.file for p in self.places], np.int32)[slices]
        base = np.array([p.base for p in self.places], np.int64)[slices]
        return file, base + batch.column("record").to_numpy()


@dataclass(frozen=True)
class TokenShard:
    """One encoded window on disk: its tokens, and those of its records that were truncated."""

    tokens: Path
    num_rows: int
    fitted: Path | None = None


@dataclass(frozen=True)
class SourceShards:
    """All that the cache holds of one source; ``key`` fingerprints it."""

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
    group: NDArray[np.uint64] | None = (
        None  # hash of what ``validation.group_by`` names, 0 where it is absent
    )


def identities(parts: Sequence[PreparedPart]) -> Identities:
    """Read the id columns of prepared files."""
    files, records, keys = [np.empty(0, np.int32)], [np.empty(0, np.int64)], [np.empty((0, 16), np.uint8)]
    groups: list[NDArray[np.uint64]] = []
    for part in parts:
        with pa.memory_map(str(part.records)) as source, pa.ipc.open_file(source) as reader:
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                file, record = part.identify(batch)
                files.append(file)
                records.append(record)
                key = batch.column("key")
                view = np.frombuffer(key.buffers()[1], np.uint8, len(key) * 16, key.offset * 16)
                keys.append(view.reshape(-1, 16).copy())
                if "group" in batch.schema.names:
                    groups.append(
                        np.frombuffer(batch.column("group").buffers()[1], np.uint64, len(batch)).copy()
                    )
    group = np.concatenate(groups) if groups else None
    return Identities(np.concatenate(files), np.concatenate(records), np.concatenate(keys), group)


def used_records(order: Path, bins: Path, number: int, num_records: int) -> NDArray[np.bool_]:
    """Which records of source ``number`` have a piece in an order. ``[num_records]``."""
    dealt = open_batch(order)
    rows = np.unique(dealt.column("row").to_numpy()[dealt.column("source").to_numpy() == number])
    lists = open_batch(bins).column("rows")
    offsets = lists.offsets.to_numpy()
    is_dealt = np.zeros(len(offsets) - 1, np.bool_)
    is_dealt[rows] = True
    used = np.zeros(num_records, np.bool_)
    used[lists.values.field("record").to_numpy()[np.repeat(is_dealt, np.diff(offsets))]] = True
    return used


@dataclass(frozen=True)
class Encoded:
    """What encoding made of every record of a source. Arrays are ``[num_records]``."""

    length: NDArray[np.int32]  # tokens
    loss: NDArray[np.int32]  # trained tokens
    reason: NDArray[np.int16]  # -1, or an index into ``reasons``
    truncated: NDArray[np.bool_]
    reasons: tuple[str, ...]


def measure(shards: Sequence[TokenShard]) -> Encoded:
    """Read the small columns of every shard; truncated records replace what they were."""
    total = sum(s.num_rows for s in shards)
    length, loss = np.zeros((2, total), np.int32)
    reason, truncated = np.full(total, -1, np.int16), np.zeros(total, np.bool_)
    codes: dict[str | None, int] = {None: -1}
    begin = 0
    for shard in shards:
        for path in filter(None, (shard.tokens, shard.fitted)):
            batch = open_batch(path)
            rows = batch.column("row").to_numpy() if path is shard.fitted else np.arange(len(batch))
            at = begin + rows
            length[at] = batch.column("length").to_numpy()
            loss[at] = batch.column("loss").to_numpy()
            truncated[at] = batch.column("truncated").to_numpy(zero_copy_only=False)
            names = batch.column("reason").dictionary_encode(null_encoding="encode")
            table = [codes.setdefault(name, len(codes) - 1) for name in names.dictionary.to_pylist()]
            reason[at] = np.array(table, np.int16)[names.indices.to_numpy()] if len(at) else 0
        begin += shard.num_rows
    return Encoded(length, loss, reason, truncated, tuple(name for name in codes if name is not None))


Place = tuple[
    pa.RecordBatch, NDArray[np.int64], NDArray[np.int64]
]  # batch, rows in it, places among those asked


class RecordStore:
    """Prepared records of one source, memory-mapped."""

    def __init__(self, parts: Sequence[PreparedPart]) -> None:
        readers = [pa.ipc.open_file(pa.memory_map(str(part.records))) for part in parts]
        self._where = [(reader, i) for reader in readers for i in range(reader.num_record_batches)]
        self._begin = offsets_from_lengths([reader.get_batch(i).num_rows for reader, i in self._where])

    def batches(self, records: NDArray[np.int64]) -> list[Place]:
        """Where ``records`` are."""
        batch_of = np.searchsorted(self._begin, records, side="right") - 1
        places: list[Place] = []
        for index in np.unique(batch_of):
            reader, number = self._where[index]
            at = np.flatnonzero(batch_of == index)
            places.append((reader.get_batch(number), records[at] - self._begin[index], at))
        return places


class TokenStore:
    """The tokens of one source, memory-mapped as they are needed."""

    def __init__(self, shards: Sequence[TokenShard]) -> None:
        self._shards = list(shards)
        self._begin = offsets_from_lengths([s.num_rows for s in shards])

    def batches(self, records: NDArray[np.int64]) -> list[Place]:
        """Where the tokens of ``records`` are: of truncated ones, what they became."""
        where: list[Place] = []
        shard_of = np.searchsorted(self._begin, records, side="right") - 1
        for index in np.unique(shard_of):
            shard = self._shards[index]
            places = np.flatnonzero(shard_of == index)
            rows = records[places] - self._begin[index]
            if shard.fitted is not None:
                batch = open_batch(shard.fitted)
                known = batch.column("row").to_numpy()
                at = np.searchsorted(known, rows)
                is_fitted = np.isin(rows, known)
                if is_fitted.any():
                    where.append((batch, at[is_fitted].astype(np.int64), places[is_fitted]))
                    places, rows = places[~is_fitted], rows[~is_fitted]
            if len(places):
                where.append((open_batch(shard.tokens), rows, places))
        return where


def take(store: RecordStore | TokenStore, records: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """The named columns of ``records``, in the order asked."""
    tables: list[pa.Table] = []
    places: list[NDArray[np.int64]] = []
    for batch, rows, at in store.batches(records):
        tables.append(pa.Table.from_batches([batch.select(list(columns)).take(pa.array(rows))]))
        places.append(at)
    return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(places), kind="stable")))
