"""Batches of records for tests, and what transformers makes of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from datamix.core.records import SCHEMAS
from datamix.tokenize import Encoder, EncodeSpec, find_tokenizer, load

Message = dict[str, Any]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str | None, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def tool(content: str, **more: Any) -> Message:
    return {"role": "tool", "content": content, **more}


def call(name: str, arguments: dict[str, Any], id_: str = "abcdefghi") -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def _stored(message: Message) -> Message:
    fields = {
        name: message.get(name) for name in ("role", "content", "reasoning", "tool_call_id", "name", "train")
    }
    calls = message.get("tool_calls")
    return {**fields, "tool_calls": None if calls is None else json.dumps(calls, ensure_ascii=False)}


def sft(
    conversations: list[list[Message]], tools: list[Any] | None = None, kwargs: Message | None = None
) -> pa.RecordBatch:
    return _batch("sft", {"messages": [[*map(_stored, one)] for one in conversations]}, tools, kwargs)


def prompts(conversations: list[list[Message]]) -> pa.RecordBatch:
    columns = {
        "messages": [[*map(_stored, one)] for one in conversations],
        "reference": [None] * len(conversations),
    }
    return _batch("prompt", columns)


def pairs(rows: list[tuple[list[Message], list[Message], list[Message] | None]]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {
        "messages": [[*map(_stored, prompt)] for prompt, _, _ in rows],
        "chosen": [[*map(_stored, chosen)] for _, chosen, _ in rows],
        "rejected": [None if rejected is None else [*map(_stored, rejected)] for _, _, rejected in rows],
        "label": [True if rejected is None else None for _, _, rejected in rows],
        "margin": [None] * len(rows),
    }
    return _batch("preference", columns)


def texts(documents: list[str]) -> pa.RecordBatch:
    num = len(documents)
    columns = {"slice": [0] * num, "record": list(range(num)), "text": documents, "meta": [None] * num}
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMAS["text"])


def _batch(
    kind: str, columns: dict[str, list[Any]], tools: list[Any] | None = None, kwargs: Message | None = None
) -> pa.RecordBatch:
    num = len(columns["messages"])
    values = {
        "slice": [0] * num,
        "record": list(range(num)),
        "tools": [None if tools is None else json.dumps(tools, ensure_ascii=False)] * num,
        "kwargs": [None if kwargs is None else json.dumps(kwargs)] * num,
        "meta": [None] * num,
        **columns,
    }
    return pa.RecordBatch.from_pydict(values, schema=SCHEMAS[kind])


def encoder(folder: Path, kind: str = "sft", loss_on: str = "assistant", **options: str) -> Encoder:
    return load(EncodeSpec(kind, find_tokenizer(str(folder), "."), loss_on, **options))  # type: ignore[arg-type]


@cache
def reference(folder: Path) -> Any:
    """The same tokenizer as transformers loads it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder))


def rendered(folder: Path, messages: list[Message], tools: Any = None, **kwargs: Any) -> str:
    """What transformers renders."""
    named = [
        {
            ("reasoning_content" if key == "reasoning" else key): value
            for key, value in message.items()
            if key != "train"
        }
        for message in messages
    ]
    return str(reference(folder).apply_chat_template(named, tools=tools, tokenize=False, **kwargs))


def trained_text(one: Encoder, row: Message) -> list[str]:
    """The text of each trained stretch of a row of tokens, decoded behind an ``x``: decoders drop a leading blank."""
    anchor = one.plain.encode(["x"]).ids.tolist()[-1:]
    before_text = one.decode(anchor)
    stretches: list[list[int]] = []
    for before, id_, flag in zip([0, *row["mask"]], row["ids"], row["mask"], strict=False):
        if flag and not before:
            stretches.append([])
        if flag:
            stretches[-1].append(id_)
    return [one.decode([*anchor, *ids]).removeprefix(before_text) for ids in stretches]
