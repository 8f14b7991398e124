"""Rows in files: one task for each output shard of each format.

The order and the bins are integers on disk; a task carries their names and a range of places. Each task recounts what it
really wrote, from the labels, and hashes the rows of training as they pass. Memory: one batch of about two million tokens, and what the format keeps open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.arrays import IGNORE_INDEX, list_buffers
from datamix.core.content import ContentDigest
from datamix.core.hashing import file_sha256
from datamix.exporters import needs_records, open_sink
from datamix.pipeline.rows import RecordTexts, RowReader, RowSet


@dataclass(frozen=True)
class ShardSpec:
    """Rows ``start..stop`` of one split, into one shard of one format."""

    format: str
    options: tuple[tuple[str, Any], ...]
    split: str
    index: int
    rows: RowSet
    start: int
    stop: int


def write_shard(spec: ShardSpec, folder: Path) -> dict[str, Any]:
    """Write one shard; counts are recounted from the rows themselves, by stage and source."""
    tally = _Tally()
    info = spec.rows.info
    words = RecordTexts(spec.rows.sources) if needs_records(spec.format) else None
    sink = open_sink(spec.format, spec.options, info, spec.split, words)
    batches = tally.watch(RowReader(spec.rows).batches(spec.start, spec.stop), info.kind)
    content = ContentDigest() if is_training(spec) else None
    names = sink.write(batches if content is None else content.watch(batches), spec.index, folder)
    sha256 = {name: file_sha256(folder / name) for name in names}
    digest = content and content.hexdigest()
    return {"names": names, "rows": tally.rows, "recount": tally.by, "sha256": sha256, "content": digest}


def is_training(spec: ShardSpec) -> bool:
    """Whether these are rows of train/ themselves: what the manifest counts and hashes."""
    return spec.split == "train" and spec.format == "parquet"


class _Tally:
    """Counts of the rows that pass by: ``by["stage|source"] = [rows, records, tokens, loss_tokens]``."""

    def __init__(self) -> None:
        self.rows = 0
        self.by: dict[str, list[int]] = {}

    def watch(self, batches: Iterator[pa.RecordBatch], kind: str) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            self.rows += batch.num_rows
            numbers = [
                np.ones(batch.num_rows, np.int64),
                _lengths(batch.column("records")),
                *_costs(batch, kind),
            ]
            names = pc.binary_join_element_wise(
                batch.column("stage"), batch.column("source"), "|"
            ).dictionary_encode()
            codes = names.indices.to_numpy()
            for code, name in enumerate(names.dictionary.to_pylist()):
                here = self.by.setdefault(name, [0, 0, 0, 0])
                for at, number in enumerate(numbers):
                    here[at] += int(number[codes == code].sum())
            yield batch


def _lengths(column: pa.Array) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = (
        pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    )
    return lengths


def _costs(batch: pa.RecordBatch, kind: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens and loss tokens of each row, counted from its columns."""
    if kind in ("pretrain", "sft"):
        tokens = _lengths(batch.column("input_ids"))
        labels, offsets = list_buffers(batch.column("labels"))
        counted = np.concatenate([[0], np.cumsum(labels != IGNORE_INDEX)])
        return tokens, (counted[offsets[1:]] - counted[offsets[:-1]]).astype(np.int64)
    prompt = _lengths(batch.column("prompt_ids"))
    if kind == "prompt":
        return prompt, prompt
    names = [
        n
        for n in ("chosen_completion_ids", "rejected_completion_ids", "completion_ids")
        if n in batch.schema.names
    ]
    loss = sum((_lengths(batch.column(n)) for n in names), np.zeros(batch.num_rows, np.int64))
    return prompt + loss, loss
