"""Several answers a prompt: the best of them as a record, or the best and the worst as a preference pair.

What is best is said by a verifier (``reference``: the number, call or text that the record has as its answer), by the model's own
confidence (``likelihood``: mean log-probability of its tokens), by the answers themselves (``agreement``: the final number or text that
most of them share; Wang et al., 2022, self-consistency), or by a model that rates each from 1 to 10 (``judge``). Refusals and unfinished
answers are never best.

Cost: n requests a prompt, one after another so that a host computes the prompt once; ``judge`` asks once more for each answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from datamix.synthesis import text_checks
from datamix.synthesis.calls import Answer, Draft, Sampling, Script
from datamix.synthesis.rewriting import SourceRecord, chat_call

_JUDGE = {
    "en": "Rate the answer to the question from 1 (useless or wrong) to 10 (correct, complete and clear). Write the number alone.",
    "zh": "请给下面问题的回答打分，从 1（无用或错误）到 10（正确、完整、清楚）。只写数字。",
}
_RATING = re.compile(r"\b(10|[1-9])\b")
_RATING_TOKENS = Sampling(0.0, 8)


def sampled_answers(
    job: str,
    sampling: Sampling,
    record: SourceRecord,
    n: int = 1,
    best: str | None = None,
    pairs: bool = False,
) -> Script:
    """One prompt answered ``n`` times."""
    prompt = record.messages
    talk = [(str(turn["role"]), str(turn.get("content") or "")) for turn in prompt]
    calls = [chat_call("answer", record.key, sampling, job, talk, sample) for sample in range(n)]
    if best == "likelihood":
        calls = [replace(call, logprobs=True) for call in calls]
    answers = yield calls
    whole = [a for a in answers if a.is_whole and a.text.strip()]
    if not whole:
        reason = "refused_by_host" if all(a.finish == "error" for a in answers) else "unfinished"
        return [Draft(record.key, reason=reason, detail=answers[0].text, prompt_id=record.id)]
    if best == "judge":
        language = "zh" if text_checks.script_of(talk[-1][1]) == "han" else "en"
        ratings = yield [
            chat_call(
                f"rate {number}", record.key, _RATING_TOKENS, job,
                [("user", f"{_JUDGE[language]}\n\n### Question\n{talk[-1][1]}\n\n### Answer\n{answer.text}")],
            )
            for number, answer in enumerate(whole)
        ]  # fmt: skip
        scores = [_rating(rating.text) for rating in ratings]
    else:
        scores = score(whole, best, record.reference)
    return [_chosen(record, prompt, whole, scores, best, pairs)]


def _chosen(
    record: SourceRecord, prompt: tuple[Mapping[str, Any], ...], whole: Sequence[Answer], scores: list[float], best: str | None, pairs: bool
) -> Draft:  # fmt: skip
    scores = [s - 1e6 * text_checks.is_refusal(a.text) for s, a in zip(scores, whole, strict=True)]
    top = max(range(len(whole)), key=lambda i: (scores[i], -i))
    low = min(range(len(whole)), key=lambda i: (scores[i], i))
    if best == "reference" and scores[top] <= 0:
        return Draft(record.key, reason="not_verified", detail=whole[top].text, prompt_id=record.id)
    if pairs and scores[top] == scores[low]:
        return Draft(record.key, reason="no_difference", detail=whole[top].text, prompt_id=record.id)
    turns = ({"role": "assistant", "content": whole[top].text.strip()},)
    if not pairs:
        return Draft(record.key, (*prompt, *turns), prompt_id=record.id, tools=record.tools)
    worse = ({"role": "assistant", "content": whole[low].text.strip()},)
    margin = round(min(scores[top] - scores[low], 1e6), 6)
    return Draft(
        record.key, (*prompt, *turns), prompt_id=record.id, rejected=worse, margin=margin, tools=record.tools
    )


def score(answers: Sequence[Answer], best: str | None, reference: str | None) -> list[float]:
    """A number an answer, the larger the better; without ``best`` all are equal, so the first is taken."""
    if best == "likelihood":
        return [a.logprob if a.logprob is not None else float("-inf") for a in answers]
    if best == "agreement":
        finals = [_final(a.text) for a in answers]
        votes = Counter(finals)
        return [float(votes[final]) for final in finals]
    if best == "reference":
        return [float(is_verified(a.text, reference)) for a in answers]
    return [0.0] * len(answers)


def is_verified(text: str, reference: str | None) -> bool:
    """Whether an answer comes to the reference: its calls, its last number, or else its text within the answer."""
    if reference is None or not reference.strip():
        return False
    if wanted := text_checks.calls(reference):
        return text_checks.calls(text) == wanted
    if (number := text_checks.last_number(reference)) is not None:
        return text_checks.last_number(text) == number
    return " ".join(text_checks.words(reference)) in " ".join(text_checks.words(text))


def _final(text: str) -> str:
    return text_checks.last_number(text) or " ".join(text_checks.words(text.strip().splitlines()[-1]))


def _rating(text: str) -> float:
    match = _RATING.search(text)
    return float(match[1]) if match else 0.0
