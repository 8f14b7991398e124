"""ms-swift: standard messages, one JSON object a line; it renders and tokenizes them itself.

Its switches for our order are in the command: neither the set nor the loader is shuffled. Without ``--strict`` it would
drop what it cannot render (tools, where its template has no form for them) or what is too long, and go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.chat_text import Message, Talk, answers, openai_messages, piece_texts, talks
from datamix.exporters.export_format import CUT_TEXTS, UNSEEN, LeftOut, RecordSource
from datamix.exporters.folder import StagedLines


@dataclass(frozen=True)
class Swift(StagedLines):
    """``train/00000.jsonl``: ``messages``, with ``rejected_messages``, ``label`` or ``solution`` where they apply."""

    records: RecordSource | None = None

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")
    RENDERS: ClassVar[bool] = True

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = [] if self._trained else [UNSEEN]
        notes.append(
            "`--strict true` stops at a record that it cannot render, where it would drop it else. Where tools stop it, name a "
            "form for them: `--agent_template hermes`."
        )
        if self.info.kind == "pretrain":
            notes.append(CUT_TEXTS)
        if self.info.max_length:
            end = "is split" if self.info.kind == "pretrain" else "loses its beginning"
            notes.append(f"It renders and cuts by itself: what is longer than the set's length {end}.")
        if self.info.kind in ("pretrain", "sft"):
            notes.append(
                "Add `--packing true` for short rows: it packs in windows of its own, with documents kept apart under flash attention."
            )
        return [self.write_readme(folder, "ms-swift", notes)]

    def keeps(self) -> tuple[str, ...]:
        """One example a row, in our order, as far as a test of ours trained from it."""
        return self.KEEPS if self._trained else ("ratio", "isolation")

    @property
    def _trained(self) -> bool:
        return self.info.kind in ("pretrain", "sft") or (self.info.kind == "preference" and self.info.paired)

    def command(self) -> str:
        """Training without a shuffle."""
        verbs = {"pretrain": "pt", "sft": "sft", "prompt": "rlhf --rlhf_type grpo"}
        verb = verbs.get(self.info.kind, "rlhf --rlhf_type " + ("dpo" if self.info.paired else "kto"))
        cut = "split" if self.info.kind == "pretrain" else "left"
        length = (
            f" --max_length {self.info.max_length} --truncation_strategy {cut}"
            if self.info.max_length
            else ""
        )
        if self.info.kind == "sft" and self.info.loss_on == "all":
            length += " --loss_scale all"
        return (
            f"swift {verb} --model MODEL --dataset train/*.jsonl --split_dataset_ratio 0 --dataset_shuffle false "
            f"--train_dataloader_shuffle false --strict true --num_train_epochs 1{length}"
        )

    def lines(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any] | LeftOut]:
        """An example a line: a text, a conversation, a pair, a labelled completion or a prompt."""
        if self.info.kind == "pretrain":
            for text in piece_texts(batch, self.records):
                yield {"messages": [{"role": "assistant", "content": text}]}
        elif self.info.kind == "sft":
            for talk in talks(batch, self.records, self.info):
                yield (
                    talk
                    if isinstance(talk, LeftOut)
                    else _with_tools({"messages": _messages(talk.turns)}, talk)
                )
        else:
            for talk, row in answers(batch):
                yield _with_tools(self._preference_or_prompt(talk.turns, row), talk)

    def _preference_or_prompt(self, prompt: list[Message], row: dict[str, Any]) -> dict[str, Any]:
        if self.info.kind == "prompt":
            return {"messages": _messages(prompt), "solution": row["reference"]}
        if not self.info.paired:
            return {"messages": _messages(prompt + row["completion"]), "label": row["label"]}
        chosen, rejected = (_messages(prompt + row[side]) for side in ("chosen", "rejected"))
        margin = {} if row["margin"] is None else {"margin": row["margin"]}
        return {"messages": chosen, "rejected_messages": rejected, **margin}


def _with_tools(example: dict[str, Any], talk: Talk) -> dict[str, Any]:
    return example | ({"tools": orjson.dumps(talk.tools).decode()} if talk.tools else {}) | talk.media


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
