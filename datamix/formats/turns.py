"""Foreign chat turns to ours: sharegpt's from/value, OpenAI's role/content, content parts, calls, reasoning, loss flags.

A turn of two plain fields takes the short path; every further key the long one. The order is checked, never repaired:
the first turn after an optional system turn is the user's, and a tool speaks after a call.
"""

from __future__ import annotations

from typing import Any

from datamix.formats.drafts import (
    ForeignRow,
    Turn,
    TurnNames,
    Unfit,
    assistant,
    listed,
    named,
    parsed,
    present,
)
from datamix.formats.tool_calls import calls_text

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function": "tool",
    "ipython": "tool",
    "function_call": "call",
    "tool_call": "call",
}
PLAIN = TurnNames(None, None, ROLES)
_REASONING = ("reasoning_content", "reasoning", "thinking")
_UNTRAINED = ("loss", "loss_weight", "loss_scale", "weight", "train")


def turn_names(columns: tuple[tuple[str, str], ...]) -> TurnNames:
    """How turns are written, from a column map: ``turn.role``, ``turn.content``, and ``turn.user: USER`` for role words."""
    ours = {name[len("turn.") :]: theirs for name, theirs in columns if name.startswith("turn.")}
    if not ours:
        return PLAIN
    words = {theirs: role for role, theirs in ours.items() if role not in ("role", "content")}
    return TurnNames(ours.get("role"), ours.get("content"), {**ROLES, **words})


def conversation(row: ForeignRow, fields: tuple[str, ...], names: TurnNames) -> list[Turn]:
    """The checked turns of the first of ``fields`` that is present. Raises Unfit."""
    field = present(row, fields)
    return read_turns(row[field], field, names)


def read_turns(value: Any, field: str, names: TurnNames, begun: bool = False) -> list[Turn]:
    """A list of foreign turns as ours, their order checked. ``begun``: they answer a prompt. Raises Unfit."""
    if value.__class__ is not list:
        value = listed(value, field)
    if not value:
        raise Unfit("empty_conversation", field, "has no turns")
    turns = [_turn(turn, field, i, names) for i, turn in enumerate(value)]
    check_order(turns, field, begun)
    return turns


def _turn(turn: Any, field: str, index: int, names: TurnNames) -> Turn:
    if turn.__class__ is not dict:
        raise Unfit("not_object", f"{field}[{index}]", f"is {named(turn)}, not a turn")
    if names.role is None:
        word = turn.get("role")
        if word is None:
            word = turn.get("from")
    else:
        word = turn.get(names.role)
    role = names.roles.get(word) if word.__class__ is str else None
    if role is None:
        raise Unfit("unknown_role", f"{field}[{index}]", f"has the unknown role {word!r}")
    if names.content is None:
        content = turn.get("content")
        if content is None:
            content = turn.get("value")
    else:
        content = turn.get(names.content)
    if len(turn) == 2 and content.__class__ is str and role != "call":
        return (role, content, None, None, None, None, None)
    return _full_turn(turn, role, content, f"{field}[{index}]")


def _full_turn(turn: ForeignRow, role: str, content: Any, field: str) -> Turn:
    """A turn with more than a role and a text: parts, reasoning, calls, ids, flags.

    The content of a turn in the role of a call is the call, after an optional ``<think>`` block (sharegpt's ``function_call``).
    """
    reasoning = _first_text(turn, _REASONING, field)
    if role == "call":
        if isinstance(content, str) and content.lstrip().startswith("<think>") and "</think>" in content:
            thought, _, content = content.lstrip()[len("<think>") :].partition("</think>")
            reasoning = reasoning or thought.strip("\n")
        if content is None:
            raise Unfit("null_content", field, "has no content")
        return ("assistant", None, reasoning, calls_text(content, field), None, None, _train(turn, field))
    calls = turn.get("tool_calls") or turn.get("function_call")
    written = calls_text(calls, f"{field}.tool_calls") if calls else None
    if content.__class__ is list:
        content, part_reasoning, part_calls = _parts(content, f"{field}.content")
        reasoning = reasoning or part_reasoning
        written = written or part_calls
    if content == "" and written is not None:
        content = None  # a turn that is nothing but calls has no text
    if content is None and written is None:
        raise Unfit("null_content", field, "has no content")
    if content is not None and content.__class__ is not str:
        raise Unfit("not_text", f"{field}.content", f"is {named(content)}, not text")
    if role != "assistant":
        if written is not None:
            raise Unfit("tool_call", field, f"is a {role} turn with tool calls")
        call_id = _first_text(turn, ("tool_call_id",), field) if role == "tool" else None
        name = _first_text(turn, ("name",), field) if role == "tool" else None
        return (role, content, None, None, call_id, name, None)
    return (role, content, reasoning, written, None, None, _train(turn, field))


def _first_text(turn: ForeignRow, keys: tuple[str, ...], field: str) -> str | None:
    for key in keys:
        value = turn.get(key)
        if value is not None and value != "":
            if value.__class__ is not str:
                raise Unfit("not_text", f"{field}.{key}", f"is {named(value)}, not text")
            return value
    return None


def _train(turn: ForeignRow, field: str) -> bool | None:
    """False where a flag excludes the turn from training; weights are read as yes or no."""
    for key in _UNTRAINED:
        value = turn.get(key)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)):
            raise Unfit("loss_flag", f"{field}.{key}", f"is {named(value)}, not a flag or a weight")
        return None if value else False
    return None


def _parts(parts: list[Any], field: str) -> tuple[str | None, str | None, str | None]:
    """A list of content parts -> (content, reasoning, tool calls). Raises Unfit: a part is not text."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Any] = []
    for index, part in enumerate(parts):
        place = f"{field}[{index}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise Unfit("content_part", place, f"is {named(part)}, not a part")
        kind = part.get("type")
        if kind == "text":
            texts.append(_part_text(part, ("text", "value", "content"), place))
        elif kind in ("reasoning", "thinking"):
            thoughts.append(_part_text(part, ("value", "thinking", "reasoning", "text"), place))
        elif kind == "tool_call":
            value = part.get("value")
            calls.append(parsed(value, place, "tool_call") if isinstance(value, str) else value)
        else:
            raise Unfit("content_part", place, f"is a part of type {kind!r}, not text")
    content = "".join(texts) if texts or not calls else None
    return content, "".join(thoughts) or None, calls_text(calls, field) if calls else None


def _part_text(part: ForeignRow, keys: tuple[str, ...], field: str) -> str:
    for key in keys:
        value = part.get(key)
        if isinstance(value, str):
            return value
    raise Unfit("content_part", field, "is a part without text")


def check_order(turns: list[Turn], field: str, begun: bool = False) -> None:
    """Raise Unfit unless the turns can follow each other: system first, then the user, tools after calls."""
    previous = "user" if begun else ""
    for index, turn in enumerate(turns):
        role = turn[0]
        if role == "assistant":
            if previous in ("", "system"):
                raise Unfit("turn_order", f"{field}[{index}]", "is an assistant turn before any user turn")
        elif role == "tool":
            if previous not in ("assistant", "tool") or (begun and index == 0):
                raise Unfit(
                    "turn_order", f"{field}[{index}]", f"is a tool turn after {previous or 'nothing'}"
                )
        elif role == "system":
            if index or begun:
                raise Unfit("turn_order", f"{field}[{index}]", "is a system turn that is not the first")
        elif begun and index == 0:
            raise Unfit("turn_order", f"{field}[{index}]", "is a user turn where an answer should begin")
        previous = role


def final_turns(value: Any, field: str, names: TurnNames) -> list[Turn]:
    """An answer as turns: text, one turn, or a list of turns. Raises Unfit."""
    if value.__class__ is str:
        return [assistant(value)]
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, (list, tuple)):
        return read_turns(list(value), field, names, begun=True)
    reason = "null_field" if value is None else "not_text"
    raise Unfit(reason, field, f"is {named(value)}, not an answer")


def last_answer(turns: list[Turn]) -> int:
    """Where the closing assistant turns begin: ``[user, assistant, user, assistant]`` -> 3, ``[user]`` -> 1."""
    index = len(turns)
    while index and turns[index - 1][0] == "assistant":
        index -= 1
    return index
