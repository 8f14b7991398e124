"""Foreign chat turns to ours: sharegpt's from/value, OpenAI's role/content, content parts, calls, reasoning, loss flags.

A turn of two plain fields takes the short path; every further key the long one. A question and its answer in one object
or list are two turns, and bare texts alternate unless each begins with its speaker. The order is checked, never repaired:
the first turn after an optional system turn is the user's, and a tool speaks after a call. Only turns that are nothing
but a call (sharegpt's ``function_call``, ms-swift's ``tool_call``) join the assistant turn before them: several in a row
are parallel calls of one turn.
"""

from __future__ import annotations

import math
import re
from typing import Any

from datamix.formats.drafts import (
    ForeignRow,
    Turn,
    TurnNames,
    Unfit,
    assistant,
    json_text,
    listed,
    named,
    present,
)
from datamix.formats.tool_calls import calls_text, tools_text

_WORDS = {  # role words in use, compared in lower case
    "user": "user human prompter patient customer client student 用户 患者 病人 人类 学生 客户",
    "assistant": "assistant gpt chatgpt bing bard bot model ai chatbot llm doctor agent teacher 助手 医生 机器人 老师 客服",
    "system": "system developer 系统",
    "tool": "tool observation tool_response tool_result function ipython",
    "call": "function_call tool_call",
}
ROLES = {word: role for role, words in _WORDS.items() for word in words.split()}
_PAIRED = ROLES | dict.fromkeys(
    ["question", "query", "q", "instruction", "prompt", "input", "问", "问题"], "user"
)
_PAIRED |= dict.fromkeys(["answer", "response", "a", "output", "答", "回答"], "assistant")
_SPEAKER = re.compile(r"\s*([^\W\d_]{1,12})\s*[:：]\s*")
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "parts", "text", "utterance")
PLAIN = TurnNames(None, None, ROLES)
TURN_PARTS = ("role", "content", "train", "user", "assistant", "system", "tool", "call")  # in a column map
_REASONING = ("reasoning_content", "reasoning", "thinking")
_FLAGS = ("loss", "loss_weight", "loss_scale", "weight", "train", "training", "trainable")
_DETAILS = ("train_detail", "training_detail")  # axolotl: spans of one text


def turn_names(columns: tuple[tuple[str, str], ...]) -> TurnNames:
    """How turns are written, from a column map: ``turn.role``, ``turn.content``, ``turn.train`` (the flag that excludes a
    turn from training), and ``turn.user: USER`` for role words."""
    ours = {name[len("turn.") :]: theirs for name, theirs in columns if name.startswith("turn.")}
    if not ours:
        return PLAIN
    words = {theirs: role for role, theirs in ours.items() if role not in TURN_PARTS[:3]}
    return TurnNames(ours.get("role"), ours.get("content"), {**ROLES, **words}, ours.get("train"))


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
    turns: list[Turn] = []
    spoken = _speakers(value) if value[0].__class__ is str and len(value) > 1 else None
    for index, turn in enumerate(value if spoken is None else spoken):
        word = _role_word(turn, names) if turn.__class__ is dict else None
        if word is None:
            _add_pair(turns, turn, f"{field}[{index}]")
            continue
        role = names.roles.get(word) if word.__class__ is str else None
        if role is None and (role := role_of(turn, names)) is None:
            problem = f"has the unknown role {word!r}; map it: columns: {{turn.user: {word}}}"
            raise Unfit("unknown_role", f"{field}[{index}]", problem)
        content = turn.get("content") if names.content is None else turn.get(names.content)
        if content is None and names.content is None:
            content = next((turn[key] for key in CONTENT_KEYS if turn.get(key) is not None), None)
        if len(turn) == 2 and content.__class__ is str and role != "call":
            turns.append((role, content, None, None, None, None, None))
        elif role == "call":
            _add_call(turns, turn, content, f"{field}[{index}]", names)
        else:
            _add_full_turn(turns, turn, role, content, f"{field}[{index}]", names)
    check_order(turns, field, begun)
    return turns


def is_turns(value: Any) -> bool:
    """Whether a value looks like a conversation, by its first element."""
    first = value[0] if isinstance(value, (list, tuple)) and value else None
    if isinstance(first, dict):
        return any(key in first for key in ROLE_KEYS) or (
            bool(first) and {str(key).lower() for key in first} <= _PAIRED.keys()
        )
    if isinstance(first, (list, tuple)):
        return len(first) == 2 and all(isinstance(part, str) for part in first)
    return isinstance(first, str) and len(value) > 1 and all(isinstance(part, str) for part in value)


def _speakers(texts: list[Any]) -> list[Any]:
    """``["病人：a", "医生：b"]`` or ``["a", "b"]`` -> an object for each text with its role word as key."""
    heads = [_SPEAKER.match(text) if isinstance(text, str) else None for text in texts]
    words = [_PAIRED.get(head[1].lower()) for head in heads if head is not None]
    if len(words) == len(texts) and {"user", "assistant"} == set(words):
        return [
            {word: text[head.end() :]} for word, text, head in zip(words, texts, heads, strict=True) if head
        ]
    return [{("user", "assistant")[index % 2]: text} for index, text in enumerate(texts)]


def _add_pair(turns: list[Turn], pair: Any, field: str) -> None:
    """``{"human": a, "assistant": b}`` or ``[a, b]`` -> two turns."""
    if isinstance(pair, (list, tuple)) and len(pair) == 2:
        pair = dict(zip(("user", "assistant"), pair, strict=True))
    if not isinstance(pair, dict):
        raise Unfit("not_object", field, f"is {named(pair)}, not a turn")
    roles = [_PAIRED.get(str(key).lower(), "") for key in pair]
    if not pair or not {"user", "assistant", "system"} >= set(roles):
        fields = ", ".join(map(str, pair))[:80] or "none"
        raise Unfit(
            "unknown_role",
            field,
            f"has no role (its fields: {fields}); name it: columns: {{turn.role: FIELD}}",
        )
    for role, (key, text) in zip(roles, pair.items(), strict=True):
        if not isinstance(text, str):
            raise Unfit(
                "null_content" if text is None else "not_text",
                f"{field}.{key}",
                f"is {named(text)}, not text",
            )
        turns.append((role, text, None, None, None, None, None))


def _role_word(turn: ForeignRow, names: TurnNames) -> Any:
    if names.role is not None:
        return turn.get(names.role)
    return next((turn[key] for key in ROLE_KEYS if turn.get(key) is not None), None)


def role_of(turn: ForeignRow, names: TurnNames) -> str | None:
    """Our role of a foreign turn, ``call`` for one that is nothing but a call; None: it is unknown."""
    word = _role_word(turn, names)
    return (names.roles.get(word) or names.roles.get(word.lower())) if isinstance(word, str) else None


def _add_call(turns: list[Turn], turn: ForeignRow, content: Any, field: str, names: TurnNames) -> None:
    """A turn that is nothing but a call, after an optional ``<think>`` block: joins the assistant turn before it."""
    reasoning = _first_text(turn, _REASONING, field)
    if isinstance(content, str) and content.lstrip().startswith("<think>") and "</think>" in content:
        thought, _, content = content.lstrip()[len("<think>") :].partition("</think>")
        reasoning = reasoning or thought.strip("\n")
    if content is None and "name" not in turn:
        raise Unfit("null_content", field, "has no content")
    calls = calls_text(turn if content is None else content, field)
    if calls is None:
        raise Unfit("tool_call", field, "is no call with a name and arguments")
    train = _train(turn, field, names)
    before = turns[-1] if turns else None
    if before is None or before[0] != "assistant" or reasoning is not None:
        turns.append(("assistant", None, reasoning, calls, None, None, train))
        return
    if before[6] != train:
        raise Unfit("loss_flag", field, "differs from that of the turn before it, with which it is one turn")
    joined = calls if before[3] is None else f"{before[3][:-1]},{calls[1:]}"
    turns[-1] = (*before[:3], joined, *before[4:])


def _add_full_turn(
    turns: list[Turn], turn: ForeignRow, role: str, content: Any, field: str, names: TurnNames
) -> None:
    """A turn with more than a role and a text: parts, reasoning, calls, ids, flags, definitions of tools."""
    reasoning = _first_text(turn, _REASONING, field)
    calls = calls_text(turn.get("tool_calls") or turn.get("function_call"), f"{field}.tool_calls")
    train = _train(turn, field, names)
    if content.__class__ is list:
        parts = _Parts(f"{field}.content")
        content = parts.read(content)
        turns += parts.results
        if parts.results and content is None:
            return
        reasoning, calls = reasoning or parts.reasoning, calls or parts.calls
        train = parts.train(train)
    definitions = tools_text(turn, field) if role == "system" else None
    if content == "" and calls is not None:
        content = None  # a turn that is nothing but calls has no text
    if content is None and definitions is not None:
        content = ""
    if content is None and calls is None:
        raise Unfit("null_content", field, "has no content")
    if content is not None and content.__class__ is not str:
        raise Unfit("not_text", f"{field}.content", f"is {named(content)}, not text")
    if role == "assistant":
        turns.append((role, content, reasoning, calls, None, None, train))
        return
    if calls is not None:
        raise Unfit("tool_call", field, f"is a {role} turn with tool calls")
    is_tool = role == "tool"
    call_id = _first_text(turn, ("tool_call_id", "call_id", "tool_use_id"), field) if is_tool else None
    name = _first_text(turn, ("name", "tool_name"), field) if is_tool else None
    # of a system turn the definitions, until ``with_extras`` gives them to the record
    turns.append((role, content, None, definitions, call_id, name, None))


def _first_text(turn: ForeignRow, keys: tuple[str, ...], field: str) -> str | None:
    for key in keys:
        value = turn.get(key)
        if value is not None and value != "":
            if value.__class__ is not str:
                raise Unfit("not_text", f"{field}.{key}", f"is {named(value)}, not text")
            return value
    return None


def _train(turn: ForeignRow, field: str, names: TurnNames) -> float | None:
    """0 where a flag excludes the turn from training, else its weight, None where that is 1. Raises Unfit: neither."""
    train: float | None = None
    for key in _FLAGS if names.train is None else (names.train,):
        value = turn.get(key)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or not 0 <= value < math.inf:
            what = named(value) if not isinstance(value, (int, float)) else str(value)
            raise Unfit("loss_flag", f"{field}.{key}", f"is {what}, not a flag or a weight of 0 or more")
        if not value or (value != 1 and train is None):
            train = float(value)
    for key in _DETAILS:
        if turn.get(key):
            raise Unfit(
                "loss_flag", f"{field}.{key}", "flags parts of a text: a turn is trained whole or not"
            )
    return train


class _Parts:
    """Content parts as OpenAI, Anthropic, Gemini and LLaMA-Factory v1 write them: text, reasoning, calls and their results."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._reasoning: list[str] = []
        self._calls: list[str] = []
        self._flags: list[float | None] = []
        self.results: list[Turn] = []  # of tools, which stand in a user turn there

    @property
    def reasoning(self) -> str | None:
        return "".join(self._reasoning) or None

    @property
    def calls(self) -> str | None:
        return f"[{','.join(self._calls)}]" if self._calls else None

    def train(self, train: float | None) -> float | None:
        """The flag of the turn with those of its parts. Raises Unfit: some parts are trained, others not."""
        if len(set(self._flags)) > 1:
            raise Unfit(
                "loss_flag", self._field, "has parts with different flags: a turn is trained whole or not"
            )
        return train if train == 0 else next((flag for flag in self._flags if flag is not None), train)

    def read(self, parts: list[Any]) -> str | None:
        """The text of all parts; None where there is none beside calls or results. Raises Unfit: a part is of another kind."""
        texts: list[str] = []
        for index, part in enumerate(parts):
            place = f"{self._field}[{index}]"
            if isinstance(part, str):
                part = {"type": "text", "text": part}
            if not isinstance(part, dict):
                raise Unfit("content_part", place, f"is {named(part)}, not a part")
            kind = part.get("type") or next((key for key in _UNTYPED if part.get(key) is not None), None)
            if kind == "text" and part.get("thought") is True:
                kind = "thinking"
            if kind in _TEXTS:
                texts.append(_part_text(part, ("text", "value", "content"), place))
            elif kind in ("reasoning", "thinking"):
                self._reasoning.append(_part_text(part, ("value", "thinking", "reasoning", "text"), place))
            elif kind in ("tool_call", "tool_use", "functionCall"):
                calls = calls_text(part.get("value") or part, place)
                self._calls.append((calls or "[]")[1:-1])
            elif kind in ("tool_result", "functionResponse"):
                self.results.append(_result(part, kind, place))
                continue
            else:
                raise Unfit("content_part", place, f"is a part of type {kind!r}, not text")
            self._flags.append(_train(part, place, PLAIN))
        return "".join(texts) if texts or not (self._calls or self.results) else None


_TEXTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text")
_UNTYPED = ("text", "functionCall", "functionResponse")  # Gemini's parts have no type


def _part_text(part: ForeignRow, keys: tuple[str, ...], field: str) -> str:
    for key in keys:
        value = part.get(key)
        if isinstance(value, str):
            return value
    raise Unfit("content_part", field, "is a part without text")


def parts_text(parts: list[Any], field: str) -> str:
    """The text of content parts. Raises Unfit: one is a call, a result or no text."""
    content = _Parts(field)
    text = content.read(parts)
    if content.calls or content.results:
        raise Unfit("content_part", field, "holds calls or results, where text is expected")
    return (content.reasoning or "") + (text or "")


def _result(part: ForeignRow, kind: str, field: str) -> Turn:
    """A tool's result as a turn: Anthropic's blocks or text, Gemini's object as JSON text."""
    result = part.get("functionResponse") if kind == "functionResponse" else part
    if not isinstance(result, dict):
        raise Unfit("content_part", field, f"is {named(result)}, not a result")
    content = result.get("response" if kind == "functionResponse" else "content")
    if kind == "tool_result" and isinstance(content, list):
        content = _Parts(field).read(content)
    elif content is None or isinstance(content, dict):
        content = "" if content is None else json_text(content)
    if not isinstance(content, str):
        raise Unfit("content_part", field, f"is {named(content)}, not a result")
    call_id = _first_text(result, ("tool_use_id", "id"), field)
    return ("tool", content, None, None, call_id, _first_text(result, ("name",), field), None)


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
