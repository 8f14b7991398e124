"""Drop conversations that teach the wrong thing: silence, refusal, echo, turns out of order, answers cut short.

Looks at whole records of kind sft; others pass. Refusals and cut answers are told by rules that would rather miss one
than hit a good answer; English and Chinese. One pass of Python over the turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from datamix.clean import script
from datamix.core.records import Fields, RecordKind

_CANNOT_EN = r"(?:can['’]?t|cannot|can not|am unable|am not able|['’]m unable|['’]m not able|do not have|don['’]t have|am not capable)"
_CANNOT_ZH = r"(?:无法|不能|没有办法|没办法|不便|不会|没有能力|不具备)"
_REFUSAL = re.compile(
    rf"(?:i['’]?m |i am |we are )?(?:really |very |so )?(?:sorry|afraid|apologi[sz]e)[^.!?\n]{{0,40}}?\bi ?{_CANNOT_EN}\b"
    rf"|as an? (?:ai|artificial intelligence|large language|language)\b[^.!?\n]{{0,60}}?\bi ?{_CANNOT_EN}\b"
    rf"|i ?{_CANNOT_EN} (?:to )?(?:assist|help|comply|provide|fulfill?|answer|engage|create|write|generate)\b[^.!?\n]{{0,60}}[.!]"
    rf"|(?:非常|很|十分|实在)?(?:抱歉|对不起|不好意思)[，,！!。 ]{{0,2}}(?:但|但是|不过)?(?:作为[^，,。]{{0,20}}[，,])?我(?:目前|暂时|还)?{_CANNOT_ZH}"
    rf"|作为(?:一个|一名|一款)?[^，,。\n]{{0,6}}(?:AI|人工智能|语言模型|智能助手|聊天机器人)[^，,。\n]{{0,10}}[，,]?我(?:目前|暂时|还|并)?(?:{_CANNOT_ZH}|没有)"
    rf"|我{_CANNOT_ZH}(?:提供|回答|协助|帮助|满足|完成|参与|讨论)(?:您|你|这|该|此|任何|相关)",
    re.IGNORECASE,
)
_GOES_ON = re.compile(
    r"\b(?:however|but|instead|nevertheless|that said|here(?: is| are|['’]s))\b|但|不过|然而|以下|如下|(?:您|你)可以",
    re.IGNORECASE,
)
# who said it, or a hashtag: a proper end
_SIGNATURE = re.compile(r"[\"”'’」』] ?[-—–]+ ?[^\"”—–]{1,40}$|[#＃@]\w+$")
_OPEN_ENDS = tuple(",，、;；:：(（[【{“‘「『《<-—=+&/\\")

_MIN_OPEN_WORDS = 3  # "Ingredients:" alone may be all there is to say
_LONG_LINE_CHARS = (
    90  # a last line this long, without its mark, in an answer that otherwise sets them, was cut
)
_FENCE = re.compile(r"^\s*```", re.MULTILINE)
_PROSE_MARKS = re.compile(r"[.!?](?:\s|$)|[。！？]")
_NEXT = {  # role -> roles that may follow
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


@dataclass(frozen=True)
class SftChecks:
    """Options of ``sft_checks``: which of them to make."""

    empty_answer: bool = True
    refused_answer: bool = True
    answer_equals_question: bool = True
    turn_order: bool = True  # system first, user and assistant in turn, tools after calls, the assistant last
    truncated_ending: bool = True


@dataclass(frozen=True)
class _Turn:
    role: str
    content: str
    calls: bool


def check_sft(batch: pa.RecordBatch, kind: RecordKind, options: SftChecks, _: Fields) -> pa.Array:
    """``sft_checks_NAME`` of the first check that each record fails, else null."""
    if kind != "sft":
        return pa.nulls(batch.num_rows, pa.string())
    messages = batch.column("messages")
    flat = messages.flatten()
    turns = [
        _Turn(role or "", (content or "").strip(), calls)
        for role, content, calls in zip(
            flat.field("role").to_pylist(),
            flat.field("content").to_pylist(),
            pc.is_valid(flat.field("tool_calls")).to_pylist(),
            strict=True,
        )
    ]
    reasons, start = [], 0
    for length in pc.list_value_length(messages).to_pylist():
        reasons.append(_reason(turns[start : start + length], options))
        start += length
    return pa.array(reasons, pa.string())


def _reason(turns: Sequence[_Turn], options: SftChecks) -> str | None:
    return next((f"sft_checks_{name}" for name in _failed(turns) if getattr(options, name)), None)


def _failed(turns: Sequence[_Turn]) -> Iterator[str]:
    answers = [turn for turn in turns if turn.role == "assistant"]
    if is_broken([(turn.role, turn.calls) for turn in turns]):
        yield "turn_order"
    if not answers or any(not turn.content and not turn.calls for turn in answers):
        yield "empty_answer"
    if any((a.role, b.role) == ("user", "assistant") and a.content == b.content for a, b in pairwise(turns)):
        yield "answer_equals_question"
    if any(is_refusal(turn.content) for turn in answers):
        yield "refused_answer"
    if answers and not answers[-1].calls and is_cut(answers[-1].content):
        yield "truncated_ending"


def is_broken(turns: Sequence[tuple[str, bool]]) -> bool:
    """Whether the (role, has calls) of a conversation are out of order.

    ``system user assistant`` is right; ``user user assistant``, ``user`` and ``user tool assistant`` are not.
    """
    if not turns or turns[0][0] not in ("system", "user") or turns[-1][0] != "assistant":
        return True
    for (role, calls), (following, _) in pairwise(turns):
        if following not in _NEXT.get(role, ()) or (
            following == "tool" and role == "assistant" and not calls
        ):
            return True
    return False


def is_refusal(answer: str) -> bool:
    """Whether an answer opens with a refusal and leaves it there.

    ``"I'm sorry, but I can't help with that."`` and ``"抱歉，我无法回答。"`` do; ``"As an AI I cannot paint. Here is a
    sketch in words: ..."`` does not.
    """
    answer = answer.lstrip("*#> \n")
    found = _REFUSAL.match(answer)
    return found is not None and _GOES_ON.search(answer, found.end()) is None


def is_cut(answer: str) -> bool:
    """Whether an answer stops in the middle: an open mark, an open code fence, or a long last line without its mark.

    ``"First, wash the wound,"`` and ``"一是休息，二是多喝水，"`` do. The last rule is for words between blanks only: people
    who write Chinese often leave the last full stop out.
    """
    if len(_FENCE.findall(answer)) % 2:
        return True
    last = answer.rsplit("\n", 1)[-1]
    if last.startswith(("|", "    ", "- ", "* ", "http")) or last.endswith("```") or " | " in last:
        return False
    if answer.endswith(_OPEN_ENDS) and script.split(last).count >= _MIN_OPEN_WORDS:
        return True
    if not answer[-1:].isalpha() or script.is_dense(answer[-1]) or _SIGNATURE.search(last):
        return False
    return len(last) >= _LONG_LINE_CHARS and _PROSE_MARKS.search(answer) is not None
