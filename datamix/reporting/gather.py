"""What the report draws, taken from a finished set in one pass over its small columns.

Read are the source, stage and record columns, and labels only where the mixture counts loss tokens and nobody knows them. Everything is summed
into a few hundred bins as it streams by, so memory does not grow with the set.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.audit.prefix import PrefixDeviation, read_stages
from datamix.audit.row_laws import lists, pieces
from datamix.core.arrays import IGNORE_INDEX
from datamix.reporting.decode import train_shards

_MAX_WINDOWS = 160  # along the training order
_WINDOW_ROWS = 12  # a window of fewer says nothing about shares
NUM_FILLS = 40
LENGTH_EDGES = np.concatenate([[0.0], 2.0 ** (np.arange(0, 97) / 4)])  # tokens, four bins an octave


@dataclass
class Picture:
    """Sums over the emitted rows, ready to be drawn."""

    sources: list[str]
    num_rows: int
    windows: NDArray[np.int64]  # [num_windows, num_sources] in the unit, along the training order
    off: NDArray[np.float64]  # [num_windows, num_sources] the farthest from the quota in each window
    window_stage: NDArray[np.int64]  # [num_windows] stage of the last row
    lengths: NDArray[np.int64]  # [num_sources, len(LENGTH_EDGES) - 1] records by tokens
    fills: NDArray[np.int64]  # [NUM_FILLS] rows by fill
    first_rows: dict[str, list[int]] = field(default_factory=dict)  # source -> numbers of its first rows
    # (reason, source, kept source)
    duplicates: Counter[tuple[str, str, str]] = field(default_factory=Counter)


def gather(
    out: Path, manifest: dict[str, Any], num_examples: int, costs: NDArray[np.int64] | None = None
) -> Picture:
    """Read the set below ``out`` once; note ``num_examples`` rows of each source.

    ``costs``: of each row, in the unit of the mixture, where they are known; else they are counted from the columns.
    """
    sources = list(manifest["sources"])
    shards = [p for p in train_shards(out, manifest) if p.is_file()]
    num_rows = sum(pq.read_metadata(p).num_rows for p in shards)
    num_windows = min(_MAX_WINDOWS, max(6, num_rows // _WINDOW_ROWS))
    picture = Picture(
        sources,
        num_rows,
        np.zeros((num_windows, len(sources)), np.int64),
        np.zeros((num_windows, len(sources))),
        np.zeros(num_windows, np.int64),
        np.zeros((len(sources), len(LENGTH_EDGES) - 1), np.int64),
        np.zeros(NUM_FILLS, np.int64),
    )
    prefix = PrefixDeviation(read_stages(manifest["mixture"], sources))
    first = 0
    for shard in shards:
        file = pq.ParquetFile(shard)
        columns = _columns("" if costs is not None else manifest["mixture"]["unit"], file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=2048, columns=columns):
            known = None if costs is None else costs[first : first + batch.num_rows]
            _add(picture, batch, first, manifest, prefix, known)
            _note_examples(picture, batch, first, num_examples)
            first += batch.num_rows
    _read_duplicates(out, manifest, picture)
    return picture


def _columns(unit: str, names: list[str]) -> list[str]:
    wanted = {"source", "stage", "records"}
    if unit == "loss_tokens":
        wanted |= {"labels", "chosen_completion_ids", "rejected_completion_ids", "completion_ids"}
    return [n for n in names if n in wanted]


def _add(
    picture: Picture,
    batch: pa.RecordBatch,
    first: int,
    manifest: dict[str, Any],
    prefix: PrefixDeviation,
    known: NDArray[np.int64] | None,
) -> None:
    source = _codes(batch.column("source"), picture.sources)
    stage = _codes(batch.column("stage"), [s["name"] for s in manifest["mixture"]["stages"]])
    held = pieces(batch)
    total = np.concatenate(([0], np.cumsum(held.length)))
    tokens = total[held.offsets[1:]] - total[held.offsets[:-1]]
    cost = _cost(batch, manifest["mixture"]["unit"], tokens) if known is None else known
    window = (first + np.arange(batch.num_rows)) * len(picture.windows) // max(1, picture.num_rows)
    np.add.at(picture.windows, (window, source), cost)
    picture.window_stage[window] = stage
    for index in np.unique(stage):
        chosen = stage == index
        off = np.abs(prefix.add(int(index), source[chosen], cost[chosen])).T
        np.maximum.at(picture.off, window[chosen], off)
    bins = np.clip(np.searchsorted(LENGTH_EDGES, held.length, side="right") - 1, 0, len(LENGTH_EDGES) - 2)
    np.add.at(picture.lengths, (source[held.rows()], bins), 1)
    if limit := manifest["packing"]["max_length"]:
        np.add.at(picture.fills, np.clip(tokens * NUM_FILLS // limit, 0, NUM_FILLS - 1), 1)


def _cost(batch: pa.RecordBatch, unit: str, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    if unit == "records":
        counts = pc.list_value_length(batch.column("records")).fill_null(0)
        return np.asarray(counts.to_numpy(zero_copy_only=False), np.int64)
    if unit == "loss_tokens" and "labels" in batch.schema.names:
        labels = lists(batch.column("labels"))
        trained = np.concatenate(([0], np.cumsum(labels.values != IGNORE_INDEX)))
        return np.asarray(trained[labels.offsets[1:]] - trained[labels.offsets[:-1]], np.int64)
    answers = [n for n in batch.schema.names if n.endswith("completion_ids")]
    if unit == "tokens" or not answers:
        return tokens
    return np.asarray(np.sum([lists(batch.column(n)).lengths for n in answers], axis=0), np.int64)


def _note_examples(picture: Picture, batch: pa.RecordBatch, first: int, num_examples: int) -> None:
    source = _codes(batch.column("source"), picture.sources)
    for index, name in enumerate(picture.sources):
        noted = picture.first_rows.setdefault(name, [])
        wanted = num_examples - len(noted)
        if wanted > 0:
            noted += [first + int(row) for row in np.flatnonzero(source == index)[:wanted]]


def _read_duplicates(out: Path, manifest: dict[str, Any], picture: Picture) -> None:
    for path in (p for p in train_shards(out, manifest, "removed") if p.is_file()):
        table = pq.read_table(path, columns=["source", "fate", "reason", "kept_source"])
        removed = table.filter(pc.equal(table["fate"], "removed"))
        counts = removed.group_by(["reason", "source", "kept_source"]).aggregate([([], "count_all")])
        for row in counts.to_pylist():
            picture.duplicates[row["reason"], row["source"], row["kept_source"] or ""] += row["count_all"]


def _codes(column: pa.Array, names: list[str]) -> NDArray[np.int64]:
    found = pc.index_in(column, value_set=pa.array(names, column.type)).fill_null(0)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)
