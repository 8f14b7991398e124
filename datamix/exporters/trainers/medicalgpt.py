"""MedicalGPT: plain text for pretraining, ShareGPT turns for SFT, a conversation with two answers for reward and DPO.

It reads every file of a folder and has no entry for tokens, so it tokenizes, cuts and shuffles itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pyarrow as pa

from datamix.core.errors import RecipeError
from datamix.core.records import Kind
from datamix.exporters.chat_text import conversation, plain_text, records_of, sharegpt, sole_text, tools_of
from datamix.exporters.paths import write_text
from datamix.exporters.readme import UNSEEN, readme
from datamix.exporters.staged import StagedFiles
from datamix.exporters.target import RecordSource, SetInfo

_SCRIPTS = {
    "pretrain": "pretraining.py",
    "sft": "supervised_finetuning.py",
    "preference": "reward_modeling.py",
}


@dataclass(frozen=True)
class MedicalGpt:
    """``train/00000.jsonl``, ``validation_SOURCE/00000.jsonl``."""

    info: SetInfo
    split: str
    records: RecordSource | None = None

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference")

    def __post_init__(self) -> None:
        if self.info.kind == "preference" and not self.info.paired:
            raise RecipeError(
                "write: medicalgpt holds pairs, and this set holds labelled completions; write `trl`."
            )

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return the names."""
        lines = {"pretrain": self._texts, "sft": self._turns}.get(self.info.kind, _pairs)
        return StagedFiles(self.info, self.split, index, folder).lines(batches, lines)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = (
            UNSEEN,
            "It shuffles and tokenizes what it reads; shares hold over one pass, as far as nothing is cut: give it the "
            f"length that the set was made for ({self.info.max_length}).",
            *(
                ["`dpo_training.py` and `orpo_training.py` read the same pairs; they shuffle without a seed."]
                if self.info.kind == "preference"
                else []
            ),
        )
        text = readme(f"{self.info.name} for MedicalGPT", self.command(), self.keeps(), notes)
        return [write_text(folder, "README.md", text)]

    def keeps(self) -> tuple[str, ...]:
        """It shuffles, and packs pretraining text across documents."""
        return ("ratio",)

    def command(self) -> str:
        """The script of this kind."""
        length = "block_size" if self.info.kind == "pretrain" else "model_max_length"
        if self.info.kind == "preference":
            length = "max_source_length"
        return (
            f"python CHECKOUT/training/{_SCRIPTS[self.info.kind]} --model_name_or_path MODEL --train_file_dir train "
            f"--{length} {self.info.max_length} --num_train_epochs 1 --do_train --output_dir output"
        )

    def _texts(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        for record in records_of(batch, self.records):
            yield {"text": plain_text(record)}

    def _turns(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        for record in records_of(batch, self.records):
            example: dict[str, Any] = {"conversations": sharegpt(conversation(record))}
            tools = tools_of(record)
            yield example | {"tools": orjson.dumps(tools).decode()} if tools else example


def _pairs(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    columns = (batch.column(name).to_pylist() for name in ("prompt", "chosen", "rejected"))
    for prompt, chosen, rejected in zip(*columns, strict=True):
        yield {
            "conversations": sharegpt(prompt),
            "chosen": sole_text(chosen, "chosen"),
            "rejected": sole_text(rejected, "rejected"),
        }
