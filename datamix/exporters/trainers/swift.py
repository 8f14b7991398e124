"""ms-swift: standard messages, one JSON object a line; it renders and tokenizes them itself.

Its switches for our order are in the command: neither the set nor the loader is shuffled. Without ``--strict`` it would
drop what it cannot render (tools, where its template has no form for them) or what is too long, and go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.chat_text import (
    Message,
    conversation,
    openai_messages,
    plain_text,
    records_of,
    tools_of,
)
from datamix.exporters.paths import write_text
from datamix.exporters.readme import UNSEEN, readme
from datamix.exporters.staged import StagedFiles
from datamix.exporters.target import RecordSource, SetInfo

_VERBS = {"pretrain": "pt", "sft": "sft", "prompt": "rlhf --rlhf_type grpo"}


@dataclass(frozen=True)
class Swift:
    """``train/00000.jsonl``: ``messages``, with ``rejected_messages``, ``label`` or ``solution`` where they apply."""

    info: SetInfo
    split: str
    records: RecordSource | None = None

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return the names."""
        lines = {"pretrain": self._texts, "sft": self._turns, "prompt": _prompts}.get(
            self.info.kind, _pairs if self.info.paired else _labelled
        )
        return StagedFiles(self.info, self.split, index, folder).lines(batches, lines)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = [] if self._trained else [UNSEEN]
        notes.append(
            "`--strict true` stops at a record that it cannot render, where it would drop it else. Where tools stop it, name a "
            "form for them: `--agent_template hermes`."
        )
        if self.info.max_length:
            end = "is split" if self.info.kind == "pretrain" else "loses its beginning"
            notes.append(f"It renders and cuts by itself: what is longer than the set's length {end}.")
        if self.info.kind in ("pretrain", "sft"):
            notes.append(
                "Add `--packing true` for short rows: it packs in windows of its own, with documents kept apart under flash attention."
            )
        text = readme(f"{self.info.name} for ms-swift", self.command(), self.keeps(), notes)
        return [write_text(folder, "README.md", text)]

    def keeps(self) -> tuple[str, ...]:
        """One example a row, in our order, as far as a test of ours trained from it."""
        return ("ratio", "order", "isolation") if self._trained else ("ratio", "isolation")

    @property
    def _trained(self) -> bool:
        return self.info.kind in ("pretrain", "sft") or (self.info.kind == "preference" and self.info.paired)

    def command(self) -> str:
        """Training without a shuffle."""
        verb = _VERBS.get(self.info.kind, "rlhf --rlhf_type " + ("dpo" if self.info.paired else "kto"))
        cut = "split" if self.info.kind == "pretrain" else "left"
        length = (
            f" --max_length {self.info.max_length} --truncation_strategy {cut}"
            if self.info.max_length
            else ""
        )
        return (
            f"swift {verb} --model MODEL --dataset train/*.jsonl --split_dataset_ratio 0 --dataset_shuffle false "
            f"--train_dataloader_shuffle false --strict true --num_train_epochs 1{length}"
        )

    def _texts(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        for record in records_of(batch, self.records):
            yield {"messages": [{"role": "assistant", "content": plain_text(record)}]}

    def _turns(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        for record in records_of(batch, self.records):
            example: dict[str, Any] = {"messages": _messages(conversation(record))}
            tools = tools_of(record)
            yield example | {"tools": orjson.dumps(tools).decode()} if tools else example


def _messages(turns: list[Message]) -> list[Message]:
    """Its roles: calls are turns ``tool_call`` of JSON, answers are ``tool_response``; ``loss`` false where untrained."""
    out: list[Message] = []
    for message in openai_messages(turns):
        loss = {"loss": False} if message.get("weight") == 0 else {}
        if message["role"] == "tool":
            out.append({"role": "tool_response", "content": message["content"]})
            continue
        if message["content"] is not None:
            out.append({"role": message["role"], "content": message["content"], **loss})
        for call in message.get("tool_calls", []):
            arguments = orjson.loads(call["function"]["arguments"])
            text = orjson.dumps({"name": call["function"]["name"], "arguments": arguments}).decode()
            out.append({"role": "tool_call", "content": text, **loss})
    return out


def _pairs(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = ("prompt", "chosen", "rejected", "margin")
    for prompt, chosen, rejected, margin in zip(*(batch.column(n).to_pylist() for n in names), strict=True):
        example = {"messages": prompt + chosen, "rejected_messages": prompt + rejected}
        yield example if margin is None else example | {"margin": margin}


def _labelled(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = ("prompt", "completion", "label")
    for prompt, said, label in zip(*(batch.column(n).to_pylist() for n in names), strict=True):
        yield {"messages": prompt + said, "label": label}


def _prompts(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for prompt, reference in zip(
        *(batch.column(n).to_pylist() for n in ("prompt", "reference")), strict=True
    ):
        yield {"messages": prompt, "solution": reference}
