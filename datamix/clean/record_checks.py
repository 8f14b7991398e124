"""Checks of whole records: their length, conversations that teach the wrong thing, pairs that say nothing.

``length`` counts Unicode code points: 400 characters of Chinese say about as much as 1,200 of English. The
selected parts of a record count together (contents, reasoning and calls of its turns, without what separates
them); each completion of a preference pair counts by itself, so that an empty ``rejected`` is noticed.

``sft_checks`` drops silence, refusals, echoes, turns out of order and answers cut short, by rules that would
rather miss one than drop a good answer; English and Chinese, one pass of Python over the turns.
``preference_checks`` drops pairs whose answers are equal (blanks around turns ignored) or empty. Pairs that
contradict each other are in different records: whether they may stay is an option of that step, but they are
recognised where fates are decided.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from datamix.clean import script
from datamix.clean.fields import join_turns, views
from datamix.core.records import Fields, RecordKind

_PARTS = ("reasoning", "content", "tool_calls")
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
# an attribution or a hashtag: a proper end
_SIGNATURE = re.compile(r"[\"”'’」』] ?[-—–]+ ?[^\"”—–]{1,40}$|[#＃@]\w+$")
_OPEN_ENDS = tuple(",，、;；:：(（[【{“‘「『《<-—=+&/\\")

_MIN_OPEN_WORDS = 3  # "Ingredients:" alone may be all there is to say
# a last line this long, without its mark, in an answer that otherwise sets them, was cut
_LONG_LINE_CHARS = 90
_FENCE = re.compile(r"^\s*```", re.MULTILINE)
_PROSE_MARKS = re.compile(r"[.!?](?:\s|$)|[。！？]")
_NEXT = {  # role -> roles that may follow
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


@dataclass(frozen=True)
class Length:
    """Options of ``length``, in characters."""

    min_chars: int = 1
    max_chars: int | None = None

    def __post_init__(self) -> None:
        if self.min_chars < 0:
            raise ValueError(f"min_chars must be 0 or more, got {self.min_chars}")
        if self.max_chars is not None and self.max_chars < max(self.min_chars, 1):
            raise ValueError(f"max_chars must be at least min_chars and 1, got {self.max_chars}")


@dataclass(frozen=True)
class SftChecks:
    """Options of ``sft_checks``: which of them to make."""

    empty_answer: bool = True
    refused_answer: bool = True
    answer_equals_question: bool = True
    turn_order: bool = True  # system first, user and assistant in turn, tools after calls, the assistant last
    truncated_ending: bool = True


@dataclass(frozen=True)
class PreferenceChecks:
    """Options of ``preference_checks``: which of them to make."""

    equal_answers: bool = True
    empty_answer: bool = True  # either of a pair; the only one of an unpaired record
    # A over B here, B over A there: decided when all records are known, not by this step
    contradictions: bool = False


def judge_length(batch: pa.RecordBatch, kind: RecordKind, options: Length, fields: Fields) -> pa.Array:
    """``length_min_chars`` or ``length_max_chars`` per row, else null. A part that is absent is not
    judged.
    """
    none = pa.scalar(None, pa.string())
    verdicts = []
    for view in views(batch, kind, fields, *((_PARTS, "") if kind in ("sft", "preference") else ())):
        chars = pc.utf8_length(view)
        verdicts.append(pc.if_else(pc.less(chars, options.min_chars), "length_min_chars", none))
        if options.max_chars is not None:
            verdicts.append(pc.if_else(pc.greater(chars, options.max_chars), "length_max_chars", none))
    return pc.coalesce(*verdicts)


def check_sft(batch: pa.RecordBatch, kind: RecordKind, options: SftChecks, _: Fields) -> pa.Array:
    """``sft_checks_NAME`` of the first check that each record fails, else null."""
    if kind != "sft":
        return pa.nulls(batch.num_rows, pa.string())
    messages = batch.column("messages")
    flat = messages.flatten()
    roles = [role or "" for role in flat.field("role").to_pylist()]
    contents = [(content or "").strip() for content in flat.field("content").to_pylist()]
    turns = list(zip(roles, contents, pc.is_valid(flat.field("tool_calls")).to_pylist(), strict=True))
    reasons, start = [], 0
    for length in pc.list_value_length(messages).to_pylist():
        failed = (name for name in _failed(turns[start : start + length]) if getattr(options, name))
        name = next(failed, None)
        reasons.append(None if name is None else f"sft_checks_{name}")
        start += length
    return pa.array(reasons, pa.string())


def _failed(turns: Sequence[tuple[str, str, bool]]) -> Iterator[str]:
    """The checks that a conversation of (role, content, has calls) fails, the cheap ones first."""
    answers = [(content, calls) for role, content, calls in turns if role == "assistant"]
    if is_broken([(role, calls) for role, _, calls in turns]):
        yield "turn_order"
    if not answers or any(not content and not calls for content, calls in answers):
        yield "empty_answer"
    if any((a[0], b[0]) == ("user", "assistant") and a[1] == b[1] for a, b in pairwise(turns)):
        yield "answer_equals_question"
    if any(is_refusal(content) for content, _ in answers):
        yield "refused_answer"
    if answers and not answers[-1][1] and is_cut(answers[-1][0]):
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
    match = _REFUSAL.match(answer)
    return match is not None and _GOES_ON.search(answer, match.end()) is None


def is_cut(answer: str) -> bool:
    """Whether an answer stops in the middle: an open mark, an open code fence, or a long last line without
    its mark.

    ``"First, wash the wound,"`` and ``"一是休息，二是多喝水，"`` do. The last rule is for words between blanks only:
    people who write Chinese often leave the last full stop out.
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


def check_preference(
    batch: pa.RecordBatch, kind: RecordKind, options: PreferenceChecks, _: Fields
) -> pa.Array:
    """``preference_checks_NAME`` of the first check that each record fails, else null."""
    none = pa.nulls(batch.num_rows, pa.string())
    if kind != "preference":
        return none
    chosen, rejected = (
        pc.utf8_trim_whitespace(join_turns(batch.column(name), None, _PARTS, "\x1e"))
        for name in ("chosen", "rejected")
    )
    reasons = none
    if options.empty_answer:
        empty = pc.or_kleene(pc.equal(chosen, ""), pc.equal(rejected, ""))
        reasons = pc.if_else(pc.fill_null(empty, False), "preference_checks_empty_answer", reasons)
    if options.equal_answers:
        equal = pc.fill_null(pc.equal(chosen, rejected), False)
        reasons = pc.coalesce(reasons, pc.if_else(equal, "preference_checks_equal_answers", none))
    return reasons


@dataclass(frozen=True)
class Keep:
    """Keep records whose number is inside a band: the number of a `field` or a `score`, from `min` to `max`."""

    field: str | None = None
    score: str | None = None
    min: float | None = None
    max: float | None = None
