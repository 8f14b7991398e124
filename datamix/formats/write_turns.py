"""Turns in the forms of other tools; what a form cannot hold is counted, or refuses the record."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from datamix.formats.drafts import ForeignRow, Turn, json_text, parsed

Lost = Counter[str]


class Unwritable(Exception):
    """A record that a format cannot hold at all; the argument says why."""


def _lose_weight(train: float | None, lost: Lost) -> None:
    """Count a flag or weight of a turn that a format has no place for."""
    if train is not None:
        lost["flags of turns that are never trained" if train == 0 else "weights of the loss of turns"] += 1


def openai_turns(turns: list[Turn], _: Lost) -> list[ForeignRow]:
    """``{"role", "content"}`` with every field that a turn may have: nothing is lost."""
    rows: list[ForeignRow] = []
    for role, content, reasoning, calls, call_id, name, train in turns:
        more = {"reasoning_content": reasoning, "tool_call_id": call_id, "name": name}
        row: ForeignRow = {"role": role, "content": content}
        row.update((key, value) for key, value in more.items() if value is not None)
        if calls is not None:
            row["tool_calls"] = parsed(calls, "tool_calls", "tool_call")
        if train == 0:
            row["loss"] = False
        elif train is not None:
            row["weight"] = train
        rows.append(row)
    return rows


def openai_service_turns(turns: list[Turn], lost: Lost) -> list[ForeignRow]:
    """Messages as OpenAI's service takes them: arguments as JSON text, an id for each call and result, reasoning inline."""
    rows: list[ForeignRow] = []
    waiting: list[str] = []  # ids of calls without a result
    number = 0
    for role, content, reasoning, calls, call_id, name, train in turns:
        _lose_weight(train, lost)
        if reasoning is not None:
            lost["reasoning as a field (written inline as <think>)"] += 1
            content = f"<think>\n{reasoning}\n</think>\n\n{content or ''}"
        row: ForeignRow = {"role": role, "content": content, **({} if name is None else {"name": name})}
        if calls is not None:
            row["tool_calls"] = []
            for call in parsed(calls, "tool_calls", "tool_call"):
                function = {key: call["function"][key] for key in ("name", "arguments")}
                if not isinstance(function["arguments"], str):
                    function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
                waiting.append(call.get("id") or f"call_{number}")
                row["tool_calls"].append({"id": waiting[-1], "type": "function", "function": function})
                number += 1
        if role == "tool":
            row["tool_call_id"] = call_id or (waiting[0] if waiting else "call_0")
            waiting = [i for i in waiting if i != row["tool_call_id"]]
        rows.append(row)
    return rows


_FROM = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def sharegpt_turns(turns: list[Turn], lost: Lost) -> list[ForeignRow]:
    """``{"from", "value"}``; ids of calls are lost, reasoning is written inline, text beside calls as a turn before them."""
    rows: list[ForeignRow] = []
    for role, content, reasoning, calls, call_id, name, train in turns:
        if call_id is not None or name is not None:
            lost["names and ids of tool answers"] += 1
        _lose_weight(train, lost)
        if reasoning is not None and calls is None:
            lost["reasoning as a field (written inline as <think>)"] += 1
            content = f"<think>\n{reasoning}\n</think>\n\n{content}"
        if content is not None:
            rows.append({"from": _FROM[role], "value": content})
        if calls is not None:
            if content is not None:
                lost["text beside tool calls (written as a turn before them)"] += 1
            elif rows and rows[-1]["from"] in ("gpt", "function_call"):
                lost["where one assistant turn ends (a call joins the turn before it)"] += 1
            rows.append({"from": "function_call", "value": _sharegpt_calls(calls, reasoning, lost)})
    return rows


def _sharegpt_calls(calls: str, reasoning: str | None, lost: Lost) -> str:
    """A call as an object, several as a list, after the reasoning."""
    bare = []
    for call in parsed(calls, "tool_calls", "tool_call"):
        if "id" in call:
            lost["ids of tool calls"] += 1
        bare.append({key: call["function"][key] for key in ("name", "arguments")})
    value = json_text(bare[0] if len(bare) == 1 else bare)
    if reasoning is None:
        return value
    if reasoning != reasoning.strip("\n") or "</think>" in reasoning:
        lost["newlines around reasoning"] += 1
    return f"<think>\n{reasoning}\n</think>\n\n{value}"


def response_items(turns: list[Turn], lost: Lost) -> list[ForeignRow]:
    """OpenAI Responses' items: reasoning, calls and their outputs stand beside the messages."""
    items: list[ForeignRow] = []
    for turn in turns:
        role, content, reasoning, calls, call_id, name, train = turn
        _lose_weight(train, lost)
        if name is not None:
            lost["names of tool answers"] += 1
        if reasoning is not None:
            items.append({"type": "reasoning", "summary": [{"type": "summary_text", "text": reasoning}]})
        if role == "tool":
            items.append({"type": "function_call_output", "call_id": call_id, "output": content})
        elif content is not None:
            items.append({"type": "message", "role": role, "content": content})
        if calls is not None and content is None and items[-1:] and items[-1].get("type") == "function_call":
            lost["where one assistant turn ends (calls in a row are read as one)"] += 1
        if calls is not None and content is None and items[-1:] and items[-1].get("role") == "assistant":
            lost["where one assistant turn ends (a call joins the text before it)"] += 1
        for call in parsed(calls, "tool_calls", "tool_call") if calls else ():
            function = {
                "name": call["function"]["name"],
                "arguments": json_text(call["function"]["arguments"]),
            }
            items.append({"type": "function_call", "call_id": call.get("id"), **function})
    return items


def smolagents_steps(turns: list[Turn], lost: Lost) -> list[ForeignRow]:
    """smolagents' steps: a tool's answer stands in the step that called it."""
    steps: list[ForeignRow] = []
    for turn in turns:
        role, content, reasoning, calls, call_id, name, train = turn
        _lose_weight(train, lost)
        if reasoning is not None:
            lost["reasoning"] += 1
        if role == "assistant":
            functions = parsed(calls, "tool_calls", "tool_call") if calls else None
            steps.append({"step_number": len(steps), "model_output": content, "tool_calls": functions})
        elif role == "tool":
            if not content or not steps or not steps[-1].get("tool_calls") or "observations" in steps[-1]:
                raise Unwritable("a tool's answer that is empty or not the only one of its step")
            if name is not None or call_id != steps[-1]["tool_calls"][0].get("id"):
                lost["names and ids of tool answers"] += 1
            steps[-1]["observations"] = content
        else:
            steps.append({{"system": "system_prompt", "user": "task"}[role]: content})
    return steps


def part_turns(turns: list[Turn], lost: Lost) -> list[ForeignRow]:
    """LLaMA-Factory v1: content as typed parts, and a loss weight for every turn."""
    rows: list[ForeignRow] = []
    for role, content, reasoning, calls, call_id, name, train in turns:
        if call_id is not None or name is not None:
            lost["names and ids of tool answers"] += 1
        parts: list[ForeignRow] = []
        if reasoning is not None:
            parts.append({"type": "reasoning", "value": reasoning})
        if content is not None:
            parts.append({"type": "text", "value": content})
        for call in parsed(calls, "tool_calls", "tool_call") if calls else ():
            head = {"id": call["id"]} if "id" in call else {}
            parts.append({"type": "tool_call", "value": json_text({**head, **call["function"]})})
        weight = (1.0 if train is None else train) if role == "assistant" else 0.0
        rows.append({"role": role, "content": parts, "loss_weight": weight})
    return rows


def plain_text(turn: Turn, lost: Lost) -> str:
    """The text of a turn in a format of texts. Raises Unwritable: the turn is a call or a tool's answer."""
    role, content, reasoning, calls, _, _, train = turn
    if role == "tool" or calls is not None or content is None:
        raise Unwritable("tool calls")
    _lose_weight(train, lost)
    if reasoning is not None:
        lost["reasoning"] += 1
    return content


def required(value: Any, otherwise: str) -> Any:
    """The value. Raises Unwritable with ``otherwise``: there is none."""
    if value is None:
        raise Unwritable(otherwise)
    return value


def single(turns: list[Any]) -> Any:
    """The only turn of an answer. Raises Unwritable: it is several."""
    if len(turns) != 1:
        raise Unwritable("an answer of several turns")
    return turns[0]


def answer_text(turns: list[Turn], lost: Lost) -> str:
    """The one text of an answer. Raises Unwritable: it is several turns, or a call."""
    return plain_text(single(turns), lost)


def asked_fields(turns: list[Turn], question: str, lost: Lost) -> dict[str, Any]:
    """A prompt as system, history and a question. Raises Unwritable: its turns do not alternate, or it has calls."""
    row: ForeignRow = {}
    if turns and turns[0][0] == "system":
        row["system"] = plain_text(turns[0], lost)
        if not row["system"]:
            lost["an empty system text"] += 1
        turns = turns[1:]
    texts = [plain_text(turn, lost) for turn in turns]
    if [turn[0] for turn in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise Unwritable("turns that do not alternate between user and assistant")
    if len(texts) > 1:
        row["history"] = [list(pair) for pair in zip(texts[:-1:2], texts[1::2], strict=True)]
    row[question] = texts[-1]
    return row
