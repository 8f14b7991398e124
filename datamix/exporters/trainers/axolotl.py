"""Axolotl: the three columns that it takes as tokenized already, a row a document, and its YAML.

It gives packed rows positions of its own, so documents are handed over one by one and packed again by it, in
order and with their borders. It keeps them apart where its YAML names an attention; its default does not. Pairs are
messages, rendered by it through the tokenizer's template: it takes the last turn of an answer alone, so answers of
several turns are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from datamix.core.errors import DataError, RecipeError
from datamix.core.records import Kind
from datamix.exporters.paths import write_text
from datamix.exporters.readme import readme, yaml
from datamix.exporters.staged import StagedFiles, split_names
from datamix.exporters.target import SetInfo
from datamix.exporters.trainer_columns import documents


@dataclass(frozen=True)
class Axolotl:
    """``train/00000.parquet``, ``config.yaml``, ``README.md``."""

    info: SetInfo
    split: str

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference")

    def __post_init__(self) -> None:
        if self.info.kind == "preference" and not self.info.paired:
            raise RecipeError(
                "write: axolotl holds pairs, and this set holds labelled completions; write `trl`."
            )

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return the names."""
        paired = self.info.kind == "preference"
        convert = _pairs if paired else documents
        return StagedFiles(self.info, self.split, index, folder).parquet(batches, convert)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the config and the README."""
        settings: dict[str, Any] = {
            "datasets": [
                self._dataset(name)
                for split, names in split_names(folder, "*/*.parquet").items()
                for name in names
                if split == "train"
            ],
            "test_datasets": self._tests(folder),
            "shuffle_merged_datasets": False,
            "curriculum_sampling": True,
            "num_epochs": 1,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 8,
            "learning_rate": 1e-5,
            "sequence_len": self.info.max_length,
            "output_dir": "output",
        }
        if self.info.kind == "preference":
            settings |= {"rl": "dpo", "chat_template": "tokenizer_default"}
        elif self.info.packed:
            settings |= {
                "sample_packing": True,
                "sample_packing_sequentially": True,
                "attn_implementation": "sdpa",
            }
        names = [write_text(folder, "config.yaml", yaml({k: v for k, v in settings.items() if v != []}))]
        return [*names, write_text(folder, "README.md", self._readme())]

    def keeps(self) -> tuple[str, ...]:
        """Sequential packing keeps the order, and the attention that the config names keeps packed documents apart."""
        return ("ratio", "isolation") if self.info.kind == "preference" else ("ratio", "order", "isolation")

    def command(self) -> str:
        """Training."""
        return "axolotl train config.yaml --base-model MODEL"

    def _dataset(self, name: str) -> dict[str, Any]:
        kind = "chat_template.default" if self.info.kind == "preference" else None
        return {"path": name, "ds_type": "parquet", "type": kind}

    def _tests(self, folder: Path) -> list[dict[str, Any]]:
        """Validation, a file each; of pairs one entry, for its DPO looks each up by its place among ``datasets``."""
        names = [
            name
            for split, names in split_names(folder, "*/*.parquet").items()
            for name in names
            if split != "train"
        ]
        if self.info.kind == "preference" and names:
            return [self._dataset(".") | {"data_files": names, "split": "train"}]
        return [self._dataset(name) | {"split": "train"} for name in names]

    def _readme(self) -> str:
        notes = [
            "The config keeps our order: no shuffle of the merged set, `curriculum_sampling`, one pass. Rows longer than "
            "`sequence_len` would be dropped: leave it at what the set was made for.",
            "Learning rate and batch size are ours to start with and yours to change. Delete its `last_run_prepared` folder when the set changes: it keys what it prepared by names.",
        ]
        if self.info.kind == "preference":
            notes[0] = (
                "Its DPO shuffles. Pairs longer than `sequence_len` are dropped, and of a turn it reads the words alone, no calls."
            )
        if self.info.packed:
            notes.append(
                "It packs the documents again, in order. `attn_implementation` must stay, as `sdpa` or `flash_attention_2`: where none "
                "is named, the documents that it packs see each other."
            )
        return readme(f"{self.info.name} for Axolotl", self.command(), self.keeps(), notes)


def _pairs(batch: pa.RecordBatch) -> pa.RecordBatch:
    """``messages`` (the prompt's), ``chosen`` and ``rejected`` of one turn each."""
    for name in ("chosen", "rejected"):
        turns = pc.max(pc.list_value_length(batch.column(name))).as_py()
        if turns is not None and turns != 1:
            raise DataError(
                f"a {name} completion has {turns} turns, and Axolotl takes the last alone; write `trl` or `parquet`"
            )
    names = {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"}
    return pa.RecordBatch.from_pydict({name: batch.column(ours) for name, ours in names.items()})
