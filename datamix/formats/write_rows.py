"""Records to foreign rows: the readers of ``instruct`` and ``pairs`` backwards, with an account of what is lost.

Reading what was written gives the same records wherever nothing is reported as lost. A record that the format
cannot hold at all gives no row and is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

import pyarrow as pa

from datamix.core.errors import RecipeError
from datamix.core.records import RecordKind
from datamix.formats import write_pairs
from datamix.formats.drafts import Draft, ForeignRow, Turn, drafts_of, json_text, parsed
from datamix.formats.registry import RECORD_FORMATS
from datamix.formats.tool_calls import bare_tools
from datamix.formats.turns import last_answer
from datamix.formats.write_turns import (
    Lost,
    Unwritable,
    answer_text,
    asked_fields,
    openai_turns,
    plain_text,
    sharegpt_turns,
)

Writer = Callable[[Draft, Lost], list[ForeignRow]]


def unshape(batch: pa.RecordBatch, kind: RecordKind, format: str) -> tuple[list[ForeignRow], list[str]]:
    """The rows of a batch in a foreign format, and what is lost on the way (empty: nothing). Raises RecipeError."""
    rows, lost = unshape_counted(batch, kind, format)
    return rows, [f"{what}: {num} record{'s' if num > 1 else ''}" for what, num in sorted(lost.items())]


def unshape_counted(
    batch: pa.RecordBatch, kind: RecordKind, format: str
) -> tuple[list[ForeignRow], Counter[str]]:
    """As ``unshape``, with the number of records that lose each thing."""
    write = _writer(kind, format)
    known = RECORD_FORMATS[format].fields
    rows: list[ForeignRow] = []
    total: Counter[str] = Counter()
    for draft, meta in drafts_of(batch, kind):
        lost: Lost = Counter()
        try:
            written = write(draft, lost)
        except Unwritable as unwritable:
            total[f"records with {unwritable} (left out)"] += 1
            continue
        for row in written:
            _extend(row, draft, meta, format)
        if meta is not None:
            for name in parsed(meta, "meta", "meta").keys() & known:
                lost[f"the kept field {name!r}, whose name the format uses itself"] += 1
        rows += written
        total.update(lost.keys())
    return rows, total


def _writer(kind: RecordKind, format: str) -> Writer:
    write = WRITERS.get((format, kind))
    if write is None:
        fitting = sorted(name for name, of in WRITERS if of == kind)
        raise RecipeError(
            f"format: {format} cannot hold {kind} records. Formats that can: {', '.join(fitting)}."
        )
    return write


def _extend(row: ForeignRow, draft: Draft, meta: str | None, format: str) -> None:
    """Add tools, template arguments and kept fields to a row."""
    if draft.tools is not None:
        wrapped = format in (
            "messages",
            "preference",
            "preference_implicit",
            "prompt_completion",
            "prompt",
            "kto",
            "openai_preference",
        )
        tools = parsed(draft.tools, "tools", "tools") if wrapped else bare_tools(draft.tools)
        place = row["input"] if format == "openai_preference" else row
        place["tools"] = tools if wrapped else json_text(tools)
    if draft.kwargs is not None:
        row["chat_template_kwargs"] = parsed(draft.kwargs, "chat_template_kwargs", "kwargs")
    if meta is not None:
        known = RECORD_FORMATS[format].fields
        row.update((k, v) for k, v in parsed(meta, "meta", "meta").items() if k not in known)


def _text(draft: Draft, _: Lost) -> list[ForeignRow]:
    return [{"text": draft.text}]


def _messages(draft: Draft, _: Lost) -> list[ForeignRow]:
    return [{"messages": openai_turns(draft.turns)}]


def _sharegpt(draft: Draft, lost: Lost) -> list[ForeignRow]:
    return [{"conversations": sharegpt_turns(draft.turns, lost)}]


def _split(draft: Draft) -> tuple[list[Turn], list[Turn]]:
    cut = last_answer(draft.turns)
    if cut == len(draft.turns):
        raise Unwritable("no answer at the end")
    return draft.turns[:cut], draft.turns[cut:]


def _alpaca(draft: Draft, lost: Lost) -> list[ForeignRow]:
    before, answer = _split(draft)
    asked = asked_fields(before, "instruction", lost)
    row = {"instruction": asked.pop("instruction"), "input": ""}
    if len(answer) != 1:
        raise Unwritable("an answer of several turns")
    reasoning = answer[0][2]
    row["output"] = plain_text((*answer[0][:2], None, *answer[0][3:]), lost)
    if reasoning is not None:
        row["reasoning"] = reasoning
    return [{**row, **asked}]


def _prompt_completion(draft: Draft, _: Lost) -> list[ForeignRow]:
    before, answer = _split(draft)
    return [{"prompt": openai_turns(before), "completion": openai_turns(answer)}]


def _answered(question: str, answer: str) -> Writer:
    def write(draft: Draft, lost: Lost) -> list[ForeignRow]:
        before, after = _split(draft)
        return [{**asked_fields(before, question, lost), answer: answer_text(after, lost)}]

    return write


def _self_instruct(draft: Draft, lost: Lost) -> list[ForeignRow]:
    before, after = _split(draft)
    asked = asked_fields(before, "instruction", lost)
    if len(asked) > 1:
        raise Unwritable("a system text or history")
    if draft.tools is not None or draft.kwargs is not None:
        raise Unwritable("tools")
    instances = [{"input": "", "output": answer_text(after, lost)}]
    return [{"instruction": asked["instruction"], "instances": instances}]


def _prompt(draft: Draft, _: Lost) -> list[ForeignRow]:
    row: ForeignRow = {"prompt": openai_turns(draft.turns)}
    if draft.reference is not None:
        row["reference"] = draft.reference
    return [row]


def _question_reference(draft: Draft, lost: Lost) -> list[ForeignRow]:
    if draft.reference is None:
        raise Unwritable("no reference")
    return [{**asked_fields(draft.turns, "question", lost), "answer": draft.reference}]


WRITERS: Mapping[tuple[str, RecordKind], Writer] = MappingProxyType(
    {
        ("text", "text"): _text,
        ("alpaca", "sft"): _alpaca,
        ("sharegpt", "sft"): _sharegpt,
        ("messages", "sft"): _messages,
        ("prompt_completion", "sft"): _prompt_completion,
        ("question_answer", "sft"): _answered("question", "answer"),
        ("magpie", "sft"): _answered("instruction", "response"),
        ("self_instruct", "sft"): _self_instruct,
        ("prompt", "prompt"): _prompt,
        ("question_answer", "prompt"): _question_reference,
        **{(name, "preference"): write for name, write in write_pairs.WRITERS.items()},
    }
)
