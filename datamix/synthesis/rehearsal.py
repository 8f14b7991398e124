"""SSR, self-synthesized rehearsal: a base model writes new inputs after two of the old ones (Huang et al., 2024, arXiv 2403.01244).

For models that are not aligned: only ``/completions`` is used. Two records of the old data are the examples; the model goes on with a
third input and output. A record is dropped unless it has exactly one output and both keep to the paper's lengths, counted in words and,
in Chinese, in characters. The output is then written again, greedily, by the latest model: the one at the endpoint.

Cost: two requests a record.
"""

from __future__ import annotations

from collections.abc import Sequence

from datamix.core.hashing import digest
from datamix.synthesis.calls import Call, Draft, Sampling, Script, seed_of
from datamix.synthesis.rewriting import SourceRecord
from datamix.synthesis.text_checks import words

_MOST_INPUT, _MOST_OUTPUT = 500, 800  # words
_STOPS = ("\nInput:", "\n\n\n")


def rehearsal(
    job: str, instruction: Sampling, answer: Sampling, seeds: Sequence[SourceRecord], index: str
) -> Script:
    """One new record after two seeds."""
    first, second = two_of(job, index, len(seeds))
    shots = "".join(_shot(seeds[n]) for n in (first, second))
    prompt = f"{shots}Input:"
    asked = Call(
        "input", index, instruction, seed_of(job, index, "input"), prompt=prompt, stops=_STOPS,
        num_prompt_tokens=len(prompt.encode()) + 8,
    )  # fmt: skip
    (written,) = yield [asked]
    prompt_id = f"{seeds[first].id}+{seeds[second].id}"
    text, output, rest = _parts(written.text)
    reason = None
    if written.finish == "error":
        reason = "refused_by_host"
    elif not text or output is None or rest:
        reason = "not_one_output"
    elif len(words(text)) > _MOST_INPUT or len(words(output)) > _MOST_OUTPUT:
        reason = "too_long"
    if reason is not None:
        return [Draft(index, reason=reason, detail=written.text, prompt_id=prompt_id)]
    prompt = f"{shots}Input: {text}\nOutput:"
    asked = Call(
        "output", index, answer, seed_of(job, index, "output"), prompt=prompt, stops=_STOPS,
        num_prompt_tokens=len(prompt.encode()) + 8,
    )  # fmt: skip
    (written,) = yield [asked]
    if not written.is_whole or not written.text.strip():
        return [Draft(index, reason="unfinished", detail=f"{text}\n\n{written.text}", prompt_id=prompt_id)]
    turns = ({"role": "user", "content": text}, {"role": "assistant", "content": written.text.strip()})
    return [Draft(index, turns, prompt_id=prompt_id)]


def two_of(job: str, index: str, count: int) -> tuple[int, int]:
    """Two different seeds by name; the same one twice where there is only one."""
    state = int(digest("seeds", job, index)[:16], 16)
    first = state % count
    second = (first + 1 + state // count % max(1, count - 1)) % count
    return first, second


def question_and_answer(record: SourceRecord) -> tuple[str, str]:
    """The first question of a record, with its system text, and its answer."""
    asked = [str(turn.get("content") or "") for turn in record.messages if turn["role"] in ("system", "user")]
    told = [str(turn.get("content") or "") for turn in record.messages if turn["role"] == "assistant"]
    first_user = next((n for n, turn in enumerate(record.messages) if turn["role"] == "user"), 0)
    return "\n".join(asked[: 1 + (record.messages[0]["role"] == "system" and first_user > 0)]), told[
        0
    ] if told else ""


def _shot(record: SourceRecord) -> str:
    question, answer = question_and_answer(record)
    return f"Input: {question.strip()}\nOutput: {answer.strip()}\n\n"


def _parts(text: str) -> tuple[str, str | None, str | None]:
    """Input, output, and what a second output would be."""
    parts = text.split("\nOutput:")
    output = parts[1].strip() if len(parts) > 1 else None
    return parts[0].strip(), output or None, parts[2] if len(parts) > 2 else None
