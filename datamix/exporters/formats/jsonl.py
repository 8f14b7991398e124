"""JSON Lines: one row a line, every column, numbers as they are.

About twice the size of the tokens it holds; for eyes, scripts and programs without an Arrow reader. Costs one batch
of memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pyarrow as pa

from datamix.core.arrays import ragged
from datamix.core.records import Kind
from datamix.exporters.paths import TextCompression, compressed_suffix, make_room, open_lines, shard_name
from datamix.exporters.target import SetInfo

_BATCH_ROWS = 256  # row dicts alive at once


@dataclass(frozen=True)
class JsonLines:
    """``train/00000.jsonl``, with ``.gz`` or ``.zst`` where compressed."""

    info: SetInfo
    split: str
    compression: TextCompression = "none"

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its name."""
        name = shard_name(self.split, index, f".jsonl{compressed_suffix(self.compression)}")
        rows = (row for batch in batches for row in row_dicts(batch))
        write_lines(make_room(folder, name), rows, self.compression)
        return [name]

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """No extra files."""
        return []

    def keeps(self) -> tuple[str, ...]:
        """Read in order of the names, everything survives."""
        return ("ratio", "order", "isolation")

    def command(self) -> str:
        """How it is read."""
        return 'datasets.load_dataset("json", data_files="train/*.jsonl*", split="train")'


def row_dicts(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as dicts: lists of numbers as numpy views, everything else as Python values."""
    for start in range(0, len(batch), _BATCH_ROWS):
        part = batch.slice(start, _BATCH_ROWS)
        columns = [_values(part, name) for name in part.schema.names]
        for values in zip(*columns, strict=True):
            yield dict(zip(part.schema.names, values, strict=True))


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    kind = batch.schema.field(name).type
    if pa.types.is_list(kind) and pa.types.is_integer(kind.value_type) and not batch.column(name).null_count:
        column = ragged(batch, name)
        return [column[i] for i in range(len(batch))]
    values: list[Any] = batch.column(name).to_pylist()
    return values


def write_lines(path: Path, rows: Iterable[dict[str, Any]], compression: TextCompression = "none") -> int:
    """Write one JSON object a line; return how many."""
    num_rows = 0
    with open_lines(path, compression) as stream:
        for row in rows:
            stream.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
            num_rows += 1
    return num_rows
