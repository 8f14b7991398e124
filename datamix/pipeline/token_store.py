"""The encoded records of one source as arrays: lengths in memory, tokens memory-mapped.

A record is known by its ordinal among the prepared records of its source (files in order, records in order). Memory: 14
bytes a record (length, loss, reason, truncated) plus the records that were fitted; token buffers stay on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import list_buffers, offsets_from_lengths, open_batch
from datamix.core.kernels import Kernel

_copy = Kernel("pipeline", "copy", "copy")


@dataclass(frozen=True)
class TokenShard:
    """One encoded window on disk: its tokens, and those of its records that were fitted."""

    tokens: Path
    num_rows: int
    fitted: Path | None = None


@dataclass(frozen=True)
class Encoded:
    """Lengths and fates of encoding for every record of a source. Arrays are ``[num_records]``."""

    length: NDArray[np.int32]  # tokens
    loss: NDArray[np.int32]  # trained tokens
    reason: NDArray[np.int16]  # -1, or an index into ``reasons``
    truncated: NDArray[np.bool_]
    reasons: tuple[str, ...]


def measure(shards: Sequence[TokenShard]) -> Encoded:
    """Read the small columns of every shard; fitted records replace what they were."""
    total = sum(s.num_rows for s in shards)
    length, loss = np.zeros(total, np.int32), np.zeros(total, np.int32)
    reason, truncated = np.full(total, -1, np.int16), np.zeros(total, np.bool_)
    reasons: list[str] = []
    begin = 0
    for shard in shards:
        here: NDArray[np.int64] | slice = slice(begin, begin + shard.num_rows)
        for path in (shard.tokens, shard.fitted):
            if path is None:
                continue
            batch = open_batch(path)
            if path is shard.fitted:
                here = begin + batch.column("row").to_numpy()
            length[here] = batch.column("length").to_numpy()
            loss[here] = batch.column("loss").to_numpy()
            truncated[here] = batch.column("truncated").to_numpy(zero_copy_only=False)
            reason[here] = _codes(batch.column("reason"), reasons)
        begin += shard.num_rows
    return Encoded(length, loss, reason, truncated, tuple(reasons))


def _codes(column: pa.Array, reasons: list[str]) -> NDArray[np.int16]:
    encoded = column.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    for name in names:
        if name not in reasons:
            reasons.append(name)
    table = np.array([reasons.index(n) for n in names] + [-1], np.int16)
    codes = encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
    found: NDArray[np.int16] = table[codes]
    return found


class TokenStore:
    """The token buffers of one source, opened as they are needed."""

    def __init__(self, shards: Sequence[TokenShard]) -> None:
        self._shards = list(shards)
        self._begin = offsets_from_lengths([s.num_rows for s in shards])

    def batches(
        self, records: NDArray[np.int64]
    ) -> list[tuple[pa.RecordBatch, NDArray[np.int64], NDArray[np.int64]]]:
        """Where ``records`` lie: ``(batch, rows in it, their places among the records asked for)``."""
        found: list[tuple[pa.RecordBatch, NDArray[np.int64], NDArray[np.int64]]] = []
        shard_of = np.searchsorted(self._begin, records, side="right") - 1
        for index in np.unique(shard_of):
            shard = self._shards[index]
            places = np.flatnonzero(shard_of == index)
            rows = records[places] - self._begin[index]
            if shard.fitted is not None:
                batch = open_batch(shard.fitted)
                known = batch.column("row").to_numpy()
                at = np.searchsorted(known, rows)
                fitted = (
                    (at < len(known)) & (known[np.minimum(at, len(known) - 1)] == rows)
                    if len(known)
                    else at < 0
                )
                if fitted.any():
                    found.append((batch, at[fitted].astype(np.int64), places[fitted]))
                    places, rows = places[~fitted], rows[~fitted]
            if len(places):
                found.append((open_batch(shard.tokens), rows, places))
        return found

    def gather(
        self,
        column: str,
        pieces: TokenPieces,
        out: NDArray[np.int32] | NDArray[np.uint8],
        out_begin: NDArray[np.int64],
    ) -> None:
        """Copy tokens ``start..start+length`` of each piece to ``out[out_begin:]``. One pass, no copies between."""
        for batch, rows, places in self.batches(pieces.record):
            values, offsets = list_buffers(batch.column(column))
            begin = offsets[rows].astype(np.int64) + pieces.start[places]
            _copy(values, begin, pieces.length[places].astype(np.int64), out, out_begin[places])


@dataclass(frozen=True)
class TokenPieces:
    """Pieces of records of one source. Arrays are ``[num_pieces]``."""

    record: NDArray[np.int64]
    start: NDArray[np.int32]
    length: NDArray[np.int32]
