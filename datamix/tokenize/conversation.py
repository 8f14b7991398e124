"""Conversations out of Arrow batches, and their form for a chat template.

A conversation is a list of turns plus tools and template arguments. ``dressed`` builds the message dicts that a template
reads; the caller says what becomes of each free string (a *slot*: content, reasoning, function names and the strings in
their arguments) and of each other string the data wrote, so the same walk gives the real messages, escaped ones, or
ones with sentinels in the slots.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import pyarrow as pa

from datamix.core.errors import DataError

Put = Callable[[str], str]


class ChatTurn(NamedTuple):
    """One message; ``calls`` is the parsed JSON list of tool calls."""

    role: str
    content: str | None
    reasoning: str | None = None
    calls: Any = None
    tool_call_id: str | None = None
    name: str | None = None
    train: bool | None = None


class Conversation:
    """The turns of one record with its tools and its own template arguments."""

    def __init__(self, turns: Sequence[ChatTurn], tools: str | None, kwargs: str | None) -> None:
        self.turns = tuple(turns)
        self.tools_text = tools
        self.kwargs_text = kwargs

    @cached_property
    def tools(self) -> list[Any] | None:
        tools: list[Any] | None = _parsed(self.tools_text, list)
        return tools

    @cached_property
    def kwargs(self) -> dict[str, Any]:
        return _parsed(self.kwargs_text, dict) or {}

    def with_turns(self, turns: Sequence[ChatTurn]) -> Conversation:
        """The same tools and arguments with other turns."""
        return Conversation(turns, self.tools_text, self.kwargs_text)

    def shape(self) -> tuple[Any, ...]:
        """All that decides the rendering but the slots' texts: equal shapes have equal constant parts."""
        return (tuple(map(_turn_shape, self.turns)), self.tools_text, self.kwargs_text)

    def slots(self) -> list[str]:
        """The texts of the slots, in the order in which ``dressed`` meets them."""
        texts: list[str] = []
        for turn in self.turns:
            if turn.content is not None and not turn.content.isspace() and turn.content:
                texts.append(turn.content)
            if turn.reasoning is not None and turn.reasoning and not turn.reasoning.isspace():
                texts.append(turn.reasoning)
            if turn.calls is not None:
                to_message_calls(turn.calls, _collector(texts), str)
        return texts

    def has_text(self) -> bool:
        """Whether any turn says or calls anything."""
        return any(
            (turn.content and not turn.content.isspace()) or turn.calls or (turn.reasoning or "").strip()
            for turn in self.turns
        )


def _parsed(text: str | None, kind: type) -> Any:
    if text is None:
        return None
    value = json.loads(text)  # unlike orjson it keeps integers of any size
    if not isinstance(value, kind):
        raise DataError(
            f"encode: tools and kwargs of a record must be a JSON {kind.__name__}, found {text[:80]}."
        )
    return value or None


def _collector(texts: list[str]) -> Put:
    def collect(text: str) -> str:
        texts.append(text)
        return text

    return collect


def _turn_shape(turn: ChatTurn) -> tuple[Any, ...]:
    content, reasoning = turn.content, turn.reasoning
    if turn.calls is None and reasoning is None and content and not content.isspace():
        return (turn.role, True, None, None, turn.tool_call_id, turn.name, turn.train)
    calls = None if turn.calls is None else _skeleton(turn.calls)
    return (
        turn.role,
        True if content and not content.isspace() else content,
        True if reasoning and not reasoning.isspace() else reasoning,
        calls,
        turn.tool_call_id,
        turn.name,
        turn.train,
    )


def _skeleton(calls: Any) -> str:
    return json.dumps(to_message_calls(calls, lambda _: "\x00", str))


def to_message(turn: ChatTurn, slot: Put, exact: Put) -> dict[str, Any]:
    """The message dict of a turn, null fields left out as transformers does.

    ``slot`` maps each free text (content, then reasoning, then the calls'); ``exact`` the other strings of the data.
    Blank texts are no slots: templates ask whether there is anything.
    """
    message: dict[str, Any] = {"role": turn.role}
    if turn.content is not None:
        message["content"] = _put(turn.content, slot)
    if turn.reasoning is not None:
        message["reasoning_content"] = _put(turn.reasoning, slot)
        message["thinking"] = message["reasoning_content"]
    if turn.calls is not None:
        message["tool_calls"] = to_message_calls(turn.calls, slot, exact)
    if turn.tool_call_id is not None:
        message["tool_call_id"] = exact(turn.tool_call_id)
    if turn.name is not None:
        message["name"] = exact(turn.name)
    return message


def to_message_calls(calls: Any, slot: Put, exact: Put) -> Any:
    """Tool calls with the function's name and the strings in its arguments as slots; keys and ids are exact."""
    if not isinstance(calls, list):
        return exact_json(calls, exact)
    return [_call(call, slot, exact) for call in calls]


def _call(call: Any, slot: Put, exact: Put) -> Any:
    if not isinstance(call, dict):
        return exact_json(call, exact)
    changed = {}
    for key, value in call.items():
        if key == "function" and isinstance(value, dict):
            changed[key] = {
                exact(name): _leaves(part, slot, exact)
                if name in ("name", "arguments")
                else exact_json(part, exact)
                for name, part in value.items()
            }
        else:
            changed[exact(key)] = exact_json(value, exact)
    return changed


def _leaves(value: Any, slot: Put, exact: Put) -> Any:
    if isinstance(value, str):
        return _put(value, slot)
    if isinstance(value, list):
        return [_leaves(item, slot, exact) for item in value]
    if isinstance(value, dict):
        return {exact(key): _leaves(item, slot, exact) for key, item in value.items()}
    return value


def exact_json(value: Any, exact: Put) -> Any:
    """JSON with ``exact`` applied to every string in it, keys included."""
    if isinstance(value, str):
        return exact(value)
    if isinstance(value, list):
        return [exact_json(item, exact) for item in value]
    if isinstance(value, dict):
        return {exact(key): exact_json(item, exact) for key, item in value.items()}
    return value


def _put(text: str, slot: Put) -> str:
    return slot(text) if text and not text.isspace() else text


def conversations(batch: pa.RecordBatch, parse: InlineParse) -> list[Conversation]:
    """The ``messages`` of a batch of records, row for row; ``parse`` says which inline tags are read."""
    return _conversations(batch, batch.column("messages"), parse)


def completions(batch: pa.RecordBatch, name: str, parse: InlineParse) -> list[list[ChatTurn] | None]:
    """The turns of ``chosen`` or ``rejected``, row for row; None where null."""
    column = batch.column(name)
    valid = column.is_valid().to_pylist()
    found = _conversations(batch, column, parse)
    return [list(one.turns) if ok else None for one, ok in zip(found, valid, strict=True)]


def _conversations(batch: pa.RecordBatch, column: pa.ListArray, parse: InlineParse) -> list[Conversation]:
    flat = column.flatten()
    turns = [
        parse_inline(ChatTurn(*fields), parse) if fields[0] == "assistant" else ChatTurn(*fields)
        for fields in zip(
            flat.field("role").to_pylist(),
            flat.field("content").to_pylist(),
            flat.field("reasoning").to_pylist(),
            [
                None if text is None else json.loads(text) or None
                for text in flat.field("tool_calls").to_pylist()
            ],
            flat.field("tool_call_id").to_pylist(),
            flat.field("name").to_pylist(),
            flat.field("train").to_pylist(),
            strict=True,
        )
    ]
    found, at = [], 0
    lengths = column.value_lengths().to_pylist()
    columns = (batch.column("tools").to_pylist(), batch.column("kwargs").to_pylist())
    for length, tools, kwargs in zip(lengths, *columns, strict=True):
        length = length or 0
        found.append(Conversation(turns[at : at + length], tools, kwargs))
        at += length
    return found


if TYPE_CHECKING:
    pass

_THINK = re.compile(r"\s*<think>(.*?)</think>\n*", re.DOTALL)
_CALL = re.compile(r"\s*<tool_call>(.*?)</tool_call>\s*", re.DOTALL)


class InlineParse(NamedTuple):
    """Which inline tags to read."""

    reasoning: bool
    calls: bool


def parse_inline(turn: ChatTurn, parse: InlineParse) -> ChatTurn:
    """The turn with its inline tags read; a turn without them comes back as it is."""
    content = turn.content
    if content is None:
        return turn
    if parse.reasoning and turn.reasoning is None and "</think>" in content:
        match = _THINK.match(content)
        if match is not None:
            turn = turn._replace(reasoning=match.group(1).strip("\n"), content=content[match.end() :])
            content = turn.content or ""
    if parse.calls and turn.calls is None and "</tool_call>" in content:
        turn = _with_calls(turn, content)
    return turn


def _with_calls(turn: ChatTurn, content: str) -> ChatTurn:
    """Calls that stand at the end of the content; one that is malformed or followed by words leaves all as text."""
    first = content.find("<tool_call>")
    calls: list[Any] = []
    at = _before(content, first)
    while at < len(content):
        match = _CALL.match(content, at)
        call = None if match is None else _parsed_call(match.group(1))
        if match is None or call is None:
            return turn
        calls.append(call)
        at = match.end()
    if not calls:
        return turn
    said = content[: _before(content, first)]
    return turn._replace(content=said or None, calls=calls)


def _before(content: str, at: int) -> int:
    """Where the white space before a place begins."""
    return len(content[:at].rstrip())


def _parsed_call(text: str) -> dict[str, Any] | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    if set(value) - {"name", "arguments"} or not isinstance(arguments, dict):
        return None
    return {"type": "function", "function": {"name": value["name"], "arguments": arguments}}
