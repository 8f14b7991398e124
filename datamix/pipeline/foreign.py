"""A set in a cache that was filled elsewhere: everything that code below Python would read without looking is looked at first.

Results are read as mapped Arrow files, and rows are copied from them by addresses. A cache that this machine filled is trusted by
the times and inodes of its files, which nobody can forge for a copy; of any other, every offset, index and length is checked when
a set is opened. Cost: one read of the cache's files of the set, for copied caches only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import open_batch
from datamix.core.records import TOKENS
from datamix.pipeline.rows import RowSet, SourceRows

_PIECE = {"record": pa.int64(), "start": pa.int32(), "length": pa.int32()}


def is_sound(folders: list[Path], splits: dict[str, RowSet]) -> bool:
    """Whether every Arrow file of some results is valid, and every row of the splits within what it is made of."""
    try:
        for path in sorted(path for folder in folders for path in folder.rglob("*.arrow")):
            _validate(path)
        return all(_is_within(rows) for rows in splits.values())
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, pa.ArrowException):
        return False


def _validate(path: Path) -> None:
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            reader.get_batch(number).validate(full=True)


def _is_within(rows: RowSet) -> bool:
    counts = np.array([_num_rows(source, rows.info.kind) for source in rows.sources], np.int64)
    if rows.order is None:
        return len(counts) == 1 and 0 <= rows.num_rows <= counts[0]
    order = open_batch(rows.order)
    _typed(order, "source", pa.uint16())
    _typed(order, "row", pa.int64())
    source, row = (np.from_dlpack(order.column(name)) for name in ("source", "row"))
    ends = [0, *rows.stage_ends]
    return bool(
        len(order) == rows.num_rows
        and (np.diff(ends) >= 0).all()
        and (source < len(counts)).all()
        and (row >= 0).all()
        and (row < counts[source]).all()
    )


def _num_rows(source: SourceRows, kind: str) -> int:
    """How many rows the bins of a source hold. Raises ValueError where one is not made of what is there."""
    bins = open_batch(source.bins)
    lists = bins.column("rows")
    _typed(bins, "tokens", pa.int64())
    _typed(bins, "loss_tokens", pa.int64())
    pieces = lists.values
    for name, type_ in _PIECE.items():
        if pieces.field(name).type != type_ or pieces.field(name).null_count:
            raise ValueError(name)
    record, start, length = (np.from_dlpack(pieces.field(name)) for name in _PIECE)
    sizes = _token_counts(source, kind)
    if len(record) and (record.min() < 0 or record.max() >= len(sizes) or min(start.min(), length.min()) < 0):
        raise ValueError("record")
    if (start.astype(np.int64) + length > sizes[record]).any():
        raise ValueError("length")
    edges = np.from_dlpack(lists.offsets).astype(np.int64)
    sums = np.concatenate([[0], np.cumsum(length, dtype=np.int64)])[edges]
    if kind in ("pretrain", "sft") and not np.array_equal(
        np.diff(sums), np.from_dlpack(bins.column("tokens"))
    ):
        raise ValueError("tokens")
    return len(bins)


def _token_counts(source: SourceRows, kind: str) -> NDArray[np.int64]:
    """The tokens of each prepared record of a source, as its rows may use them."""
    sizes: list[NDArray[np.int64]] = []
    for shard in source.source.shards:
        batch = open_batch(shard.tokens)
        if len(batch) != shard.num_rows:
            raise ValueError("rows")
        counts = _lengths(batch, kind)
        if shard.fitted is not None:
            fitted = open_batch(shard.fitted)
            _typed(fitted, "row", pa.int64())
            places = np.from_dlpack(fitted.column("row"))
            if (np.diff(places) <= 0).any():
                raise ValueError("row")
            counts[places] = _lengths(fitted, kind)
        sizes.append(counts)
    return np.concatenate([np.empty(0, np.int64), *sizes])


def _lengths(batch: pa.RecordBatch, kind: str) -> NDArray[np.int64]:
    if kind not in ("pretrain", "sft"):  # their columns are taken by Arrow, which checks
        return np.full(len(batch), np.iinfo(np.int64).max // 2)
    counts: list[NDArray[np.int64]] = []
    for name in ("ids", "mask") if kind == "sft" else ("ids",):
        column = batch.column(name)
        if column.type != TOKENS[kind].field(name).type or column.null_count:
            raise ValueError(name)
        edges: NDArray[np.int64] = np.from_dlpack(column.offsets).astype(np.int64)
        counts.append(edges[1:] - edges[:-1])
    if not all(np.array_equal(counts[0], other) for other in counts):
        raise ValueError("mask")
    return counts[0].copy()


def _typed(batch: pa.RecordBatch, name: str, type_: Any) -> None:
    if batch.column(name).type != type_ or batch.column(name).null_count:
        raise ValueError(name)
