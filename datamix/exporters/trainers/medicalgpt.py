"""MedicalGPT: plain text for pretraining, ShareGPT turns for SFT, a conversation with two answers for reward and DPO.

It reads every file of a folder and has no entry for tokens, so it tokenizes, cuts and shuffles itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.chat_text import conversation, plain_text, records_of, sharegpt, sole_text, tools_of
from datamix.exporters.export_format import UNSEEN, RecordSource
from datamix.exporters.folder import StagedLines

_SCRIPTS = {  # of a kind: its script, and the name of the length there
    "pretrain": ("pretraining.py", "block_size"),
    "sft": ("supervised_finetuning.py", "model_max_length"),
    "preference": ("reward_modeling.py", "max_source_length"),
}


@dataclass(frozen=True)
class MedicalGpt(StagedLines):
    """``train/00000.jsonl``, ``validation_SOURCE/00000.jsonl``."""

    records: RecordSource | None = None

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference")
    LABELLED: ClassVar[bool] = False
    KEEPS: ClassVar[tuple[str, ...]] = ("ratio",)  # it shuffles, and packs pretraining text across documents

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = [
            UNSEEN,
            "It shuffles and tokenizes what it reads; shares hold over one pass, as far as nothing is cut: give it the "
            f"length that the set was made for ({self.info.max_length}).",
        ]
        if self.info.kind == "preference":
            notes.append(
                "`dpo_training.py` and `orpo_training.py` read the same pairs; they shuffle without a seed."
            )
        return [self.write_readme(folder, "MedicalGPT", notes)]

    def command(self) -> str:
        """The script of this kind."""
        script, length = _SCRIPTS[self.info.kind]
        return (
            f"python CHECKOUT/training/{script} --model_name_or_path MODEL --train_file_dir train "
            f"--{length} {self.info.max_length} --num_train_epochs 1 --do_train --output_dir output"
        )

    def lines(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        """An example a line."""
        if self.info.kind == "preference":
            for row in batch.select(["prompt", "chosen", "rejected"]).to_pylist():
                yield {
                    "conversations": sharegpt(row["prompt"]),
                    "chosen": sole_text(row["chosen"], "chosen"),
                    "rejected": sole_text(row["rejected"], "rejected"),
                }
            return
        for record in records_of(batch, self.records):
            if self.info.kind == "pretrain":
                yield {"text": plain_text(record)}
                continue
            tools = tools_of(record)
            example: dict[str, Any] = {"conversations": sharegpt(conversation(record))}
            yield example | ({"tools": orjson.dumps(tools).decode()} if tools else {})
