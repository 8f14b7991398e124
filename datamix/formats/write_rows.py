"""Records to foreign rows: the readers of ``instruct`` and ``preference`` backwards, with an account of what is lost.

Reading what was written gives the same records wherever nothing is reported as lost. A record that the format
cannot hold at all gives no row and is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from datamix.core.errors import RecipeError
from datamix.core.records import RecordKind
from datamix.formats.drafts import Draft, ForeignRow, Turn, drafts_of, json_text, parsed
from datamix.formats.preference import common_turns
from datamix.formats.registry import RECORD_FORMATS
from datamix.formats.tool_calls import bare_tools
from datamix.formats.turns import last_answer
from datamix.formats.write_turns import (
    Lost,
    Unwritable,
    answer_text,
    asked_fields,
    openai_service_turns,
    openai_turns,
    part_turns,
    plain_text,
    required,
    response_items,
    sharegpt_turns,
    single,
    smolagents_steps,
)

Writer = Callable[[Draft, Lost], list[ForeignRow]]
TurnsWriter = Callable[[list[Turn], Lost], Any]

_OPENAI_TOOLS = (  # formats that hold definitions as objects with their wrapping; the others as text, bare
    "messages",
    "preference",
    "preference_implicit",
    "prompt_completion",
    "prompt",
    "kto",
    "openai_preference",
)
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def unshape(batch: pa.RecordBatch, kind: RecordKind, format: str) -> tuple[list[ForeignRow], list[str]]:
    """The rows of a batch in a foreign format, and what is lost on the way (empty: nothing). Raises RecipeError."""
    rows, lost = unshape_counted(batch, kind, format)
    return rows, [f"{what}: {num} record{'s' if num > 1 else ''}" for what, num in sorted(lost.items())]


def unshape_counted(
    batch: pa.RecordBatch, kind: RecordKind, format: str
) -> tuple[list[ForeignRow], Counter[str]]:
    """As ``unshape``, with the number of records that lose each thing."""
    write = WRITERS.get((format, kind))
    if write is None:
        fitting = ", ".join(sorted(name for name, of in WRITERS if of == kind))
        raise RecipeError(f"format: {format} cannot hold {kind} records. Formats that can: {fitting}.")
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
        fields = parsed(meta, "meta", "meta") if meta is not None else {}
        for name in fields.keys() & known:
            lost[f"the meta field {name!r}, whose name the format uses itself"] += 1
        for row in written:
            if draft.tools is not None:
                tools = parsed(draft.tools, "tools", "tools")
                place = row["input"] if format == "openai_preference" else row
                place["tools"] = tools if format in _OPENAI_TOOLS else json_text(bare_tools(tools))
            if draft.kwargs is not None:
                row["chat_template_kwargs"] = parsed(draft.kwargs, "chat_template_kwargs", "kwargs")
            row.update((name, value) for name, value in fields.items() if name not in known)
        rows += written
        total.update(lost.keys())
    return rows, total


def _answered(row: Callable[[list[Turn], list[Turn], Lost], ForeignRow]) -> Writer:
    """A writer of the row that ``row`` makes of a prompt and its answer."""

    def write(draft: Draft, lost: Lost) -> list[ForeignRow]:
        cut = last_answer(draft.turns)
        if cut == len(draft.turns):
            raise Unwritable("no answer at the end")
        return [row(draft.turns[:cut], draft.turns[cut:], lost)]

    return write


def _alpaca(prompt: list[Turn], answer: list[Turn], lost: Lost) -> ForeignRow:
    asked = asked_fields(prompt, "instruction", lost)
    role, content, reasoning, *rest = single(answer)
    row = {"instruction": asked.pop("instruction"), "input": ""}
    row["output"] = plain_text((role, content, None, *rest), lost)
    return {**row, **({} if reasoning is None else {"reasoning": reasoning}), **asked}


def _self_instruct(draft: Draft, lost: Lost) -> list[ForeignRow]:
    if draft.tools is not None or draft.kwargs is not None:
        raise Unwritable("tools")
    [row] = _answered(_question_answer("instruction", "output"))(draft, lost)
    if len(row) > 2:
        raise Unwritable("a system text or history")
    return [{"instruction": row["instruction"], "instances": [{"input": "", "output": row["output"]}]}]


def _question_answer(question: str, answer: str) -> Callable[[list[Turn], list[Turn], Lost], ForeignRow]:
    return lambda prompt, final, lost: {
        **asked_fields(prompt, question, lost),
        answer: answer_text(final, lost),
    }


def _xlam(prompt: list[Turn], answer: list[Turn], lost: Lost) -> ForeignRow:
    _, content, reasoning, calls, _, _, train = single(answer)
    if content is not None or reasoning is not None or train is not None:
        raise Unwritable("text, reasoning or flags beside the calls")
    functions = [call["function"] for call in parsed(required(calls, "no call"), "tool_calls", "tool_call")]
    if any("id" in call for call in parsed(calls, "tool_calls", "tool_call")):
        lost["ids of tool calls"] += 1
    return {**asked_fields(prompt, "query", lost), "answers": json_text(functions)}


def _answers(draft: Draft) -> tuple[list[Turn], list[Turn]]:
    label = "a label instead of a pair"
    return required(draft.chosen, label), required(draft.rejected, label)


def _conversations(draft: Draft, lost: Lost) -> tuple[list[Turn], list[Turn]]:
    """Two whole conversations; their common beginning is lost as a prompt where the answers begin alike."""
    chosen, rejected = _answers(draft)
    both = [*draft.turns, *chosen], [*draft.turns, *rejected]
    if common_turns(*both) != len(draft.turns):
        lost["where the prompt ends (the answers begin alike)"] += 1
    return both


def _margin(draft: Draft) -> ForeignRow:
    return {} if draft.margin is None else {"margin": draft.margin}


def _pair(names: tuple[str, str], prompt: TurnsWriter, answer: TurnsWriter) -> Writer:
    """A writer of the fields that ``prompt`` gives and of two answers."""

    def write(draft: Draft, lost: Lost) -> list[ForeignRow]:
        answers = _answers(draft)
        row = prompt(draft.turns, lost)
        row.update((name, answer(turns, lost)) for name, turns in zip(names, answers, strict=True))
        return [row | _margin(draft)]

    return write


def _whole(names: tuple[str, str], conversation: TurnsWriter) -> Writer:
    """A writer of two whole conversations."""

    def write(draft: Draft, lost: Lost) -> list[ForeignRow]:
        both = _conversations(draft, lost)
        return [
            {name: conversation(turns, lost) for name, turns in zip(names, both, strict=True)}
            | _margin(draft)
        ]

    return write


def _openai_preference(draft: Draft, lost: Lost) -> list[ForeignRow]:
    """As the service takes it: arguments as JSON text, an id for every call, reasoning inline, no flags."""
    chosen, rejected = _answers(draft)
    sides = [openai_service_turns([*draft.turns, *answer], lost) for answer in (chosen, rejected)]
    row: ForeignRow = {"input": {"messages": sides[0][: len(draft.turns)]}}
    for name, side in zip(("preferred_output", "non_preferred_output"), sides, strict=True):
        row[name] = side[len(draft.turns) :]
    return [row | _margin(draft)]


def _rejected_response(draft: Draft, lost: Lost) -> list[ForeignRow]:
    chosen, rejected = _answers(draft)
    row: ForeignRow = {"messages": openai_turns([*draft.turns, *chosen], lost)}
    plain = len(rejected) == 1 and rejected[0][2:] == (None,) * 5
    if plain and all(turn[0] == "assistant" for turn in chosen):
        row["rejected_response"] = rejected[0][1]
    else:
        row["rejected_messages"] = openai_turns(_conversations(draft, lost)[1], lost)
    return [row | _margin(draft)]


def _sharegpt_prompt(turns: list[Turn], lost: Lost) -> ForeignRow:
    return {"conversations": sharegpt_turns(turns, lost)}


def _caregpt(draft: Draft, lost: Lost) -> list[ForeignRow]:
    output = [answer_text(turns, lost) for turns in _answers(draft)]
    asked = asked_fields(draft.turns, "instruction", lost)
    row = {"instruction": asked.pop("instruction"), "input": "", "output": output, **asked}
    return [row | _margin(draft)]


def _dialogue(turns: list[Turn], lost: Lost) -> str:
    """The reader ``hh_rlhf`` backwards."""
    if turns[0][0] == "system":
        raise Unwritable("a system text")
    speakers = ["Human" if turn[0] == "user" else "Assistant" for turn in turns]
    texts = [plain_text(turn, lost) for turn in turns]
    dialogue = "".join(f"\n\n{who}: {text}" for who, text in zip(speakers, texts, strict=True))
    if len(_SPEAKER.findall(dialogue)) != len(turns):
        raise Unwritable("'\\n\\nHuman:' or '\\n\\nAssistant:' inside a turn")
    return dialogue


def _scored(row: Callable[[list[str], list[float]], ForeignRow]) -> Writer:
    """A writer of the question and of what ``row`` makes of two answers and of scores whose difference is the margin."""

    def write(draft: Draft, lost: Lost) -> list[ForeignRow]:
        answers = [answer_text(turns, lost) for turns in _answers(draft)]
        margin = draft.margin
        if margin is None:
            lost["that the margin is unknown (written as 1)"] += 1
            margin = 1.0
        if not margin > 0:
            raise Unwritable("a margin that is not above 0")
        return [{**asked_fields(draft.turns, "instruction", lost), **row(answers, [margin, 0.0])}]

    return write


def _kto(draft: Draft, lost: Lost) -> list[ForeignRow]:
    prompt = openai_turns(draft.turns, lost)
    if draft.label is not None and draft.chosen is not None:
        return [{"prompt": prompt, "completion": openai_turns(draft.chosen, lost), "label": draft.label}]
    answers = _answers(draft)
    lost["which answers were compared (a pair becomes two labelled rows)"] += 1
    if draft.margin is not None:
        lost["the margin"] += 1
    return [
        {"prompt": prompt, "completion": openai_turns(turns, lost), "label": label}
        for turns, label in zip(answers, (True, False), strict=True)
    ]


_CHOSEN = ("chosen", "rejected")
_PAIR_WRITERS: dict[str, Writer] = {
    "preference": _pair(_CHOSEN, lambda turns, lost: {"prompt": openai_turns(turns, lost)}, openai_turns),
    "preference_implicit": _whole(_CHOSEN, openai_turns),
    "paired_messages": _whole(("chosen_messages", "rejected_messages"), part_turns),
    "rejected_response": _rejected_response,
    "openai_preference": _openai_preference,
    "ranking": _pair(_CHOSEN, _sharegpt_prompt, lambda turns, lost: single(sharegpt_turns(turns, lost))),
    "medicalgpt": _pair(_CHOSEN, _sharegpt_prompt, answer_text),
    "medicalgpt_old": _pair(
        ("response_chosen", "response_rejected"),
        lambda turns, lost: {"system": "", "history": [], **asked_fields(turns, "question", lost)},
        answer_text,
    ),
    **dict.fromkeys(("caregpt", "caregpt_extremes", "caregpt_pairs"), _caregpt),
    "judged": _pair(
        ("response_0", "response_1"),
        lambda turns, lost: {"prompt": openai_turns(turns, lost), "better_response_id": 0},
        answer_text,
    ),
    "hh_rlhf": _whole(_CHOSEN, _dialogue),
    **dict.fromkeys(
        ("ultrafeedback", "ultrafeedback_pairs"),
        _scored(
            lambda texts, scores: {
                "completions": [
                    {"response": text, "overall_score": score}
                    for text, score in zip(texts, scores, strict=True)
                ]
            }
        ),
    ),
    "magpie_scored": _scored(
        lambda texts, scores: {"responses": texts, "rewards_armorm": [{"score": score} for score in scores]}
    ),
    "kto": _kto,
}
WRITERS: Mapping[tuple[str, RecordKind], Writer] = MappingProxyType(
    {
        ("text", "text"): lambda draft, _: [{"text": draft.text}],
        ("alpaca", "sft"): _answered(_alpaca),
        ("sharegpt", "sft"): lambda draft, lost: [_sharegpt_prompt(draft.turns, lost)],
        ("messages", "sft"): lambda draft, lost: [{"messages": openai_turns(draft.turns, lost)}],
        ("prompt_completion", "sft"): _answered(
            lambda prompt, answer, lost: {
                "prompt": openai_turns(prompt, lost),
                "completion": openai_turns(answer, lost),
            }
        ),
        ("question_answer", "sft"): _answered(_question_answer("question", "answer")),
        ("magpie", "sft"): _answered(_question_answer("instruction", "response")),
        ("self_instruct", "sft"): _self_instruct,
        ("responses", "sft"): _answered(
            lambda prompt, answer, lost: {
                "input": response_items(prompt, lost),
                "output": response_items(answer, lost),
            }
        ),
        ("xlam", "sft"): _answered(_xlam),
        ("openhands", "sft"): lambda draft, lost: [
            {
                "history": [
                    {"kind": "MessageEvent", "llm_message": message}
                    for message in openai_turns(draft.turns, lost)
                ]
            }
        ],
        ("swe_agent", "sft"): lambda draft, lost: [
            {"trajectory": [], "history": openai_turns(draft.turns, lost)}
        ],
        ("smolagents", "sft"): lambda draft, lost: [{"steps": smolagents_steps(draft.turns, lost)}],
        ("prompt", "prompt"): lambda draft, lost: [
            {"prompt": openai_turns(draft.turns, lost)}
            | ({} if draft.reference is None else {"reference": draft.reference})
        ],
        ("question_answer", "prompt"): lambda draft, lost: [
            {
                **asked_fields(draft.turns, "question", lost),
                "answer": required(draft.reference, "no reference"),
            }
        ],
        **{(name, "preference"): write for name, write in _PAIR_WRITERS.items()},
    }
)
