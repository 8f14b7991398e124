"""open-instruct: a dataset as its local cache keeps it, so that it neither mixes nor tokenizes.

SFT: ``input_ids``, ``attention_mask``, ``labels``, a row a document. Pairs: ``chosen_*`` and ``rejected_*``, each with its prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.columns import documents_or_pairs
from datamix.exporters.export_format import ExportFormat, read_by_hand
from datamix.exporters.formats.row_files import ArrowFolder


@dataclass(frozen=True)
class OpenInstruct(ExportFormat):
    """``train/`` (a ``save_to_disk`` folder): its cache folder is this one, its config hash is ``train``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference")
    LABELLED: ClassVar[bool] = False
    KEEPS: ClassVar[tuple[str, ...]] = ("ratio", "isolation")  # it shuffles; a row is one document

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return the names."""
        return ArrowFolder(self.info, self.split, documents_or_pairs).write(batches, index, folder)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the datasets' states and the README."""
        names = ArrowFolder(self.info, self.split).finish(shards, folder)
        pairs = self.info.kind == "preference"
        notes = (
            read_by_hand(
                "open-instruct (commit e6c3044, August 2026)",
                "both sides of every pair" if pairs else "ids and labels of every document",
            ),
            "Any words do for the mixer list: with a config hash it loads the cached dataset as it is."
            + (
                " Its cache of reference log-probabilities still resolves the names in `--mixer_list`."
                if pairs
                else ""
            ),
            "It shuffles, and pads the rows of a batch; with `--packing` it joins them and keeps their borders under flash "
            f"attention. A stage is its own dataset: `--dataset_local_cache_dir stages --{self._script[1]} NAME`.",
        )
        return [*names, self.write_readme(folder, "open-instruct", notes)]

    def command(self) -> str:
        """Training from the cache."""
        script, flag = self._script
        return (
            f"python CHECKOUT/open_instruct/{script} --model_name_or_path MODEL --dataset_local_cache_dir . --{flag} train "
            f"--dataset_cache_mode local --max_seq_length {self.info.max_length} --num_train_epochs 1"
        )

    @property
    def _script(self) -> tuple[str, str]:
        """Its script for this kind, and the flag by which that names a cached dataset."""
        pairs = self.info.kind == "preference"
        return ("dpo.py", "config_hash") if pairs else ("finetune.py", "dataset_config_hash")
