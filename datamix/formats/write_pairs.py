"""Preference records to foreign rows: the readers of ``pairs`` backwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from datamix.formats.drafts import Draft, ForeignRow, Turn
from datamix.formats.preference import common_turns
from datamix.formats.write_turns import (
    Lost,
    Unwritable,
    answer_text,
    asked_fields,
    openai_turns,
    part_turns,
    plain_text,
    sharegpt_turns,
)

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def _paired(draft: Draft) -> tuple[list[Turn], list[Turn]]:
    if draft.chosen is None or draft.rejected is None:
        raise Unwritable("a label instead of a pair")
    return draft.chosen, draft.rejected


def _with_margin(row: ForeignRow, draft: Draft) -> list[ForeignRow]:
    if draft.margin is not None:
        row["margin"] = draft.margin
    return [row]


def _explicit(draft: Draft, _: Lost) -> list[ForeignRow]:
    chosen, rejected = _paired(draft)
    prompt = openai_turns(draft.turns)
    return _with_margin(
        {"prompt": prompt, "chosen": openai_turns(chosen), "rejected": openai_turns(rejected)}, draft
    )


def _whole(draft: Draft, lost: Lost) -> tuple[list[Turn], list[Turn]]:
    """Two whole conversations; their common beginning is lost as a prompt where the answers begin alike."""
    chosen, rejected = _paired(draft)
    both = [*draft.turns, *chosen], [*draft.turns, *rejected]
    if common_turns(*both) != len(draft.turns):
        lost["where the prompt ends (the answers begin alike)"] += 1
    return both


def _implicit(draft: Draft, lost: Lost) -> list[ForeignRow]:
    chosen, rejected = _whole(draft, lost)
    return _with_margin({"chosen": openai_turns(chosen), "rejected": openai_turns(rejected)}, draft)


def _paired_messages(draft: Draft, lost: Lost) -> list[ForeignRow]:
    chosen, rejected = _whole(draft, lost)
    row = {"chosen_messages": part_turns(chosen, lost), "rejected_messages": part_turns(rejected, lost)}
    return _with_margin(row, draft)


def _rejected_response(draft: Draft, lost: Lost) -> list[ForeignRow]:
    chosen, rejected = _paired(draft)
    messages = openai_turns([*draft.turns, *chosen])
    plain = len(rejected) == 1 and rejected[0][2:] == (None,) * 5
    if plain and all(turn[0] == "assistant" for turn in chosen):
        return _with_margin({"messages": messages, "rejected_response": rejected[0][1]}, draft)
    _, whole = _whole(draft, lost)
    return _with_margin({"messages": messages, "rejected_messages": openai_turns(whole)}, draft)


def _openai_preference(draft: Draft, _: Lost) -> list[ForeignRow]:
    chosen, rejected = _paired(draft)
    row = {
        "input": {"messages": openai_turns(draft.turns)},
        "preferred_output": openai_turns(chosen),
        "non_preferred_output": openai_turns(rejected),
    }
    return _with_margin(row, draft)


def _ranking(draft: Draft, lost: Lost) -> list[ForeignRow]:
    row: ForeignRow = {"conversations": sharegpt_turns(draft.turns, lost)}
    for name, turns in zip(("chosen", "rejected"), _paired(draft), strict=True):
        spoken = sharegpt_turns(turns, lost)
        if len(spoken) != 1:
            raise Unwritable("an answer of several turns")
        row[name] = spoken[0]
    return _with_margin(row, draft)


def _medicalgpt(draft: Draft, lost: Lost) -> list[ForeignRow]:
    row: ForeignRow = {"conversations": sharegpt_turns(draft.turns, lost)}
    for name, turns in zip(("chosen", "rejected"), _paired(draft), strict=True):
        row[name] = answer_text(turns, lost)
    return _with_margin(row, draft)


def _medicalgpt_old(draft: Draft, lost: Lost) -> list[ForeignRow]:
    chosen, rejected = _paired(draft)
    row = {"system": "", "history": [], **asked_fields(draft.turns, "question", lost)}
    row |= {"response_chosen": answer_text(chosen, lost), "response_rejected": answer_text(rejected, lost)}
    return _with_margin(row, draft)


def _caregpt(draft: Draft, lost: Lost) -> list[ForeignRow]:
    output = [answer_text(turns, lost) for turns in _paired(draft)]
    asked = asked_fields(draft.turns, "instruction", lost)
    return _with_margin(
        {"instruction": asked.pop("instruction"), "input": "", "output": output, **asked}, draft
    )


def _hh_rlhf(draft: Draft, lost: Lost) -> list[ForeignRow]:
    chosen, rejected = _whole(draft, lost)
    return _with_margin({"chosen": _dialogue(chosen, lost), "rejected": _dialogue(rejected, lost)}, draft)


def _dialogue(turns: list[Turn], lost: Lost) -> str:
    if turns[0][0] == "system":
        raise Unwritable("a system text")
    said = [plain_text(turn, lost) for turn in turns]
    speakers = ["Human" if turn[0] == "user" else "Assistant" for turn in turns]
    dialogue = "".join(f"\n\n{who}: {text}" for who, text in zip(speakers, said, strict=True))
    if len(_SPEAKER.findall(dialogue)) != len(turns):
        raise Unwritable("'\\n\\nHuman:' or '\\n\\nAssistant:' inside a turn")
    return dialogue


def _scores(draft: Draft, lost: Lost) -> tuple[float, float]:
    if draft.margin is None:
        lost["that the margin is unknown (written as 1)"] += 1
        return 1.0, 0.0
    if not draft.margin > 0:
        raise Unwritable("a margin that is not above 0")
    return draft.margin, 0.0


def _ultrafeedback(draft: Draft, lost: Lost) -> list[ForeignRow]:
    answers = [answer_text(turns, lost) for turns in _paired(draft)]
    scored = zip(answers, _scores(draft, lost), strict=True)
    completions = [{"response": answer, "overall_score": score} for answer, score in scored]
    return [{**asked_fields(draft.turns, "instruction", lost), "completions": completions}]


def _magpie_scored(draft: Draft, lost: Lost) -> list[ForeignRow]:
    answers = [answer_text(turns, lost) for turns in _paired(draft)]
    rewards = [{"score": score} for score in _scores(draft, lost)]
    return [
        {**asked_fields(draft.turns, "instruction", lost), "responses": answers, "rewards_armorm": rewards}
    ]


def _kto(draft: Draft, lost: Lost) -> list[ForeignRow]:
    prompt = openai_turns(draft.turns)
    if draft.label is not None and draft.chosen is not None:
        return [{"prompt": prompt, "completion": openai_turns(draft.chosen), "label": draft.label}]
    chosen, rejected = _paired(draft)
    lost["which answers were compared (a pair becomes two labelled rows)"] += 1
    if draft.margin is not None:
        lost["the margin"] += 1
    return [
        {"prompt": prompt, "completion": openai_turns(chosen), "label": True},
        {"prompt": prompt, "completion": openai_turns(rejected), "label": False},
    ]


WRITERS: Mapping[str, Callable[[Draft, Lost], list[ForeignRow]]] = MappingProxyType(
    {
        "preference": _explicit,
        "preference_implicit": _implicit,
        "paired_messages": _paired_messages,
        "rejected_response": _rejected_response,
        "openai_preference": _openai_preference,
        "ranking": _ranking,
        "medicalgpt": _medicalgpt,
        "medicalgpt_old": _medicalgpt_old,
        "caregpt": _caregpt,
        "hh_rlhf": _hh_rlhf,
        "ultrafeedback": _ultrafeedback,
        "ultrafeedback_pairs": _ultrafeedback,
        "magpie_scored": _magpie_scored,
        "kto": _kto,
    }
)
