"""Bins and an order: which pieces form each row, and the order of the rows. Integers only; no token is read, but
the last ones of documents longer than a block, to find where a line ends.

``pack`` makes the rows of one source from the lengths of its live records; ``schedule`` deals rows of all sources into one
order under the quota. Costs 16 bytes a piece and 10 bytes a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import list_buffers, offsets_from_lengths, open_batch, write_batch
from datamix.core.contracts import UNITS, Bins, Task
from datamix.core.hashing import digest, permutation, salt
from datamix.pipeline.select import POOL, VALIDATION
from datamix.pipeline.shards import Encoded, SourceShards, TokenStore, measure
from datamix.tokenize import EncodeSpec, split_points
from datamix.tokenize import pack as packing

_VERSION = 1
SPLITS = {"train": POOL, "validation": VALIDATION}


@dataclass(frozen=True)
class PackSpec:
    """How the records of one source become rows."""

    source: SourceShards
    fates: Path
    encode: EncodeSpec
    strategy: str  # none | concat | best_fit
    max_length: int | None
    seed: int


def pack_tasks(specs: Sequence[PackSpec], decided: str, home: Path) -> list[Task]:
    """One task a source; ``decided`` is the key of the fates."""
    tasks: list[Task] = []
    for number, spec in enumerate(specs):
        plain = replace(spec.source, parts=(), shards=(), signatures=())
        asked = [spec.encode.identity(), spec.strategy, spec.max_length, spec.seed]
        key = digest("pack", _VERSION, decided, number, plain, *asked)
        weight = 1 + sum(s.num_rows for s in spec.source.shards)
        tasks.append(Task(f"pack {spec.source.name}", key, pack, spec, home, weight))
    return tasks


def pack(spec: PackSpec, folder: Path) -> dict[str, Any]:
    """Make the rows of both splits of a source: ``train.arrow`` and ``validation.arrow``."""
    encoded = measure(spec.source.shards)
    fate = open_batch(spec.fates).column("fate").to_numpy()
    counts: dict[str, Any] = {}
    for split, code in SPLITS.items():
        records = np.flatnonzero(fate == code)
        bins = _bins(spec, encoded, records, split)
        costs = _costs(spec, encoded, bins)
        pieces = [bins.record.astype(np.int64), bins.start.astype(np.int32), bins.length.astype(np.int32)]
        flat = pa.StructArray.from_arrays(pieces, ["record", "start", "length"])
        rows = pa.ListArray.from_arrays(pa.array(bins.offsets.astype(np.int32)), flat)
        write_batch(folder / f"{split}.arrow", pa.record_batch({"rows": rows, **costs}))
        counts[split] = {
            "rows": bins.num_rows,
            "records": len(records),
            "pieces": len(bins.record),
            "tokens": int(costs["tokens"].sum()),
            "loss_tokens": int(costs["loss_tokens"].sum()),
            "truncated": int(encoded.truncated[records].sum()),
            "cut_records": int((np.bincount(bins.record) > 1).sum()) if len(bins.record) else 0,
            "largest": {unit: int(costs[unit].max(initial=0)) for unit in UNITS},
            "smallest": {unit: int(costs[unit].min()) if bins.num_rows else 0 for unit in UNITS},
            "longest_record": int(encoded.length[records].max(initial=0)),
        }
    return counts


def _bins(spec: PackSpec, encoded: Encoded, records: NDArray[np.int64], split: str) -> Bins:
    lengths = encoded.length[records]
    if spec.strategy == "concat":
        order = permutation(len(records), salt(spec.seed, "concat", split, spec.source.name))
        bins = packing.concat(lengths, order, spec.max_length or int(lengths.max(initial=1)))
        return replace(bins, record=records[bins.record])
    record, start, length = np.arange(len(records)), np.zeros(len(records), np.int32), lengths
    if spec.encode.kind == "pretrain" and spec.max_length is not None:
        long = lengths > spec.max_length
        cuts = packing.room_for_cuts(lengths[long], spec.max_length)
        if long.any():  # cut best where a line ends: of those few documents tokens are read
            ends = split_points(spec.encode.tokenizer)
            for batch, rows, places in TokenStore(spec.source.shards).batches(records[long]):
                tokens, offsets = list_buffers(batch.column("ids"))
                spans = offsets[rows].astype(np.int64), offsets[rows + 1].astype(np.int64)
                packing.choose_cuts(cuts, places, tokens, spans, ends, spec.max_length)
        record, start, length = packing.split_long(lengths, spec.max_length, cuts)
    if spec.strategy == "best_fit":
        bins = packing.best_fit(record, start, length, spec.max_length or int(length.max(initial=1)))
    else:
        bins = Bins(np.arange(len(record) + 1, dtype=np.int64), record, start, length)
    return replace(bins, record=records[bins.record])


def _costs(spec: PackSpec, encoded: Encoded, bins: Bins) -> dict[str, NDArray[np.int64]]:
    """What each row weighs in every unit, as it will be recounted from its columns."""
    if spec.encode.kind == "pretrain":
        loss = bins.length.astype(np.int64) - (1 if spec.strategy == "best_fit" else 0)
    else:
        loss = encoded.loss[bins.record].astype(np.int64)
    tokens, trained = offsets_from_lengths(bins.length), offsets_from_lengths(loss)
    return {
        "records": np.diff(bins.offsets),
        "tokens": np.diff(tokens[bins.offsets]),
        "loss_tokens": np.diff(trained[bins.offsets]),
    }
