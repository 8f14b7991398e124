"""open-instruct: a dataset as its local cache keeps it, so that it neither mixes nor tokenizes.

SFT: ``input_ids``, ``attention_mask``, ``labels``, a row a document. Pairs: ``chosen_*`` and ``rejected_*``, each with its prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from datamix.core.errors import RecipeError
from datamix.core.records import Kind
from datamix.exporters.formats.arrow import ArrowFolder
from datamix.exporters.paths import write_text
from datamix.exporters.readme import readers, readme
from datamix.exporters.target import SetInfo
from datamix.exporters.trainer_columns import documents, pairs


@dataclass(frozen=True)
class OpenInstruct:
    """``train/`` (a ``save_to_disk`` folder): its cache folder is this one, its config hash is ``train``."""

    info: SetInfo
    split: str

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference")

    def __post_init__(self) -> None:
        if self.info.kind == "preference" and not self.info.paired:
            raise RecipeError(
                "write: open-instruct holds pairs, and this set holds labelled completions; write `trl`."
            )

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return the names."""
        convert = _pairs if self.info.kind == "preference" else documents
        return ArrowFolder(self.info, self.split, convert).write(batches, index, folder)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the datasets' states and the README."""
        names = ArrowFolder(self.info, self.split).finish(shards, folder)
        pairs = self.info.kind == "preference"
        seen = readers(
            "open-instruct (commit e6c3044, August 2026)",
            "both sides of every pair" if pairs else "ids and labels of every document",
        )
        notes = (
            seen,
            "Any words do for the mixer list: with a config hash it loads the cached dataset as it is."
            + (
                " Its cache of reference log-probabilities still resolves the names in `--mixer_list`."
                if pairs
                else ""
            ),
            "It shuffles, and pads the rows of a batch; with `--packing` it joins them and keeps their borders under flash "
            "attention. A stage is its own dataset: `--dataset_local_cache_dir stages --"
            f"{'config_hash' if pairs else 'dataset_config_hash'} NAME`.",
        )
        text = readme(f"{self.info.name} for open-instruct", self.command(), self.keeps(), notes)
        return [*names, write_text(folder, "README.md", text)]

    def keeps(self) -> tuple[str, ...]:
        """It shuffles; a row is one document."""
        return ("ratio", "isolation")

    def command(self) -> str:
        """Training from the cache."""
        if self.info.kind == "preference":
            script, flag = "dpo.py", "config_hash"
        else:
            script, flag = "finetune.py", "dataset_config_hash"
        return (
            f"python CHECKOUT/open_instruct/{script} --model_name_or_path MODEL --dataset_local_cache_dir . --{flag} train "
            f"--dataset_cache_mode local --max_seq_length {self.info.max_length} --num_train_epochs 1"
        )


def _pairs(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(pairs(batch))
