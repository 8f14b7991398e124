"""Preference rows: a prompt with a better and a worse answer, in the formats of other tools; and single answers with a label.

Whole conversations (implicit prompts) are split at their common turns; HH-RLHF's dialogue strings are read as turns
first. Scored answers give one pair for each worse answer than the best, or for each two answers of unequal score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

from datamix.formats.drafts import (
    Draft,
    ForeignRow,
    Turn,
    TurnNames,
    Unfit,
    absent,
    assistant,
    first_present,
    listed,
    named,
    parsed,
    present,
    required_text,
    user,
)
from datamix.formats.instruct import CHATS, asked, prompt_part, with_extras, with_system
from datamix.formats.turns import conversation, final_turns, last_answer, read_turns, role_of

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
PROMPTS = ("prompt", "question", "instruction", "query")
JUDGED = (
    ("response_0", "response_1"),
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("response_a", "response_b"),
    ("conversation_a", "conversation_b"),
    ("answer_a", "answer_b"),
    ("output_1", "output_2"),
)
SIGNED = ("overall_preference", "preference_strength")
INDEXED = (("better_response_id", 0), ("preference", 1))
FLAGGED = (("winner_model_a", False), ("winner_model_b", True))
_WINNERS = {"model_a": False, "a": False, "model_b": True, "b": True}
_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def preference(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """``{"prompt", "chosen", "rejected"}``, each a text or turns; whole conversations carry their prompt themselves.

    Two texts without a prompt are split where they part; a space before that belongs to the answers.
    """
    chosen, rejected = (row[present(row, (field,))] for field in ("chosen", "rejected"))
    if _is_conversation(chosen, names) and _is_conversation(rejected, names):
        both = (read_turns(row[field], field, names) for field in ("chosen", "rejected"))
        return [_split(row, *both, prompt=partial(_whole_prompt, row, names))]
    texts = isinstance(chosen, str) and isinstance(rejected, str)
    if first_present(row, (*PROMPTS, *CHATS)) is not None or not texts:
        return [_pair(row, prompt_part(row, PROMPTS, names), ("chosen", "rejected"), names)]
    if chosen == rejected:
        raise Unfit("no_prompt", "chosen", "and rejected are the same text: where the prompt ends is unknown")
    low, high = 0, min(len(chosen), len(rejected))
    while low < high:  # bisect: slices compare at the speed of memory
        middle = (low + high + 1) // 2
        low, high = (middle, high) if chosen[low:middle] == rejected[low:middle] else (low, middle - 1)
    num = low - 1 if low and chosen[low - 1] == " " else low
    if not num:
        raise Unfit(
            "no_prompt", "chosen", "and rejected have no common beginning, and there is no prompt field"
        )
    pair = [assistant(chosen[num:])], [assistant(rejected[num:])]
    return [with_extras(Draft(with_system(row, [user(chosen[:num])]), *pair, margin=_margin(row)), row)]


def ranking(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """LLaMA-Factory's and MedicalGPT's: ``conversations`` or ``instruction`` with ``chosen`` and ``rejected``."""
    if first_present(row, CHATS):
        turns = with_system(row, conversation(row, CHATS[::-1], names))
    else:
        turns = asked(row, first_present(row, ("instruction", "prompt")) or "instruction")
    return [_pair(row, turns, ("chosen", "rejected"), names)]


def medicalgpt_old(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """``{"system", "history", "question", "response_chosen", "response_rejected"}``."""
    return [_pair(row, asked(row, "question"), ("response_chosen", "response_rejected"), names)]


def caregpt(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """``{"instruction", "input", "output": [best, ..., worst]}``, also prompt and response: the first against the second."""
    return _compared(row, names, lambda num: [(0, 1)])


def caregpt_extremes(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """Ranked answers: the first against the last."""
    return _compared(row, names, lambda num: [(0, num - 1)])


def caregpt_pairs(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """Ranked answers: each against every one after it."""
    return _compared(row, names, lambda num: list(combinations(range(num), 2)))


def _compared(
    row: ForeignRow, names: TurnNames, pairs: Callable[[int], list[tuple[int, int]]]
) -> list[Draft]:
    field = present(row, ("output", "response"))
    answers = listed(row[field], field)
    if len(answers) < 2:
        raise Unfit(
            "not_pair", field, f"has {len(answers)} answer{'s' * (len(answers) != 1)}, not two or more"
        )
    turns = prompt_part(row, PROMPTS, names)
    read = [final_turns(answer, f"{field}[{i}]", names) for i, answer in enumerate(answers)]
    margin = _margin(row)
    return [
        with_extras(Draft(turns, read[better], read[worse], margin=margin), row)
        for better, worse in pairs(len(read))
    ]


def judged(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """Two answers and a verdict: SafeRLHF, HelpSteer, arena votes. A tie is a reject."""
    fields = next((pair for pair in JUDGED if all(row.get(name) is not None for name in pair)), None)
    if fields is None:
        raise absent(row, JUDGED[0])
    second, margin = _verdict(row)
    if second:
        fields = fields[::-1]
    margin = _margin(row) if margin is None else margin
    first, other = (_many(row[name]) for name in fields)
    if _is_conversation(first, names) and _is_conversation(other, names):
        pair = (read_turns(value, name, names) for value, name in zip((first, other), fields, strict=True))
        return [replace(_split(row, *pair), margin=margin)]
    questions = _many(row.get("prompt"))
    lists = [value for value in (questions, first, other) if isinstance(value, list)]
    if len(lists) == 3 and len({len(value) for value in lists}) == 1 and first and isinstance(first[0], str):
        pair = (
            read_turns([list(turn) for turn in zip(questions, answers, strict=True)], name, names)
            for answers, name in zip((first, other), fields, strict=True)
        )
        return [replace(_split(row, *pair), margin=margin)]
    return [replace(_pair(row, prompt_part(row, (*PROMPTS, "context"), names), fields, names), margin=margin)]


def _many(value: Any) -> Any:
    """The texts of several turns, where they are a JSON list of texts (arena votes)."""
    return parsed(value, "prompt", "not_list") if isinstance(value, str) and value.startswith('["') else value


def _verdict(row: ForeignRow) -> tuple[bool, float | None]:
    """Whether the second answer is the better one, and by how much where that is known. Raises Unfit: neither is."""
    for field in SIGNED:  # below 0 the first is better
        if row.get(field) is not None:
            strength = _score(row[field], field)
            if not strength:
                raise Unfit("no_preference", field, "is 0: a tie")
            return strength > 0, abs(strength)
    for field, base in INDEXED:
        if row.get(field) is not None:
            index = _score(row[field], field) - base
            if index not in (0, 1):
                raise Unfit("no_preference", field, f"is {row[field]!r}, not one of the two answers")
            return bool(index), None
    votes = [_WINNERS.get(str(row.get("winner", "")).lower())]
    votes += [second for name, second in FLAGGED if row.get(name) in (1, True)]
    vote = next((vote for vote in votes if vote is not None), None)
    if vote is None:
        raise Unfit("no_preference", "winner", f"is {row.get('winner')!r}: no answer is better")
    return vote, None


def hh_rlhf(row: ForeignRow, _: TurnNames) -> list[Draft]:
    """Two dialogues of ``\\n\\nHuman: ...\\n\\nAssistant: ...`` that part at the end."""
    dialogues = []
    for field in ("chosen", "rejected"):
        head, *parts = _SPEAKER.split(required_text(row, field))
        if head or not parts or parts[0] != "Human":
            raise Unfit("dialogue", field, "does not begin with '\\n\\nHuman: '")
        pairs = zip(parts[::2], parts[1::2], strict=True)
        turns = [user(text) if who == "Human" else assistant(text) for who, text in pairs]
        if turns[-1][0] != "assistant":
            raise Unfit("no_answer", field, "ends with a human turn")
        dialogues.append(turns)
    return [_split(row, *dialogues)]


def paired_messages(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """LLaMA-Factory v1: ``chosen_messages`` and ``rejected_messages``, two whole conversations."""
    fields = ("chosen_messages", "rejected_messages")
    return [_split(row, *(conversation(row, (field,), names) for field in fields))]


def rejected_response(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """ms-swift: ``messages`` ending in the better answer, and ``rejected_response`` or ``rejected_messages``."""
    turns = with_system(row, conversation(row, CHATS, names))
    if row.get("rejected_messages") is not None:
        other = read_turns(row["rejected_messages"], "rejected_messages", names)
        return [_split(row, turns, with_system(row, other))]
    cut = _answered(turns)
    rejected = final_turns(row[present(row, ("rejected_response",))], "rejected_response", names)
    return [with_extras(Draft(turns[:cut], turns[cut:], rejected, margin=_margin(row)), row)]


def openai_preference(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """OpenAI preference fine-tuning: ``input`` of messages and tools, ``preferred_output``, ``non_preferred_output``."""
    given = row[present(row, ("input",))]
    if isinstance(given, str):
        given = parsed(given, "input", "not_object")
    if not isinstance(given, dict):
        raise Unfit("not_object", "input", f"is {named(given)}, not an object with messages")
    fields = ("preferred_output", "non_preferred_output")
    return [_pair({**row, **given}, conversation(given, CHATS, names), fields, names)]


def kto(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """One answer and its label: a conversation, prompt/completion or alpaca fields with label or kto_tag."""
    field = present(row, ("label", "kto_tag"))
    words: dict[Any, bool] = {"true": True, "1": True, "false": False, "0": False}
    value = str(row[field]).strip().lower() if row[field] in (0, 1) or isinstance(row[field], str) else None
    if value not in words:
        raise Unfit("label", field, f"is {row[field]!r}, not true or false")
    label = words[value]
    answer = first_present(row, ("completion", "response", "output"))
    whole = None
    if answer is None and first_present(row, CHATS):
        whole = with_system(row, conversation(row, CHATS, names))
    elif answer is None:
        raise absent(row, ("completion",))
    elif _is_conversation(row[answer], names):
        whole = read_turns(row[answer], answer, names)
    if whole is not None:
        cut = _answered(whole)
        turns = whole[:cut] if answer is None else _whole_prompt(row, names, whole[:cut])
        return [with_extras(Draft(turns, whole[cut:], label=label), row)]
    assert answer is not None
    completion = final_turns(row[answer], answer, names)
    return [with_extras(Draft(prompt_part(row, PROMPTS, names), completion, label=label), row)]


def ultrafeedback(row: ForeignRow, _: TurnNames) -> list[Draft]:
    """Scored ``completions``: the best against each worse one, margin the difference of their scores."""
    return _ranked(row, _completions(row), all_pairs=False)


def ultrafeedback_pairs(row: ForeignRow, _: TurnNames) -> list[Draft]:
    """Scored ``completions``: every two of unequal score."""
    return _ranked(row, _completions(row), all_pairs=True)


def magpie_scored(row: ForeignRow, _: TurnNames) -> list[Draft]:
    """magpie's ``responses`` with ``rewards_*``: the best against each worse one."""
    name = present(row, (*(key for key in row if key.startswith("rewards_")), "rewards_armorm"))
    rewards, responses = listed(row[name], name), listed(row[present(row, ("responses",))], "responses")
    if len(rewards) != len(responses):
        raise Unfit("not_pair", name, f"has {len(rewards)} scores for {len(responses)} responses")
    scored = [
        (
            _score(r.get("score") if isinstance(r, dict) else r, f"{name}[{i}]"),
            _answer(responses[i], f"responses[{i}]"),
        )
        for i, r in enumerate(rewards)
    ]
    return _ranked(row, scored, all_pairs=False)


def _is_conversation(value: Any, names: TurnNames) -> bool:
    """Whether a list of turns begins with something else than an answer."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return role_of(value[0], names) in ("user", "system")


def _pair(row: ForeignRow, turns: list[Turn], fields: tuple[str, str], names: TurnNames) -> Draft:
    chosen, rejected = (final_turns(row[present(row, (f,))], f, names) for f in fields)
    return with_extras(Draft(turns, chosen, rejected, margin=_margin(row)), row)


def _whole_prompt(row: ForeignRow, names: TurnNames, turns: list[Turn]) -> list[Turn]:
    """The prompt that whole conversations carry, or the row's prompt field where that holds more.

    A prompt field may also hold but one question of the prompt. Raises Unfit: it is another prompt.
    """
    field = first_present(row, PROMPTS)
    if field is None:
        return turns
    explicit = prompt_part(row, (field,), names)
    carried, asked_for = ([(turn[0], (turn[1] or "").strip()) for turn in part] for part in (turns, explicit))
    if carried == asked_for[-len(carried) :]:
        return explicit
    questions = [turn for turn in asked_for if turn[0] != "system" or turn not in carried]
    ends = (carried[: len(questions)], carried[-len(questions) :])
    if questions not in ends and (len(questions) != 1 or questions[0] not in carried):
        raise Unfit("different_prompts", field, "is not the prompt of the conversations beside it")
    return turns


def _split(
    row: ForeignRow,
    chosen: list[Turn],
    rejected: list[Turn],
    *,
    prompt: Callable[[list[Turn]], list[Turn]] = list,
) -> Draft:
    """Two conversations as their common ``prompt`` and what follows it. Raises Unfit: the prompts differ."""
    num = common_turns(chosen, rejected)
    if chosen[num][0] != "assistant" or rejected[num][0] != "assistant":
        raise Unfit("different_prompts", "chosen", f"and rejected part at turn {num}, before the answer")
    turns = prompt(with_system(row, chosen[:num]))
    return with_extras(Draft(turns, chosen[num:], rejected[num:], margin=_margin(row)), row)


def common_turns(chosen: list[Turn], rejected: list[Turn]) -> int:
    """How many turns of two conversations are their prompt: the common ones, less assistant turns at their end."""
    num = 0
    limit = min(len(chosen), len(rejected)) - 1
    while num < limit and chosen[num] == rejected[num]:
        num += 1
    if chosen[num][0] == rejected[num][0] == "assistant":
        while num and chosen[num - 1][0] == "assistant":
            num -= 1
    return num


def _answered(turns: list[Turn]) -> int:
    cut = last_answer(turns)
    if cut == len(turns):
        raise Unfit("no_answer", "messages", "does not end with an answer")
    return cut


def _margin(row: ForeignRow) -> float | None:
    """The margin, or the difference of two scores; None where the row has neither."""
    if row.get("margin") not in (None, ""):
        return _score(row["margin"], "margin")
    for better, worse in SCORES:
        if row.get(better) not in (None, "") and row.get(worse) not in (None, ""):
            return _score(row[better], better) - _score(row[worse], worse)
    return None


def _score(value: Any, field: str) -> float:
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise Unfit("score", field, f"is {value!r}, not a finite number")
    return score


def _completions(row: ForeignRow) -> list[tuple[float, str]]:
    scored = []
    for index, completion in enumerate(listed(row[present(row, ("completions",))], "completions")):
        place = f"completions[{index}]"
        if not isinstance(completion, dict):
            raise Unfit("not_object", place, f"is {named(completion)}, not a completion")
        field = first_present(completion, ("overall_score", "score", "rating", "fine-grained_score"))
        if field is None:
            raise Unfit("score", place, "has no overall_score, score or rating")
        answer = completion.get("response", completion.get("content", completion.get("text")))
        scored.append((_score(completion[field], f"{place}.{field}"), _answer(answer, f"{place}.response")))
    return scored


def _answer(value: Any, field: str) -> str:
    if isinstance(value, str):
        return value
    raise Unfit("null_field" if value is None else "not_text", field, f"is {named(value)}, not text")


def _ranked(row: ForeignRow, scored: list[tuple[float, str]], all_pairs: bool) -> list[Draft]:
    """Pairs of unequal scores, best first; equal scores keep their order in the row and give no pair."""
    order = sorted(scored, key=lambda s: -s[0])
    turns = asked(row, first_present(row, ("instruction", "prompt", "question")) or "instruction")
    drafts = []
    for better in range(len(order) if all_pairs else min(1, len(order))):
        for worse in range(better + 1, len(order)):
            margin = order[better][0] - order[worse][0]
            if margin > 0:
                chosen, rejected = [assistant(order[better][1])], [assistant(order[worse][1])]
                drafts.append(with_extras(Draft(turns, chosen, rejected, margin=margin), row))
    if not drafts:
        raise Unfit("no_preference", "completions", "has no two answers with different scores")
    return drafts
