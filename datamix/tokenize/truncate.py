"""Make over-long records fit: drop the oldest exchanges, cut the front of a question, else refuse the record.

A conversation loses its oldest exchanges first (the system turn stays) and is rendered anew, so that it is a conversation the
template could have written. A question is cut from the front, so that the part next to its answer stays, and never away: its
last word stays, or the exchange goes with it. So no answer is trained to a question that is not there; an answer is never cut.
``truncate`` cuts the question of the oldest exchange that is left, where dropping it would free more than needed; the other
ways cut only that of the last exchange, where it alone is too long. The prompt of a pair is made to fit beside the longer of its
completions, the same for both. The messages that are left come with the tokens, for formats that hold text. Cost: one more
encoding of the records that are too long; texts that their shorter forms share are encoded once.
"""

from __future__ import annotations

import copy
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from datamix.core.records import MESSAGES, RecordKind
from datamix.tokenize.batch import TokenRows, refused_batch
from datamix.tokenize.conversation import ChatTurn, Conversation
from datamix.tokenize.encoder import Encoder
from datamix.tokenize.tokenizer import CachedEncoder

# Tokens more than the excess that are cut in turn: cutting a text may change its first tokens.
_SLACK = (0, 8, 64, 512)
_MIN_QUESTION = 4  # tokens that stay at least of a question that is cut


class FittedRecords(NamedTuple):
    """Over-long records, row for row."""

    tokens: pa.RecordBatch  # of ``records.TOKENS``
    messages: (
        pa.ListArray
    )  # those that the tokens were rendered from (of a pair: its prompt), null where refused


def fit(
    encoder: Encoder, batch: pa.RecordBatch, record_kind: RecordKind, max_length: int, overlong: str
) -> FittedRecords:
    """Records longer than ``max_length``, made to fit or refused as ``overlong``, row for row."""
    kind = encoder.spec.kind
    if kind == "preference" or (kind == "sft" and overlong in ("drop_turns", "truncate")):
        return fit_rows(encoder, encoder.rows(batch, record_kind), max_length, overlong)
    refused = refused_batch(kind, ["overlong"] * batch.num_rows)
    return FittedRecords(refused, pa.nulls(batch.num_rows, MESSAGES))


def fit_rows(encoder: Encoder, rows: TokenRows, max_length: int, overlong: str) -> FittedRecords:
    """Conversations, or pairs, of at most ``max_length`` tokens; of a pair that counts each side with its prompt."""
    fitter = _Fitter(encoder, rows, max_length)
    fitter.try_whole()
    whole = [fitted is not None for fitted in fitter.fitted]
    if overlong != "drop":
        dropped = fitter.drop_exchanges(rows.prompts)
        rest = {row: _without_oldest(rows.prompts[row], n - 1) for row, n in dropped.items()}
        fitter.cut({r: c for r, c in rest.items() if overlong == "truncate" or fitter.fitted[r] is None})
    reasons = [
        reason or ("overlong" if fitted is None else None)
        for reason, fitted in zip(rows.reasons, fitter.fitted, strict=True)
    ]
    prompts = [fitted or Conversation((), None, None) for fitted in fitter.fitted]
    tokens = encoder.encode_rows(TokenRows(prompts, rows.chosen, rows.rejected, reasons), Counter())
    is_emitted = tokens.column("reason").is_null().to_pylist()
    cut = [emitted and not uncut for emitted, uncut in zip(is_emitted, whole, strict=True)]
    place = tokens.schema.get_field_index("truncated")
    tokens = tokens.set_column(place, tokens.schema.field(place), pa.array(cut, pa.bool_()))
    messages = [_messages(p) if emitted else None for p, emitted in zip(prompts, is_emitted, strict=True)]
    return FittedRecords(tokens, pa.array(messages, MESSAGES))


class _Fitter:
    """Tries shorter forms of conversations until they fit."""

    def __init__(self, encoder: Encoder, rows: TokenRows, max_length: int) -> None:
        self._encoder = copy.copy(encoder)
        self._encoder.plain = CachedEncoder(encoder.plain)
        self._rows = rows
        self._max_length = max_length
        self.fitted: list[Conversation | None] = [None] * len(rows.reasons)

    def try_whole(self) -> None:
        """Leave alone what fits: of a pair, its two sides together may be too long where neither is."""
        if self._rows.chosen is not None:
            pending = self._pending()
            self._try(pending, [self._rows.prompts[row] for row in pending])

    def drop_exchanges(self, conversations: list[Conversation]) -> dict[int, int]:
        """Drop as few of the oldest exchanges as needed, by bisection over all rows at once; how many, by row."""
        pending = self._pending()
        low = dict.fromkeys(pending, 1)
        high = {row: len(_exchanges(conversations[row])) for row in pending}  # all dropped: nothing fits
        while active := [row for row in pending if low[row] < high[row]]:
            middle = {row: (low[row] + high[row]) // 2 for row in active}
            candidates = [_without_oldest(conversations[row], middle[row]) for row in active]
            for row, fits in zip(active, self._try(active, candidates), strict=True):
                if fits:
                    high[row] = middle[row]
                else:
                    low[row] = middle[row] + 1
        return high

    def cut(self, conversations: dict[int, Conversation]) -> None:
        """Cut the question of each first exchange from the front by the excess, where enough of it stays."""
        pending = list(conversations)
        for slack in _SLACK:
            lengths = self._lengths(pending, [conversations[row] for row in pending])
            candidates: dict[int, Conversation] = {}
            for row, length in zip(pending, lengths, strict=True):
                excess = max(length - self._max_length, 0) + slack
                if cut := _cut_question(self._encoder, conversations[row], excess):
                    candidates[row] = cut
            fits = self._try(list(candidates), list(candidates.values()))
            pending = [row for row, is_short in zip(candidates, fits, strict=True) if not is_short]
            if not pending:
                return

    def _pending(self) -> list[int]:
        return [
            row
            for row, (fitted, reason) in enumerate(zip(self.fitted, self._rows.reasons, strict=True))
            if fitted is None and reason is None
        ]

    def _try(self, places: list[int], candidates: list[Conversation]) -> list[bool]:
        """Take those of the candidates that fit; returns which do."""
        fits = [0 < length <= self._max_length for length in self._lengths(places, candidates)]
        for row, candidate, is_short in zip(places, candidates, fits, strict=True):
            if is_short:
                self.fitted[row] = candidate
        return fits

    def _lengths(self, places: list[int], prompts: list[Conversation]) -> list[int]:
        """Tokens of rows with other prompts, of a pair those of its longer side; 0 where one cannot be emitted."""
        sides = [
            None if s is None else [s[row] for row in places]
            for s in (self._rows.chosen, self._rows.rejected)
        ]
        rows = TokenRows(prompts, sides[0], sides[1], [None] * len(prompts))
        tokens = self._encoder.encode_rows(rows, Counter())
        lengths = tokens.column("length").to_numpy()
        if self._rows.chosen is not None:
            prompt, *completions = (
                tokens.column(name).value_lengths().fill_null(0).to_numpy()
                for name in ("prompt", "chosen", "rejected")
            )
            lengths = np.where(lengths > 0, prompt + np.maximum(*completions), 0)
        return [int(length) for length in lengths]


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The turns as they are stored."""
    return [
        {
            "role": turn.role,
            "content": turn.content,
            "reasoning": turn.reasoning,
            "tool_calls": None if turn.calls is None else json.dumps(turn.calls, ensure_ascii=False),
            "tool_call_id": turn.tool_call_id,
            "name": turn.name,
            "train": turn.train,
        }
        for turn in conversation.turns
    ]


def _exchanges(conversation: Conversation) -> list[list[ChatTurn]]:
    """The turns after the leading system turns, cut before each user turn that follows an answer."""
    exchanges: list[list[ChatTurn]] = []
    for turn in conversation.turns[_num_system(conversation) :]:
        if not exchanges or (turn.role == "user" and exchanges[-1][-1].role != "user"):
            exchanges.append([])
        exchanges[-1].append(turn)
    return exchanges


def _num_system(conversation: Conversation) -> int:
    turns = conversation.turns
    return next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))


def _without_oldest(conversation: Conversation, num_dropped: int) -> Conversation:
    """The conversation without its oldest exchanges; system turns stay."""
    system = conversation.turns[: _num_system(conversation)]
    exchanges = _exchanges(conversation)[max(num_dropped, 0) :]
    return conversation.with_turns([*system, *(turn for exchange in exchanges for turn in exchange)])


def _cut_question(encoder: Encoder, conversation: Conversation, excess: int) -> Conversation | None:
    """Remove ``excess`` tokens from the front of the user and tool turns of the first exchange, oldest first.

    None where that would cut one of them away.
    """
    turns = list(conversation.turns)
    first, exchanges = _num_system(conversation), _exchanges(conversation)
    for at in range(first, first + len(exchanges[0]) if exchanges else first):
        turn = turns[at]
        if excess > 0 and turn.role in ("user", "tool") and turn.content:
            starts = encoder.plain.character_starts(turn.content)
            num_cut = min(excess, len(starts) - max(_last_word(turn.content, starts), _MIN_QUESTION))
            if num_cut > 0:
                turns[at] = turn._replace(content=turn.content[starts[num_cut] :])
                excess -= num_cut
    return conversation.with_turns(turns) if excess <= 0 else None


def _last_word(text: str, starts: Sequence[int]) -> int:
    """Tokens from the last word of a text (its last 16 letters) to its end; ``starts``: where each token begins."""
    end = next((at for at in reversed(range(len(text))) if text[at].isalnum()), len(text.rstrip()) - 1)
    start = max(end, 0)
    while start > max(end - 15, 0) and text[start - 1].isalnum():
        start -= 1
    return len(starts) - max(bisect_right(starts, start) - 1, 0)
