"""Raw uint32 ids and offsets, as torchtitan's notes on custom data ask for.

``00000.tokens.bin`` ids end to end (little-endian uint32 whatever the vocabulary), ``00000.offsets.bin`` uint64
``[num_rows + 1]``: row i is ``tokens[offsets[i]:offsets[i + 1]]``. A dataset over them is two memory maps and an index.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.columns import pour
from datamix.exporters.paths import make_room, shard_name
from datamix.exporters.target import SetInfo


@dataclass(frozen=True)
class Torchtitan:
    """``train/00000.tokens.bin``, ``train/00000.offsets.bin``."""

    info: SetInfo
    split: str

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain",)

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its names."""
        names = [shard_name(self.split, index, suffix) for suffix in (".tokens.bin", ".offsets.bin")]
        with make_room(folder, names[0]).open("wb") as tokens:
            ends = pour(batches, tokens, np.dtype("<u4"))
        (folder / names[1]).write_bytes(ends.rows.astype("<u8").tobytes())
        return names

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """No extra files."""
        return []

    def keeps(self) -> tuple[str, ...]:
        """Rows in order; borders of documents are not told."""
        return ("ratio", "order")

    def command(self) -> str:
        """How it is read."""
        return (
            'tokens = np.memmap("train/00000.tokens.bin", np.uint32, "r"); '
            'offsets = np.memmap("train/00000.offsets.bin", np.uint64, "r"); row = tokens[offsets[i]:offsets[i + 1]]'
        )
