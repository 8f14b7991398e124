"""Make over-long records fit: drop the oldest turns, else cut the prompt, else refuse the record.

A conversation loses its oldest exchanges first (the system turn stays) and is rendered anew, so that it is a
conversation the template could have written. If the last exchange alone is too long, the text of its question
is cut from the front, so that the part next to the answer stays. An answer is never cut. Cost: one more
encoding of the records that are too long; texts that their shorter forms share are encoded once.
"""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import offsets_from_lengths
from datamix.core.records import RecordKind
from datamix.tokenize.batch import TokenRows, pair_batch, refused_batch
from datamix.tokenize.conversation import ChatTurn, Conversation
from datamix.tokenize.encoder import Encoder
from datamix.tokenize.tokenizer import CachedEncoder, FlatIds

# Tokens more than the excess that are cut in turn: cutting a text may change its first tokens.
_SLACK = (0, 8, 64, 512)


def fit(
    encoder: Encoder, batch: pa.RecordBatch, record_kind: RecordKind, max_length: int, overlong: str
) -> pa.RecordBatch:
    """Tokens of records longer than ``max_length``, made to fit or refused as ``overlong``, row for row."""
    kind = encoder.spec.kind
    if kind == "sft" and overlong in ("drop_turns", "truncate"):
        return fit_rows(encoder, encoder.rows(batch, record_kind), max_length, overlong)
    if kind == "preference":
        tokens = encoder.encode_rows(encoder.rows(batch, record_kind), Counter())
        return fit_pairs(tokens, max_length, overlong == "truncate_prompt")
    return refused_batch(kind, ["overlong"] * batch.num_rows)


def fit_rows(encoder: Encoder, rows: TokenRows, max_length: int, overlong: str) -> pa.RecordBatch:
    """Conversations of at most ``max_length`` tokens; ``overlong`` is ``drop_turns`` or ``truncate``."""
    fitter = _Fitter(encoder, rows.reasons, max_length)
    if overlong == "truncate":  # prompts are cut before turns are dropped
        fitter.cut(rows.prompts)
    fitter.drop_exchanges(rows.prompts)
    fitter.cut([_without_oldest(prompt, len(_exchanges(prompt)) - 1) for prompt in rows.prompts])
    reasons = [
        reason or ("overlong" if fitted is None else None)
        for reason, fitted in zip(rows.reasons, fitter.fitted, strict=True)
    ]
    tokens = fitter.encode([fitted or Conversation((), None, None) for fitted in fitter.fitted], reasons)
    return _mark_truncated(tokens)


def fit_pairs(tokens: pa.RecordBatch, max_length: int, cut_prompts: bool) -> pa.RecordBatch:
    """Pairs whose prompt and longer completion fit: the prompt is cut from the left, the same for both sides.

    Without ``cut_prompts``, and where a completion leaves no room for a prompt, a pair that is too long is
    refused.
    """
    prompts, chosen, rejected = (tokens.column(name) for name in ("prompt", "chosen", "rejected"))
    sides = [
        np.array([length or 0 for length in column.value_lengths().to_pylist()], np.int64)
        for column in (prompts, chosen, rejected)
    ]
    room = max_length - np.maximum(sides[1], sides[2])
    min_room = np.ones_like(room) if cut_prompts else sides[0]
    reasons = [
        reason or ("overlong" if is_short else None)
        for reason, is_short in zip(tokens.column("reason").to_pylist(), room < min_room, strict=True)
    ]
    cut = np.maximum(sides[0] - np.maximum(room, 0), 0)
    lengths = np.stack([sides[0] - cut, sides[1], sides[2]], axis=1)
    offsets = offsets_from_lengths(lengths.reshape(-1))
    ids = np.empty(int(offsets[-1]), np.int32)
    for row in range(tokens.num_rows):
        for side, column in enumerate((prompts, chosen, rejected)):
            if lengths[row, side]:
                start = int(cut[row]) if side == 0 else 0
                at = 3 * row + side
                ids[offsets[at] : offsets[at + 1]] = column[row].values.to_numpy()[start:]
    fitted = pair_batch(FlatIds(ids, offsets), reasons, rejected.is_valid().to_pylist())
    return _mark_truncated(fitted, cut > 0)


class _Fitter:
    """Tries shorter forms of conversations until they fit."""

    def __init__(self, encoder: Encoder, reasons: list[str | None], max_length: int) -> None:
        self._encoder = copy.copy(encoder)
        self._encoder.plain = CachedEncoder(encoder.plain)
        self._reasons = reasons
        self._max_length = max_length
        self.fitted: list[Conversation | None] = [None] * len(reasons)

    def encode(self, conversations: list[Conversation], reasons: list[str | None]) -> pa.RecordBatch:
        return self._encoder.encode_rows(TokenRows(conversations, None, None, reasons), Counter())

    def drop_exchanges(self, conversations: list[Conversation]) -> None:
        """Drop as few of the oldest exchanges as needed, by bisection over all rows at once."""
        pending = self._pending()
        low = dict.fromkeys(pending, 1)
        high = {row: len(_exchanges(conversations[row])) for row in pending}  # all dropped: nothing fits
        while active := [row for row in pending if low[row] < high[row]]:
            middle = {row: (low[row] + high[row]) // 2 for row in active}
            candidates = [_without_oldest(conversations[row], middle[row]) for row in active]
            for row, candidate, fits in zip(active, candidates, self._fit(candidates), strict=True):
                if fits:
                    high[row] = middle[row]
                    self.fitted[row] = candidate
                else:
                    low[row] = middle[row] + 1

    def cut(self, conversations: list[Conversation]) -> None:
        """Cut the texts of prompts from the front by the excess, oldest first."""
        for slack in _SLACK:
            pending = self._pending()
            if not pending:
                return
            whole = [conversations[row] for row in pending]
            lengths = self.encode(whole, [None] * len(whole)).column("length").to_pylist()
            candidates = [
                _cut_prompt(self._encoder, conversation, max(length - self._max_length, 0) + slack)
                for conversation, length in zip(whole, lengths, strict=True)
            ]
            for row, candidate, fits in zip(pending, candidates, self._fit(candidates), strict=True):
                if fits:
                    self.fitted[row] = candidate

    def _pending(self) -> list[int]:
        return [
            row
            for row, (fitted, reason) in enumerate(zip(self.fitted, self._reasons, strict=True))
            if fitted is None and reason is None
        ]

    def _fit(self, conversations: list[Conversation]) -> list[bool]:
        tokens = self.encode(conversations, [None] * len(conversations))
        columns = (tokens.column("length").to_pylist(), tokens.column("reason").to_pylist())
        return [
            reason is None and 0 < length <= self._max_length for length, reason in zip(*columns, strict=True)
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


def _cut_prompt(encoder: Encoder, conversation: Conversation, excess: int) -> Conversation:
    """Remove ``excess`` tokens from the front of user and tool turns, oldest first; each keeps a token."""
    turns = []
    for turn in conversation.turns:
        if excess > 0 and turn.role in ("user", "tool") and turn.content:
            starts = encoder.plain.character_starts(turn.content)
            num_cut = min(excess, len(starts) - 1)
            if num_cut > 0:
                turn = turn._replace(content=turn.content[starts[num_cut] :])
                excess -= num_cut
        turns.append(turn)
    return conversation.with_turns(turns)


def _mark_truncated(tokens: pa.RecordBatch, is_cut: NDArray[np.bool_] | None = None) -> pa.RecordBatch:
    """Set ``truncated`` on the emitted rows that were cut (default: all of them)."""
    is_emitted = tokens.column("reason").is_null().to_numpy(zero_copy_only=False)
    truncated = pa.array(is_emitted if is_cut is None else is_emitted & is_cut, pa.bool_())
    place = tokens.schema.get_field_index("truncated")
    return tokens.set_column(place, tokens.schema.field(place), truncated)
