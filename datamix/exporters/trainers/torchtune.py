"""torchtune: Parquet rows and the dataset component that reads them, for it has no format of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.paths import write_text
from datamix.exporters.readme import readers, readme, yaml
from datamix.exporters.staged import StagedFiles
from datamix.exporters.target import SetInfo
from datamix.exporters.trainer_columns import select


@dataclass(frozen=True)
class Torchtune:
    """``train/00000.parquet``, ``datamix_rows.py``, ``dataset.yaml``, ``README.md``."""

    info: SetInfo
    split: str

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return the names."""
        packed = ["seq_lengths"] if self.info.packed else []
        convert = select("input_ids", "labels", *packed)
        return StagedFiles(self.info, self.split, index, folder).parquet(batches, convert)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the component, its config and the README."""
        component = (
            files("datamix.exporters.trainers").joinpath("torchtune_rows.py").read_text(encoding="utf-8")
        )
        dataset: dict[str, Any] = {
            "_component_": "datamix_rows.rows",
            "folder": "train",
            "packed": self.info.packed,
        }
        if self.info.packed:
            dataset |= {"max_seq_len": self.info.max_length, "filler_id": self.info.filler_id}
        notes = (
            readers("torchtune 0.6.1", "ids, labels, positions and block masks of every row, in our order"),
            "`dataset.yaml` holds the lines for your recipe's config. `shuffle: False` and one epoch are there for our order.",
            "The component reads the folder's files in order of their names; a stage is its files `-s0-...`, `-s1-...`.",
        )
        text = readme(f"{self.info.name} for torchtune", self.command(), self.keeps(), notes)
        return [
            write_text(folder, "datamix_rows.py", component),
            write_text(folder, "dataset.yaml", yaml({"dataset": dataset, "shuffle": False, "epochs": 1})),
            write_text(folder, "README.md", text),
        ]

    def keeps(self) -> tuple[str, ...]:
        """Every row in order, while ``shuffle`` is off; its block mask follows ``seq_lens``."""
        return ("ratio", "order", "isolation")

    def command(self) -> str:
        """Training with the component on the path."""
        return (
            "PYTHONPATH=. tune run full_finetune_single_device --config CONFIG dataset._component_=datamix_rows.rows "
            f"dataset.folder=train dataset.packed={self.info.packed} shuffle=False epochs=1"
            + (f" dataset.max_seq_len={self.info.max_length}" if self.info.packed else "")
        )
