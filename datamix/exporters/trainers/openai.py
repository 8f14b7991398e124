"""OpenAI's fine-tuning files: chat examples, or pairs for preference tuning, one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datamix.core.errors import RecipeError
from datamix.core.records import Kind
from datamix.exporters.chat_text import conversation, openai_messages, records_of, tools_of
from datamix.exporters.paths import write_text
from datamix.exporters.readme import UNSEEN, readme
from datamix.exporters.staged import StagedFiles
from datamix.exporters.target import RecordSource, SetInfo


@dataclass(frozen=True)
class OpenAi:
    """``train/00000.jsonl``: ``{"messages": [...]}``, or ``input``, ``preferred_output``, ``non_preferred_output``."""

    info: SetInfo
    split: str
    records: RecordSource | None = None

    KINDS: ClassVar[tuple[Kind, ...]] = ("sft", "preference")

    def __post_init__(self) -> None:
        if self.info.kind == "preference" and not self.info.paired:
            raise RecipeError(
                "write: openai holds pairs, and this set holds labelled completions; write `trl`."
            )

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return the names."""
        lines = self._examples if self.info.kind == "sft" else _pairs
        return StagedFiles(self.info, self.split, index, folder).lines(batches, lines)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = (
            UNSEEN,
            "One shard is one upload; join shards with `cat train/*.jsonl` where a job wants a single file.",
            "A turn that is not to be trained carries `weight: 0`. The service shuffles and renders the "
            "conversations with a template of its own.",
        )
        return [
            write_text(
                folder,
                "README.md",
                readme(f"{self.info.name} for OpenAI", self.command(), self.keeps(), notes),
            )
        ]

    def keeps(self) -> tuple[str, ...]:
        """The service shuffles."""
        return ("ratio",)

    def command(self) -> str:
        """How a job begins."""
        return "cat train/*.jsonl > train.jsonl && openai api files.create -f train.jsonl -p fine-tune"

    def _examples(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        for record in records_of(batch, self.records):
            example: dict[str, Any] = {"messages": openai_messages(conversation(record))}
            tools = tools_of(record)
            yield example | {"tools": tools} if tools else example


def _pairs(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for prompt, chosen, rejected in zip(
        *(batch.column(name).to_pylist() for name in ("prompt", "chosen", "rejected")), strict=True
    ):
        yield {"input": {"messages": prompt}, "preferred_output": chosen, "non_preferred_output": rejected}
