"""Rows with named fields: text, alpaca and its kin, prompt/completion, question/answer, and prompts alone.

The prompt part is shared by all of them and by the preference formats: a system text, a history of
[question, answer] pairs, and an instruction whose input follows on a new line (LLaMA-Factory's rule).
"""

from __future__ import annotations

from typing import Any

from datamix.core.hashing import canonical
from datamix.formats.drafts import (
    Draft,
    ForeignRow,
    Turn,
    TurnNames,
    Unfit,
    absent,
    assistant,
    first_present,
    json_text,
    listed,
    named,
    optional_text,
    parsed,
    present,
    required_text,
    system,
    user,
)
from datamix.formats.tool_calls import calls_text, tools_text
from datamix.formats.turns import conversation, final_turns, last_answer, parts_text, read_turns

SYSTEMS = ("system", "system_prompt", "systemInstruction", "system_instruction")
CHATS = ("messages", "conversations")
QUESTIONS = ("question", "ask")
REFERENCES = ("reference", "ground_truth", "answer", "solution")


def text(row: ForeignRow, _: TurnNames) -> list[Draft]:
    """``{"text": ...}`` -> a text record."""
    return [Draft([], text=required_text(row, "text"))]


def chat(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """``{"messages": [...]}`` or ``{"conversations": [...]}``, with tools and a system field beside them."""
    turns = conversation(row, CHATS, names)
    return [with_extras(Draft(with_system(row, turns)), row)]


def sharegpt(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """As ``chat``, with ``conversations`` first."""
    turns = conversation(row, CHATS[::-1], names)
    return [with_extras(Draft(with_system(row, turns)), row)]


def alpaca(row: ForeignRow, _: TurnNames) -> list[Draft]:
    """``{"instruction": a, "input": b, "output": c}`` -> user ``a\\nb``, assistant ``c``."""
    turns = asked(row, "instruction")
    turns.append(assistant(required_text(row, "output"), optional_text(row, "reasoning")))
    return [with_extras(Draft(turns), row)]


def prompt_completion(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """``{"prompt", "completion"}``, each a text or turns; ``response`` is read as a completion too."""
    answer = present(row, ("completion", "response"))
    turns = prompt_part(row, ("prompt",), names)
    turns.extend(final_turns(row[answer], answer, names))
    return [with_extras(Draft(turns), row)]


def question_answer(row: ForeignRow, _: TurnNames) -> list[Draft]:
    """``{"question", "answer"}`` or ``{"ask", "answer"}``; of several fields the first that is present."""
    turns = asked(row, first_present(row, QUESTIONS) or "question")
    turns.append(assistant(required_text(row, "answer")))
    return [with_extras(Draft(turns), row)]


def responses(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """OpenAI Responses: ``input`` and ``output`` as text or items, reasoning before the turn that it led to."""
    turns: list[Any] = []
    reasoning = ""
    for field, role in (("input", "user"), ("output", "assistant")):
        items = row[present(row, (field,))]
        for index, item in enumerate(
            [{"role": role, "content": items}] if isinstance(items, str) else listed(items, field)
        ):
            kind = item.get("type") if isinstance(item, dict) else None
            if kind == "reasoning":
                for key in ("summary", "content"):
                    place = f"{field}[{index}].{key}"
                    reasoning += parts_text(listed(item.get(key) or [], place), place)
            elif kind in ("function_call", "custom_tool_call"):
                turns.append({"role": "tool_call", "content": item, "reasoning": reasoning})
                reasoning = ""
            elif kind in ("function_call_output", "custom_tool_call_output"):
                turns.append({"role": "tool", "content": item.get("output"), "call_id": item.get("call_id")})
            else:
                is_answer = reasoning and isinstance(item, dict) and item.get("role") == "assistant"
                turns.append({**item, "reasoning": reasoning} if is_answer else item)
                reasoning = "" if is_answer else reasoning
    read = read_turns(turns, "input", names)
    return [with_extras(Draft(with_system({"system": row.get("instructions")}, read)), row)]


def xlam(row: ForeignRow, _: TurnNames) -> list[Draft]:
    """xLAM: ``query``, its calls in ``answers`` and the definitions in ``tools``, all of them objects or JSON text."""
    calls = calls_text(row[present(row, ("answers",))], "answers")
    if calls is None:
        raise Unfit("no_answer", "answers", "has no call")
    turns = [*asked(row, "query"), ("assistant", None, None, calls, None, None, None)]
    return [with_extras(Draft(turns), row)]


def self_instruct(row: ForeignRow, _: TurnNames) -> list[Draft]:
    """A seed task: one record for each of its ``instances``."""
    instruction = required_text(row, "instruction")
    drafts = []
    for index, instance in enumerate(listed(row[present(row, ("instances",))], "instances")):
        if not isinstance(instance, dict):
            raise Unfit("not_object", f"instances[{index}]", f"is {named(instance)}, not an instance")
        asked_text = joined(instruction, optional_text(instance, "input"))
        drafts.append(Draft([user(asked_text), assistant(required_text(instance, "output"))]))
    if not drafts:
        raise Unfit("empty_conversation", "instances", "has no instances")
    return drafts


def magpie(row: ForeignRow, _: TurnNames) -> list[Draft]:
    """``{"instruction", "response"}``, or one record for each of ``responses``."""
    turns = asked(row, "instruction")
    if row.get("responses") is None:
        turns.append(assistant(required_text(row, "response")))
        return [with_extras(Draft(turns), row)]
    drafts = []
    for index, response in enumerate(listed(row["responses"], "responses")):
        if not isinstance(response, str):
            raise Unfit("not_text", f"responses[{index}]", f"is {named(response)}, not text")
        drafts.append(with_extras(Draft([*turns, assistant(response)]), row))
    if not drafts:
        raise Unfit("empty_conversation", "responses", "has no responses")
    return drafts


PROMPTS = ("prompt", "question", "ask", "problem", "instruction", "query")


def prompt(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """A prompt alone, with the reference that a reward may compare with (verl's ``reward_model`` too)."""
    turns = prompt_part(row, PROMPTS, names)
    turns = turns[: last_answer(turns)]
    field = first_present(row, REFERENCES)
    value = row[field] if field else None
    reward = row.get("reward_model")
    if field is None and isinstance(reward, dict):
        value = reward.get("ground_truth")
    draft = Draft(turns, reference=value if value is None or isinstance(value, str) else json_text(value))
    return [with_extras(draft, row)]


def prompt_part(row: ForeignRow, fields: tuple[str, ...], names: TurnNames) -> list[Turn]:
    """The prompt's turns: a list of turns, or a text with system, history and input. Raises Unfit."""
    for field in fields:
        value = row.get(field)
        if value is None:
            continue
        if value.__class__ is list:
            return with_system(row, read_turns(value, field, names))
        return asked(row, field)
    if first_present(row, CHATS):
        return with_system(row, conversation(row, CHATS, names))
    raise absent(row, fields)


def asked(row: ForeignRow, field: str) -> list[Turn]:
    """System, history and the question in ``field`` as turns. Raises Unfit."""
    question = required_text(row, field)
    if row.get("input"):
        question = joined(question, optional_text(row, "input"))
    turns: list[Turn] = []
    for index, pair in enumerate(listed(row["history"], "history") if row.get("history") else ()):
        place = f"history[{index}]"
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Unfit("history", place, f"is {named(pair)}, not a [question, answer] pair")
        for side, part in enumerate(pair):
            if not isinstance(part, str):
                raise Unfit("history", f"{place}[{side}]", f"is {named(part)}, not text")
        turns += [user(pair[0]), assistant(pair[1])]
    return with_system(row, [*turns, user(question)])


def joined(instruction: str, extra: str | None) -> str:
    if not extra:
        return instruction
    return f"{instruction}\n{extra}" if instruction else extra


def with_system(row: ForeignRow, turns: list[Turn]) -> list[Turn]:
    """The turns, headed by the row's system text (or its parts) where they have no system turn."""
    if turns[0][0] == "system":
        return turns
    for field in SYSTEMS:
        value = row.get(field)
        if isinstance(value, dict):
            value = value.get("parts") or [value]
        text = parts_text(value, field) if isinstance(value, list) else optional_text(row, field)
        if text:
            return [system(text), *turns]
    return turns


def with_extras(draft: Draft, row: ForeignRow) -> Draft:
    """The draft with its tools, from the row or from its system turn, and the row's ``chat_template_kwargs``.

    Raises Unfit where a completion ends with something else than an answer.
    """
    for field, completion in (("chosen", draft.chosen), ("rejected", draft.rejected)):
        if completion and completion[-1][0] != "assistant":
            raise Unfit("no_answer", field, f"ends with a {completion[-1][0]} turn, not with an answer")
    draft.tools = tools_text(row)
    head = draft.turns[0] if draft.turns else None
    if head is not None and head[0] == "system" and head[3] is not None:
        if draft.tools not in (None, head[3]):
            raise Unfit("tools", "tools", "of the record and of its system turn differ")
        draft.tools = head[3]
        draft.turns = [(*head[:3], None, *head[4:]), *draft.turns[1:]]
    kwargs = row.get("chat_template_kwargs")
    if isinstance(kwargs, str) and kwargs:
        kwargs = parsed(kwargs, "chat_template_kwargs", "kwargs")
    if kwargs:
        if not isinstance(kwargs, dict):
            raise Unfit("kwargs", "chat_template_kwargs", f"is {named(kwargs)}, not an object")
        draft.kwargs = canonical(kwargs)
    return draft
