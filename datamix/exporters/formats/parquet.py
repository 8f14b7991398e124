"""Parquet: the rows themselves, as plain pyarrow files that any reader opens.

No reader's private metadata is written (files with the ``huggingface`` key fail in older ``datasets``). Row groups hold
a fixed number of rows, so the bytes do not depend on how rows came cut. Costs one row group of memory. zstd at level 1: level 3
makes files 6 % smaller for 1.5 times the processor time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from datamix.core.records import Kind
from datamix.exporters.columns import first_schema, rechunk
from datamix.exporters.paths import make_room
from datamix.exporters.target import SetInfo

_GROUP_TOKENS = 1 << 21  # a row group's tokens: 8 MiB a column of int32
_MAX_GROUP_ROWS = 4096
_DICTIONARY = ("source", "stage")  # few values, long runs


def group_rows(info: SetInfo) -> int:
    """Rows a row group: about two million tokens at full length."""
    if info.max_length is None:
        return _MAX_GROUP_ROWS // 4
    return max(1, min(_MAX_GROUP_ROWS, _GROUP_TOKENS // info.max_length))


@dataclass(frozen=True)
class Parquet:
    """``train/00000.parquet``, ``validation/SOURCE-00000.parquet``."""

    info: SetInfo
    split: str
    compression: Literal["zstd", "snappy", "lz4", "gzip", "none"] = "zstd"

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its name."""
        part = f"{self.split}-{index:05d}" if "/" in self.split else f"{self.split}/{index:05d}"
        name = f"{part}.parquet"
        write_parquet(make_room(folder, name), batches, self.info, self.compression)
        return [name]

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """No extra files."""
        return []

    def keeps(self) -> tuple[str, ...]:
        """Read in order of the names, everything survives."""
        return ("ratio", "order", "isolation")

    def command(self) -> str:
        """How it is read."""
        return 'datasets.load_dataset("parquet", data_files="train/*.parquet", split="train")'


def write_parquet(
    path: Path,
    batches: Iterable[pa.RecordBatch],
    info: SetInfo,
    compression: str = "zstd",
    empty: pa.Schema | None = None,
) -> int:
    """Write rows into one file, of schema ``empty`` where there are none; return how many."""
    schema, rows = first_schema(batches, empty or info.schema)
    num_rows = 0
    size = group_rows(info)
    with pq.ParquetWriter(
        path,
        schema,
        compression=compression,
        compression_level=1 if compression == "zstd" else None,
        use_dictionary=[name for name in _DICTIONARY if name in schema.names],
        write_statistics=False,
    ) as writer:
        for table in rechunk(rows, size):
            writer.write_table(table, row_group_size=size)
            num_rows += len(table)
    return num_rows
