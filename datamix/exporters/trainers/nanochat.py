"""nanochat: a ``text`` column in Parquet, the way its ``dataset.py`` writes it; it tokenizes on the fly.

zstd level 3, no dictionary, no statistics, row groups of 1024 texts. It takes the last file of the folder for validation, so
``shard_99999.parquet`` holds the validation of all sources, joined when the splits are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from datamix.core.machine import files_below
from datamix.core.records import Kind
from datamix.exporters.chat_text import piece_texts
from datamix.exporters.columns import rechunk
from datamix.exporters.export_format import CUT_TEXTS, ExportFormat, RecordSource, read_by_hand
from datamix.exporters.folder import make_room

_GROUP_ROWS = 1024
_SCHEMA = pa.schema([("text", pa.string())])
_LAST = "shard_99999.parquet"


@dataclass(frozen=True)
class Nanochat(ExportFormat):
    """``shard_00000.parquet``, ..., ``shard_99999.parquet`` (validation), ``validation/SOURCE-00000.parquet``."""

    records: RecordSource | None = None

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain",)
    # it picks texts from a buffer, and joins and cuts them into rows of its own
    KEEPS: ClassVar[tuple[str, ...]] = ("ratio",)

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its name."""
        name = f"{self.split}-{index:05d}.parquet" if "/" in self.split else f"shard_{index:05d}.parquet"
        texts = (list(piece_texts(batch, self.records)) for batch in batches)
        rows = (pa.RecordBatch.from_pydict({"text": some}, schema=_SCHEMA) for some in texts)
        _write_texts(make_room(folder, name), rows)
        return [name]

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Join the validation of all sources into the last file; write the README."""
        parts = files_below(folder, "validation/*.parquet")
        if parts:
            (folder / _LAST).unlink(missing_ok=True)
            batches = (batch for p in parts for batch in pq.ParquetFile(p).iter_batches(columns=["text"]))
            _write_texts(folder / _LAST, batches)
        notes = (
            read_by_hand("nanochat (commit 92d63d4, July 2026)", "every text, training and validation apart"),
            "Put the shards where nanochat looks for them: `~/.cache/nanochat/base_data_climbmix`, or what its `dataset.py` says.",
            CUT_TEXTS,
            "It picks texts from a buffer of 1,000 to fill its rows, and cuts off what does not fit.",
            f"The last file is its validation: `{_LAST}` holds ours. A set without validation loses its "
            "last shard to it: set `validation:` in the recipe.",
            "Ranks take whole row groups of 1024 texts in turn: a shard should hold at least as many as there are ranks.",
        )
        return [*([_LAST] if parts else []), self.write_readme(folder, "nanochat", notes)]

    def command(self) -> str:
        """Pretraining."""
        return "(cd CHECKOUT && torchrun --standalone --nproc_per_node=8 -m scripts.base_train)"


def _write_texts(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    with pq.ParquetWriter(
        path, _SCHEMA, compression="zstd", compression_level=3, use_dictionary=False, write_statistics=False
    ) as writer:
        for table in rechunk(batches, _GROUP_ROWS):
            writer.write_table(table, row_group_size=_GROUP_ROWS)
