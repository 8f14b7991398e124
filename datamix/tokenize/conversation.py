"""Conversations out of Arrow batches, and the message dicts that a chat template reads.

A conversation is a list of turns plus tools and template arguments. ``to_message`` builds the dict of one
turn. Its caller maps each free string (a *slot*: content, reasoning, function names and the strings in their
arguments) and each other string of the data, so the same walk gives the real messages, escaped ones, or ones
with placeholders in the slots.

Reasoning and tool calls that a data set wrote into the content (``<think>``, ``<tool_call>``) become fields
of their turn, so that the template writes them its way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeGuard

import orjson
import pyarrow as pa

from datamix.core.errors import DataError

StringMap = Callable[[str], str]

_THINK = re.compile(r"\s*<think>(.*?)</think>\n*", re.DOTALL)
_UNOPENED_THINK = re.compile(r"((?:(?!<think>).)*?)</think>\n*", re.DOTALL)
_CALL = re.compile(r"\s*<tool_call>(.*?)</tool_call>\s*", re.DOTALL)


class ChatTurn(NamedTuple):
    """One message; ``calls`` is the parsed JSON list of tool calls."""

    role: str
    content: str | None
    reasoning: str | None = None
    calls: Any = None
    tool_call_id: str | None = None
    name: str | None = None
    train: float | None = None  # 0: never trained; else the weight of its loss


class InlineParse(NamedTuple):
    """Which inline tags to parse."""

    reasoning: bool
    calls: bool
    unopened: bool = False  # also reasoning that ends with </think> and has no <think>


class MessageForm(NamedTuple):
    """How a record's fields are handed to a template; templates differ in what they can read."""

    arguments_as_text: bool = False  # arguments of calls as JSON text, not as an object
    missing_content: Literal["absent", "null", "empty"] = "absent"  # of a turn that is nothing but calls
    content_parts: bool = False  # content as [{"type": "text", "text": ...}]


USUAL_FORM = MessageForm()


class Conversation:
    """The turns of one record with its tools and template arguments."""

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
        """All that decides the rendering except the slots' texts: equal shapes have equal constant parts."""
        return (tuple(map(_turn_shape, self.turns)), self.tools_text, self.kwargs_text)

    def slots(self) -> list[str]:
        """The texts of the slots, in the order in which ``to_message`` maps them."""
        texts: list[str] = []

        def collect(text: str) -> str:
            texts.append(text)
            return text

        for turn in self.turns:
            if _has_text(turn.content):
                texts.append(turn.content)
            if _has_text(turn.reasoning):
                texts.append(turn.reasoning)
            if turn.calls is not None:
                map_calls(turn.calls, collect, str)
        return texts

    def has_text(self) -> bool:
        """Whether any turn holds text or calls."""
        return any(_has_text(turn.content) or turn.calls or _has_text(turn.reasoning) for turn in self.turns)


def _has_text(text: str | None) -> TypeGuard[str]:
    """Whether a text is a slot. Blank ones are not: templates test whether there is any."""
    return text is not None and text != "" and not text.isspace()


def _parsed(text: str | None, kind: type) -> Any:
    if text is None:
        return None
    value = json.loads(text)  # orjson turns integers above 64 bits into floats
    if not isinstance(value, kind):
        raise DataError(
            f"encode: tools and kwargs of a record must be a JSON {kind.__name__}, found {text[:80]}."
        )
    return value or None


def _turn_shape(turn: ChatTurn) -> tuple[Any, ...]:
    content, reasoning = turn.content, turn.reasoning
    calls = None
    if turn.calls is not None:
        calls = json.dumps(map_calls(turn.calls, lambda _: "\x00", str))
    return (
        turn.role,
        True if _has_text(content) else content,
        True if _has_text(reasoning) else reasoning,
        calls,
        turn.tool_call_id,
        turn.name,
        turn.train,
    )


def to_message(
    turn: ChatTurn, slot: StringMap, exact: StringMap, form: MessageForm = USUAL_FORM
) -> dict[str, Any]:
    """The message dict of a turn; null fields are left out unless ``form`` says otherwise.

    ``slot`` maps each free text (content, then reasoning, then those of the calls), ``exact`` the data's
    other strings.
    """
    message: dict[str, Any] = {"role": turn.role}
    if turn.content is not None:
        content = _map_text(turn.content, slot)
        message["content"] = [{"type": "text", "text": content}] if form.content_parts else content
    elif form.missing_content != "absent":
        message["content"] = None if form.missing_content == "null" else ""
    if turn.reasoning is not None:
        message["reasoning_content"] = _map_text(turn.reasoning, slot)
        message["thinking"] = message["reasoning_content"]
    if turn.calls is not None:
        message["tool_calls"] = map_calls(turn.calls, slot, exact)
        for call in message["tool_calls"] if form.arguments_as_text else []:
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), dict):
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    if turn.tool_call_id is not None:
        message["tool_call_id"] = exact(turn.tool_call_id)
    if turn.name is not None:
        message["name"] = exact(turn.name)
    return message


def map_calls(calls: Any, slot: StringMap, exact: StringMap) -> Any:
    """Tool calls; the function's name and the strings in its arguments are slots, keys and ids are exact."""
    if not isinstance(calls, list):
        return map_strings(calls, exact)
    return [_map_call(call, slot, exact) for call in calls]


def _map_call(call: Any, slot: StringMap, exact: StringMap) -> Any:
    if not isinstance(call, dict):
        return map_strings(call, exact)
    mapped = {}
    for key, value in call.items():
        if key == "function" and isinstance(value, dict):
            mapped[key] = {
                exact(name): _map_slots(field, slot, exact)
                if name in ("name", "arguments")
                else map_strings(field, exact)
                for name, field in value.items()
            }
        else:
            mapped[exact(key)] = map_strings(value, exact)
    return mapped


def _map_slots(value: Any, slot: StringMap, exact: StringMap) -> Any:
    if isinstance(value, str):
        return _map_text(value, slot)
    if isinstance(value, list):
        return [_map_slots(item, slot, exact) for item in value]
    if isinstance(value, dict):
        return {exact(key): _map_slots(item, slot, exact) for key, item in value.items()}
    return value


def _map_text(text: str, slot: StringMap) -> str:
    return slot(text) if _has_text(text) else text


def map_strings(value: Any, exact: StringMap) -> Any:
    """JSON with ``exact`` applied to every string in it, keys included."""
    if isinstance(value, str):
        return exact(value)
    if isinstance(value, list):
        return [map_strings(item, exact) for item in value]
    if isinstance(value, dict):
        return {exact(key): map_strings(item, exact) for key, item in value.items()}
    return value


def conversations(batch: pa.RecordBatch, parse: InlineParse) -> list[Conversation]:
    """The ``messages`` of a batch of records, row for row; ``parse``: which inline tags become fields."""
    return _conversations(batch, batch.column("messages"), parse)


def completions(batch: pa.RecordBatch, name: str, parse: InlineParse) -> list[list[ChatTurn] | None]:
    """The turns of ``chosen`` or ``rejected``, row for row; None where null."""
    column = batch.column(name)
    is_valid = column.is_valid().to_pylist()
    rows = _conversations(batch, column, parse)
    return [list(row.turns) if valid else None for row, valid in zip(rows, is_valid, strict=True)]


def _conversations(batch: pa.RecordBatch, column: pa.ListArray, parse: InlineParse) -> list[Conversation]:
    flat = column.flatten()
    calls = [
        None if text is None else json.loads(text) or None for text in flat.field("tool_calls").to_pylist()
    ]
    turns = [
        parse_inline(ChatTurn(*fields), parse) if fields[0] == "assistant" else ChatTurn(*fields)
        for fields in zip(
            flat.field("role").to_pylist(),
            flat.field("content").to_pylist(),
            flat.field("reasoning").to_pylist(),
            calls,
            flat.field("tool_call_id").to_pylist(),
            flat.field("name").to_pylist(),
            flat.field("train").to_pylist(),
            strict=True,
        )
    ]
    result, begin = [], 0
    lengths = column.value_lengths().to_pylist()
    columns = (batch.column("tools").to_pylist(), batch.column("kwargs").to_pylist())
    for length, tools, kwargs in zip(lengths, *columns, strict=True):
        end = begin + (length or 0)
        result.append(Conversation(turns[begin:end], tools, kwargs))
        begin = end
    return result


def parse_inline(turn: ChatTurn, parse: InlineParse) -> ChatTurn:
    """The turn with its inline tags parsed into fields; a turn without tags comes back unchanged."""
    content = turn.content
    if content is None:
        return turn
    if parse.reasoning and turn.reasoning is None and "</think>" in content:
        match = _THINK.match(content)
        if match is None and parse.unopened:
            match = _UNOPENED_THINK.match(content)
        if match is not None:
            content = content[match.end() :]
            turn = turn._replace(reasoning=match.group(1).strip("\n"), content=content)
    if parse.calls and turn.calls is None and "</tool_call>" in content:
        turn = _parse_calls(turn, content)
    return turn


def _parse_calls(turn: ChatTurn, content: str) -> ChatTurn:
    """Parse calls at the end of the content; if one is malformed or followed by words, all stays text."""
    text_end = at = len(content[: content.find("<tool_call>")].rstrip())
    calls: list[Any] = []
    while at < len(content):
        match = _CALL.match(content, at)
        call = None if match is None else _parse_call(match.group(1))
        if match is None or call is None:
            return turn
        calls.append(call)
        at = match.end()
    return turn._replace(content=content[:text_end] or None, calls=calls) if calls else turn


def _parse_call(text: str) -> dict[str, Any] | None:
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
