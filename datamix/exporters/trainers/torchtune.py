"""torchtune: Parquet rows and the dataset component that reads them, for it has no format of its own."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.export_format import read_by_hand
from datamix.exporters.folder import StagedParquet, write_text, write_yaml


@dataclass(frozen=True)
class Torchtune(StagedParquet):
    """``train/00000.parquet``, ``datamix_rows.py``, ``dataset.yaml``, ``README.md``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft")

    def convert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Ids, labels and where documents are packed their lengths."""
        return batch.select(["input_ids", "labels", *(["seq_lengths"] if self.info.packed else [])])

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the component, its config and the README."""
        component = files("datamix.exporters.trainers").joinpath("torchtune_rows.py")
        packed = {"max_seq_len": self.info.max_length, "filler_id": self.info.filler_id}
        dataset: dict[str, Any] = {
            "_component_": "datamix_rows.rows",
            "folder": "train",
            "packed": self.info.packed,
            **(packed if self.info.packed else {}),
        }
        notes = (
            read_by_hand(
                "torchtune 0.6.1", "ids, labels, positions and block masks of every row, in our order"
            ),
            "`dataset.yaml` holds the lines for your recipe's config. `shuffle: False` and one epoch are there for our order.",
            "The component reads the folder's files in order of their names; a stage is its files `-s0-...`, `-s1-...`.",
        )
        return [
            write_text(folder, "datamix_rows.py", component.read_text(encoding="utf-8")),
            write_yaml(folder, "dataset.yaml", {"dataset": dataset, "shuffle": False, "epochs": 1}),
            self.write_readme(folder, "torchtune", notes),
        ]

    def command(self) -> str:
        """Training with the component on the path."""
        return (
            "PYTHONPATH=. tune run full_finetune_single_device --config CONFIG dataset._component_=datamix_rows.rows "
            f"dataset.folder=train dataset.packed={self.info.packed} shuffle=False epochs=1"
            + (f" dataset.max_seq_len={self.info.max_length}" if self.info.packed else "")
        )
