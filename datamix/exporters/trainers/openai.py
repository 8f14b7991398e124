"""OpenAI's fine-tuning files: chat examples, or pairs for preference tuning, one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.chat_text import conversation, openai_messages, records_of, tools_of
from datamix.exporters.export_format import UNSEEN, RecordSource
from datamix.exporters.folder import StagedLines


@dataclass(frozen=True)
class OpenAi(StagedLines):
    """``train/00000.jsonl``: ``{"messages": [...]}``, or ``input``, ``preferred_output``, ``non_preferred_output``."""

    records: RecordSource | None = None

    KINDS: ClassVar[tuple[Kind, ...]] = ("sft", "preference")
    LABELLED: ClassVar[bool] = False
    KEEPS: ClassVar[tuple[str, ...]] = ("ratio",)  # the service shuffles

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = (
            UNSEEN,
            "One shard is one upload; join shards with `cat train/*.jsonl` where a job wants a single file.",
            "A turn that is not to be trained carries `weight: 0`. The service shuffles and renders the "
            "conversations with a template of its own.",
        )
        return [self.write_readme(folder, "OpenAI", notes)]

    def command(self) -> str:
        """How a job begins."""
        return "cat train/*.jsonl > train.jsonl && openai api files.create -f train.jsonl -p fine-tune"

    def lines(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        """An example a line."""
        if self.info.kind == "preference":
            for row in batch.select(["prompt", "chosen", "rejected"]).to_pylist():
                yield {
                    "input": {"messages": row["prompt"]},
                    "preferred_output": row["chosen"],
                    "non_preferred_output": row["rejected"],
                }
            return
        for record in records_of(batch, self.records):
            tools = tools_of(record)
            yield {"messages": openai_messages(conversation(record))} | ({"tools": tools} if tools else {})
