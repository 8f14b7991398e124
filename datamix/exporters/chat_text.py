"""Records as text in the forms that trainers read: OpenAI messages, ShareGPT turns, plain text.

What a form has no place for is put into the text in the form's usual notation, never dropped: reasoning as a leading
``<think>`` block, calls beside words as ``<tool_call>`` blocks. ``datamix build`` reads both back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from datamix.core.errors import DataError
from datamix.exporters.export_format import RecordSource

Message = dict[str, Any]
_FETCH_RECORDS = 1024  # records in memory as Python objects at once
_FROM = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def records_of(batch: pa.RecordBatch, records: RecordSource | None) -> Iterator[dict[str, Any]]:
    """The records that begin in these rows, in order; a record cut over several rows comes once.

    Raises:
        DataError: nothing was given to read them from.
    """
    if records is None:
        raise DataError(
            "this format holds text, and the set holds tokens: its prepared records are no longer in the cache. "
            "Build the set again with this format among `write:`"
        )
    pieces = batch.column("records").flatten()
    files, numbers, starts = (
        pieces.field(n).to_numpy().astype(np.int64) for n in ("file", "record", "start")
    )
    begin = np.flatnonzero(starts == 0)
    for first in range(0, len(begin), _FETCH_RECORDS):
        some = begin[first : first + _FETCH_RECORDS]
        yield from records.fetch_many(files[some], numbers[some])


def plain_text(record: dict[str, Any]) -> str:
    """The text of a text record.

    Raises:
        DataError: the record is a conversation, which a chat template makes into tokens.
    """
    if "text" not in record:
        raise DataError(
            "this format holds plain text, and a source of the set holds conversations, which a chat template made into "
            "tokens; write a format of tokens (parquet, arrow, megatron, ...), or leave that source out"
        )
    return str(record["text"])


def conversation(record: dict[str, Any]) -> list[Message]:
    """The turns of a record; of a pair, its prompt and what was chosen."""
    return [*record["messages"], *(record.get("chosen") or [])]


def openai_messages(turns: list[Message]) -> list[Message]:
    """Messages as OpenAI's chat format has them: arguments as JSON text, ids for calls, no empty fields."""
    out: list[Message] = []
    waiting: list[str] = []  # ids of calls that no tool has answered
    number = 0
    for turn in turns:
        message: Message = {"role": turn["role"], "content": _content(turn)}
        calls = _calls(turn)
        if calls:
            ids = [call.get("id") or f"call_{number + i}" for i, call in enumerate(calls)]
            number += len(calls)
            waiting += ids
            message["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {
                        "name": call["function"]["name"],
                        "arguments": _json(call["function"].get("arguments", {})),
                    },
                }
                for call, call_id in zip(calls, ids, strict=True)
            ]
            message["content"] = message["content"] or None
        if turn["role"] == "tool":
            answered = turn.get("tool_call_id") or (waiting[0] if waiting else "call_0")
            waiting = [i for i in waiting if i != answered]
            message["tool_call_id"] = answered
        if turn.get("name"):
            message["name"] = turn["name"]
        if turn.get("train") is False:
            message["weight"] = 0
        out.append(message)
    return out


def sharegpt(turns: list[Message]) -> list[dict[str, str]]:
    """Turns as ``{"from", "value"}``: system, human, gpt, observation, and function_call for a turn of calls alone."""
    out = []
    for turn in turns:
        calls = [
            {"name": c["function"]["name"], "arguments": c["function"].get("arguments", {})}
            for c in _calls(turn)
        ]
        content = _content(turn)
        if calls and not turn.get("content"):
            out.append(
                {"from": "function_call", "value": content + _json(calls[0] if len(calls) == 1 else calls)}
            )
        else:
            blocks = [f"\n<tool_call>\n{_json(call)}\n</tool_call>" for call in calls]
            out.append({"from": _FROM[turn["role"]], "value": "".join([content, *blocks])})
    return out


def sole_text(turns: list[Message], what: str) -> str:
    """The text of a completion of one turn.

    Raises:
        DataError: it has several turns, and the format has room for one.
    """
    if len(turns) != 1:
        raise DataError(
            f"a {what} completion has {len(turns)} turns, and this format holds one; write `trl`, `ms-swift` or `parquet`"
        )
    return str(turns[0]["content"] or "")


def tools_of(record: dict[str, Any]) -> list[Any]:
    """Tool definitions of a record, empty where it has none."""
    tools: list[Any] = json.loads(record["tools"]) if record.get("tools") else []
    return tools


def _content(turn: Message) -> str:
    content = turn.get("content") or ""
    if turn.get("reasoning"):
        return f"<think>\n{turn['reasoning']}\n</think>\n\n{content}"
    return str(content)


def _calls(turn: Message) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = json.loads(turn["tool_calls"]) if turn.get("tool_calls") else []
    return calls


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
