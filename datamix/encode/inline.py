"""Inline tags of assistant turns: a leading ``<think>...</think>`` is reasoning, ``<tool_call>{...}</tool_call>`` a call.

Most reasoning and tool data has them inside the content. Read as text, a template that writes these tags itself (as
control tokens) would teach the model other tokens than it must say. Only well-formed tags are read, and only those
that the template can write back; everything else stays text.

``<think>a</think>b`` -> reasoning ``a``, content ``b``. ``b<tool_call>{"name": "f", "arguments": {}}</tool_call>`` ->
content ``b`` and one call.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    from datamix.encode.conversation import Turn

_THINK = re.compile(r"\s*<think>(.*?)</think>\n*", re.DOTALL)
_CALL = re.compile(r"\s*<tool_call>(.*?)</tool_call>\s*", re.DOTALL)


class Parse(NamedTuple):
    """Which inline tags to read."""

    reasoning: bool
    calls: bool


def read(turn: Turn, parse: Parse) -> Turn:
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


def _with_calls(turn: Turn, content: str) -> Turn:
    """Calls that stand at the end of the content; one that is malformed or followed by words leaves all as text."""
    first = content.find("<tool_call>")
    calls: list[Any] = []
    at = _before(content, first)
    while at < len(content):
        match = _CALL.match(content, at)
        call = None if match is None else _call(match.group(1))
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


def _call(text: str) -> dict[str, Any] | None:
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
