"""What the report draws, taken from a finished set in one pass over its small columns.

Read are the source, stage and record columns, and labels only where the mixture counts loss tokens and the costs of rows
are not given. Everything is summed into a few hundred bins, so memory does not grow with the set.
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
from datamix.audit.row_laws import amounts, pieces, row_sums
from datamix.reporting.decode import split_shards

_MAX_WINDOWS = 160  # along the training order
_WINDOW_ROWS = 12  # a window of fewer says nothing about shares
_EXAMPLES = 3  # first rows of each source
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
    duplicates: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # reason, source, kept source

    def add(
        self,
        batch: pa.RecordBatch,
        first: int,
        cost: NDArray[np.int64],
        manifest: dict[str, Any],
        prefix: PrefixDeviation,
    ) -> None:
        """Sum rows that begin at number ``first``; ``cost`` is what each counts in the unit, ``[num_rows]``."""
        source = _codes(batch.column("source"), self.sources)
        stage = _codes(batch.column("stage"), [s["name"] for s in manifest["mixture"]["stages"]])
        window = (first + np.arange(len(cost))) * len(self.windows) // max(1, self.num_rows)
        np.add.at(self.windows, (window, source), cost)
        self.window_stage[window] = stage
        for index in np.unique(stage):
            mask = stage == index
            off = np.abs(prefix.add(int(index), source[mask], cost[mask])).T
            np.maximum.at(self.off, window[mask], off)
        parts = pieces(batch)
        bins = np.clip(
            np.searchsorted(LENGTH_EDGES, parts.length, side="right") - 1, 0, len(LENGTH_EDGES) - 2
        )
        np.add.at(self.lengths, (source[parts.rows()], bins), 1)
        if limit := manifest["packing"]["max_length"]:
            fill = row_sums(parts.length, parts.offsets) * NUM_FILLS // limit
            np.add.at(self.fills, np.clip(fill, 0, NUM_FILLS - 1), 1)
        for index, rows in enumerate(self.first_rows.values()):
            rows += [first + int(row) for row in np.flatnonzero(source == index)[: _EXAMPLES - len(rows)]]


def gather(out: Path, manifest: dict[str, Any], costs: NDArray[np.int64] | None = None) -> Picture:
    """Read the set below ``out`` once.

    ``costs``: of each row, in the unit of the mixture, where they are known; else they are counted from the columns.
    """
    sources, unit = list(manifest["sources"]), manifest["mixture"]["unit"]
    shards = split_shards(out, manifest)
    num_rows = sum(pq.read_metadata(p).num_rows for p in shards)
    num_windows = min(_MAX_WINDOWS, max(6, num_rows // _WINDOW_ROWS))
    picture = Picture(
        sources,
        num_rows,
        windows=np.zeros((num_windows, len(sources)), np.int64),
        off=np.zeros((num_windows, len(sources))),
        window_stage=np.zeros(num_windows, np.int64),
        lengths=np.zeros((len(sources), len(LENGTH_EDGES) - 1), np.int64),
        fills=np.zeros(NUM_FILLS, np.int64),
        first_rows={name: [] for name in sources},
    )
    prefix = PrefixDeviation(read_stages(manifest["mixture"], sources))
    reads_ids = costs is None and unit == "loss_tokens"
    first = 0
    for shard in shards:
        file = pq.ParquetFile(shard)
        ids = [n for n in file.schema_arrow.names if reads_ids and (n == "labels" or n.endswith("_ids"))]
        for batch in file.iter_batches(2048, columns=["source", "stage", "records", *ids]):
            if costs is not None:
                cost = costs[first : first + batch.num_rows]
            elif reads_ids:
                cost = amounts(batch, manifest["kind"]).loss_tokens
            else:
                parts = pieces(batch)
                cost = np.diff(parts.offsets) if unit == "records" else row_sums(parts.length, parts.offsets)
            picture.add(batch, first, cost, manifest, prefix)
            first += batch.num_rows
    for path in split_shards(out, manifest, "removed"):
        table = pq.read_table(path, columns=["source", "fate", "reason", "kept_source"])
        removed = table.filter(pc.equal(table["fate"], "removed"))
        counts = removed.group_by(["reason", "source", "kept_source"]).aggregate([([], "count_all")])
        for row in counts.to_pylist():
            picture.duplicates[row["reason"], row["source"], row["kept_source"] or ""] += row["count_all"]
    return picture


def _codes(column: pa.Array, names: list[str]) -> NDArray[np.int64]:
    """The index of each value in ``names``; 0 where it is not there."""
    codes = pc.index_in(column, value_set=pa.array(names, column.type)).fill_null(0)
    return np.asarray(codes.to_numpy(zero_copy_only=False), np.int64)
