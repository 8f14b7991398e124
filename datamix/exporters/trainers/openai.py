"""OpenAI's fine-tuning files: chat examples, or pairs for preference tuning, one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.chat_text import answers, openai_messages, talks
from datamix.exporters.export_format import UNSEEN, LeftOut, RecordSource
from datamix.exporters.folder import StagedLines


@dataclass(frozen=True)
class OpenAi(StagedLines):
    """``train/00000.jsonl``: ``{"messages": [...]}``, or ``input``, ``preferred_output``, ``non_preferred_output``."""

    records: RecordSource | None = None

    KINDS: ClassVar[tuple[Kind, ...]] = ("sft", "preference")
    LABELLED: ClassVar[bool] = False
    RENDERS: ClassVar[bool] = True
    KEEPS: ClassVar[tuple[str, ...]] = ("ratio",)  # the service shuffles

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = [
            UNSEEN,
            "One shard is one upload; join shards with `cat train/*.jsonl` where a job wants a single file.",
            "A turn that is not to be trained carries `weight: 0`. The service shuffles and renders the "
            "conversations with a template of its own.",
        ]
        if self.info.loss_on == "all":
            notes.append("The set trains questions too; the service trains answers alone.")
        return [self.write_readme(folder, "OpenAI", notes)]

    def command(self) -> str:
        """How a job begins."""
        return "cat train/*.jsonl > train.jsonl && openai api files.create -f train.jsonl -p fine-tune"

    def lines(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any] | LeftOut]:
        """An example a line."""
        if self.info.kind == "preference":
            for prompt, row in answers(batch):
                if prompt.media:
                    yield prompt.left_out("media")
                    continue
                tools = {"tools": prompt.tools} if prompt.tools else {}
                sides = [openai_messages(prompt.turns + row[side]) for side in ("chosen", "rejected")]
                for message in chain(*sides):
                    message.pop("weight", None)  # messages of a pair have none
                chosen, rejected = (side[len(prompt.turns) :] for side in sides)
                yield {
                    "input": {"messages": sides[0][: len(prompt.turns)], **tools},
                    "preferred_output": chosen,
                    "non_preferred_output": rejected,
                }
            return
        for talk in talks(batch, self.records, self.info):
            if isinstance(talk, LeftOut) or talk.media:
                yield talk if isinstance(talk, LeftOut) else talk.left_out("media")
            else:
                yield {"messages": openai_messages(talk.turns)} | (
                    {"tools": talk.tools} if talk.tools else {}
                )
