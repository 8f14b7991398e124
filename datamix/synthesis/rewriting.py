"""SDFT: the model rewrites each answer of a set in its own words, with the original in view (Yang et al., 2024, arXiv 2402.13669).

What a model would say itself moves it less when it is trained. A rewrite is taken where it passes the gate; else the original stays, so
that no record is lost. Requests are joined to records by their id. The price is told in the docs: the target task can lose.

The gate: no phrase that speaks of the task (the paper's list, and its Chinese), no refusal, the same script, a length of 0.3 to 3 times
the original's, the same numbers, the same calls, code where there was code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datamix.synthesis import text_checks
from datamix.synthesis.calls import Answer, Call, Draft, Sampling, Script, seed_of

_SYSTEM = {
    "en": "You are given a task and an answer to it. Answer the task in your own words, with the given answer as your guide. Keep every "
    "fact and number. Write the answer alone.",
    "zh": "下面是一个任务和它的参考答案。请以参考答案为依据，用你自己的话回答这个任务。保留所有事实和数字，只写回答本身。",
}
_PARTS = {
    "en": ("Task", "Given answer", "Answer in your own words"),
    "zh": ("任务", "参考答案", "用你自己的话回答"),
}
_PHRASES = re.compile(
    r"reference answer|given answer|your response|my response|your own (response|words)|in my own words|now it's your turn|\A\s*your turn"
    "|参考答案|参考回答|用(我|你)自己的话|轮到你了",
    re.IGNORECASE,
)
_LENGTHS = 0.3, 3.0


@dataclass(frozen=True)
class SourceRecord:
    """One record of a source."""

    id: str  # SOURCE:FILE:RECORD
    key: str  # of its content: what is asked depends on it alone
    messages: tuple[Mapping[str, Any], ...]
    reference: str | None = None
    tools: tuple[Any, ...] = ()


def gate(original: str, rewrite: str) -> str | None:
    """Why a rewrite is not taken; None where it is."""
    if not rewrite.strip():
        return "empty"
    if _PHRASES.search(rewrite) and not _PHRASES.search(original):
        return "phrase"
    if text_checks.is_refusal(rewrite) and not text_checks.is_refusal(original):
        return "refusal"
    if text_checks.script_of(rewrite) != text_checks.script_of(original):
        return "language"
    if not _LENGTHS[0] <= len(rewrite.strip()) / max(1, len(original.strip())) <= _LENGTHS[1]:
        return "length"
    if text_checks.calls(original) != text_checks.calls(rewrite):
        return "calls"
    if text_checks.numbers(original) != text_checks.numbers(rewrite):
        return "numbers"
    return None if text_checks.code_is_whole(original, rewrite) else "code"


def rewrite(job: str, sampling: Sampling, record: SourceRecord) -> Script:
    """One record with every answer rewritten that can be: those with calls stay as they are."""
    places = [
        n for n, turn in enumerate(record.messages)
        if turn["role"] == "assistant" and (turn.get("content") or "").strip() and not turn.get("tool_calls")
        and turn.get("train") != 0
    ]  # fmt: skip
    calls = [_call(job, sampling, record, place) for place in places]
    answers = (yield calls) if calls else []
    messages = [dict(turn) for turn in record.messages]
    verdicts = []
    for place, answer in zip(places, answers, strict=True):
        verdict = _verdict(str(messages[place]["content"]), answer)
        verdicts.append(verdict or "taken")
        if verdict is None:
            messages[place]["content"] = answer.text.strip()
            messages[place].pop("reasoning", None)
    meta = {"verdicts": verdicts or ["no answer to rewrite"]}
    return [Draft(record.key, tuple(messages), prompt_id=record.id, meta=meta, tools=record.tools)]


def _verdict(original: str, answer: Answer) -> str | None:
    if not answer.is_whole:
        return "refused_by_host" if answer.finish == "error" else "unfinished"
    return gate(original, answer.text)


def _call(job: str, sampling: Sampling, record: SourceRecord, place: int) -> Call:
    """The request for one answer: the conversation before it, then the task with the original answer."""
    before = list(record.messages[:place])
    asked = next((n for n in range(place - 1, -1, -1) if before[n]["role"] == "user"), None)
    task = str(before[asked].get("content") or "") if asked is not None else ""
    original = str(record.messages[place]["content"])
    language = "zh" if text_checks.script_of(original) == "han" else "en"
    first, second, last = _PARTS[language]
    text = f"{_SYSTEM[language]}\n\n### {first}:\n{task}\n\n### {second}:\n{original}\n\n### {last}:\n"
    history = [(str(t["role"]), str(t.get("content") or "")) for t in before[:asked] if t["role"] in _PLAIN]
    return chat_call(f"rewrite {place}", record.key, sampling, job, [*history, ("user", text)])


_PLAIN = ("system", "user", "assistant")


def chat_call(
    stage: str, index: str, sampling: Sampling, job: str, messages: list[tuple[str, str]], sample: int = 0
) -> Call:
    """A request to the chat endpoint; a token is never shorter than a byte, and a turn has a frame of a few."""
    merged: list[tuple[str, str]] = []
    for role, content in messages:  # templates want user and assistant in turn
        if merged and merged[-1][0] == role:
            merged[-1] = role, f"{merged[-1][1]}\n\n{content}"
        else:
            merged.append((role, content))
    most = sum(len(content.encode()) + 16 for _, content in merged) + 64
    seed = seed_of(job, index, stage, sample)
    return Call(stage, index, sampling, seed, messages=tuple(merged), num_prompt_tokens=most)
