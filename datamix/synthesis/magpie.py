"""Magpie: an aligned model writes the instruction itself, then the answer (Xu et al., 2024, arXiv 2406.08464).

The prompt of an instruction is the template's beginning of a user's turn, so the model goes on with what users ask it. A system turn
can steer topics and languages while instructions are written; it is no part of the answer's prompt nor of the record, as in the
original. Unlike there a newline does not end an instruction (that would lose code, tables and choices), and what leaks of an answer
behind it is cut.

Cost: two requests a turn; the prefix is the same for all records of one system text, so a host computes it once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from datamix.core.hashing import digest
from datamix.synthesis.calls import Call, Draft, Sampling, Script, seed_of


class Prompts(Protocol):
    """What a chat template says of prompts (``tokenize.user_turns``)."""

    @property
    def instruction_stops(self) -> tuple[str, ...]: ...
    @property
    def answer_stops(self) -> tuple[str, ...]: ...
    def opening(self, messages: Sequence[Mapping[str, Any]]) -> str: ...
    def answering(self, messages: Sequence[Mapping[str, Any]]) -> str: ...
    def count(self, text: str) -> int: ...
    def cut_leak(self, text: str) -> tuple[str, bool]: ...


@dataclass(frozen=True)
class Steering:
    """A system text that instructions are written under."""

    text: str = ""
    share: float = 1.0
    language: str | None = None


@dataclass(frozen=True)
class MagpieSetup:
    """What all records of a job share."""

    job: str
    prompts: Prompts
    instruction: Sampling
    answer: Sampling
    turns: int = 1


def magpie(setup: MagpieSetup, index: str, steering: Steering) -> Script:
    """One record: instructions and answers in turn."""
    prompts = setup.prompts
    talk: list[dict[str, str]] = []
    for turn in range(setup.turns):
        steered = [{"role": "system", "content": steering.text}, *talk] if steering.text else talk
        text = prompts.opening(steered)
        stage = f"instruction {turn}"
        asked = Call(
            stage,
            index,
            setup.instruction,
            seed_of(setup.job, index, stage),
            prompt=text,
            stops=prompts.instruction_stops,
            num_prompt_tokens=prompts.count(text),
        )
        (written,) = yield [asked]
        instruction, leaked = prompts.cut_leak(written.text)
        reason = None if instruction else "empty"
        if written.finish not in ("stop", "error") and not leaked:
            reason = "unfinished"
        elif written.finish == "error":
            reason, instruction = "refused_by_host", written.text
        elif instruction.endswith((":", "：")):
            reason = "unfinished"
        if reason is not None:
            return [_draft(index, talk, reason, instruction, steering)]
        talk.append({"role": "user", "content": instruction})
        text = prompts.answering(talk)
        stage = f"answer {turn}"
        asked = Call(
            stage,
            index,
            setup.answer,
            seed_of(setup.job, index, stage),
            prompt=text,
            stops=prompts.answer_stops,
            num_prompt_tokens=prompts.count(text),
        )
        (written,) = yield [asked]
        answer, _ = prompts.cut_leak(written.text)
        if not written.is_whole or not answer:
            reason = "empty" if written.is_whole else "unfinished"
            reason = "refused_by_host" if written.finish == "error" else reason
            return [_draft(index, talk[:-1], reason, answer, steering, talk[-1]["content"])]
        opened = "<think>\n" if text.rstrip().endswith("<think>") else ""  # by the template, for a thought
        talk.append({"role": "assistant", "content": opened + answer})
    return [_draft(index, talk, None, "", steering)]


def _draft(
    index: str,
    talk: list[dict[str, str]],
    reason: str | None,
    detail: str,
    steering: Steering,
    asked: str = "",
) -> Draft:
    """The whole turns before one that failed are a record; where there are none it is removed."""
    meta = {"language": steering.language} if steering.language else {}
    prompt_id = digest("prompt", talk[0]["content"] if talk else asked)[:16]
    if talk:
        return Draft(index, tuple(talk), prompt_id=prompt_id, meta=meta)
    detail = f"{asked}\n\n{detail}" if asked else detail
    return Draft(index, reason=reason, detail=detail, prompt_id=prompt_id, meta=meta)


def steer(job: str, index: int, systems: Sequence[Steering]) -> Steering:
    """The system text of a record: each gets its share of any run of indices, to within one record of each.

    Indices are dealt by the golden ratio from a start that the job's name gives: equal shares in every stretch, and no period.
    """
    if not systems:
        return Steering()
    start = int(digest("steer", job)[:12], 16) / 16**12
    place = (start + index * 0.6180339887498949) % 1.0 * sum(s.share for s in systems)
    for system in systems:
        place -= system.share
        if place < 0:
            return system
    return systems[-1]
