"""Make over-long records fit: whole turns dropped from the front of history, else the prompt cut, else refused.

A conversation loses its oldest exchanges first (the system turn stays) and is rendered anew, so that it is a
conversation the template could have written. If the last exchange alone is too long, the text of its question is cut
from the front: what is nearest to the answer stays. An answer is never cut. Cost: one more encoding of the records
that are too long; their shorter forms are put together from texts whose tokens are remembered.
"""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.records import RecordKind
from datamix.tokenize.batch import TokenRows, pair_batch, reasoned
from datamix.tokenize.conversation import ChatTurn, Conversation
from datamix.tokenize.encoder import Encoder
from datamix.tokenize.tokenizer import CachedEncoder, FlatIds

# Tokens more than the excess that are cut in turn: cutting a text may change its first tokens.
_SLACK = (0, 8, 64, 512)


def fit(
    encoder: Encoder, batch: pa.RecordBatch, record_kind: RecordKind, max_length: int, overlong: str
) -> pa.RecordBatch:
    """Tokens of records longer than ``max_length`` tokens, made to fit or refused as ``overlong``; row for row."""
    kind = encoder.spec.kind
    if kind == "sft" and overlong in ("drop_turns", "truncate"):
        return fit_rows(encoder, encoder.rows(batch, record_kind), max_length, overlong)
    if kind == "preference":
        tokens = encoder.encode_rows(encoder.rows(batch, record_kind), Counter())
        return fit_pairs(tokens, max_length, overlong == "truncate_prompt")
    return reasoned(kind, ["overlong"] * batch.num_rows)


def fit_rows(encoder: Encoder, rows: TokenRows, max_length: int, overlong: str) -> pa.RecordBatch:
    """Conversations of at most ``max_length`` tokens; ``drop_turns``, or ``truncate`` which cuts prompts first."""
    fitter = _Fitter(encoder, rows.reasons, max_length)
    if overlong == "truncate":
        fitter.cut(rows.prompts)
    fitter.drop_exchanges(rows.prompts)
    fitter.cut([_without(one, len(_exchanges(one)) - 1) for one in rows.prompts])
    reasons = [
        reason or ("overlong" if one is None else None)
        for reason, one in zip(rows.reasons, fitter.fitted, strict=True)
    ]
    tokens = fitter.encode([one or Conversation((), None, None) for one in fitter.fitted], reasons)
    return _marked(tokens)


def fit_pairs(tokens: pa.RecordBatch, max_length: int, cut_prompts: bool) -> pa.RecordBatch:
    """Pairs of which prompt and longer completion fit: the prompt cut from the left, the same for both sides.

    Without ``cut_prompts``, and where a completion leaves no room for a prompt, a pair that is too long is refused.
    """
    prompts, chosen, rejected = (tokens.column(name) for name in ("prompt", "chosen", "rejected"))
    sides = [_lengths(column) for column in (prompts, chosen, rejected)]
    room = max_length - np.maximum(sides[1], sides[2])
    least = np.ones_like(room) if cut_prompts else sides[0]
    reasons = [
        reason or ("overlong" if left < needed else None)
        for reason, left, needed in zip(tokens.column("reason").to_pylist(), room, least, strict=True)
    ]
    cut = np.maximum(sides[0] - np.maximum(room, 0), 0)
    lengths = np.stack([sides[0] - cut, sides[1], sides[2]], axis=1)
    offsets = np.concatenate([[0], np.cumsum(lengths.reshape(-1))])
    ids = np.empty(int(offsets[-1]), np.int32)
    for row in range(tokens.num_rows):
        for side, column in enumerate((prompts, chosen, rejected)):
            if lengths[row, side]:
                start = int(cut[row]) if side == 0 else 0
                at = 3 * row + side
                ids[offsets[at] : offsets[at + 1]] = column[row].values.to_numpy()[start:]
    fitted = pair_batch(FlatIds(ids, offsets), reasons, rejected.is_valid().to_pylist())
    return _marked(fitted, cut > 0)


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
        """Drop as few of the oldest exchanges as it takes, found by bisection over all rows at once."""
        pending = self._pending()
        low = dict.fromkeys(pending, 1)
        high = {
            row: len(_exchanges(conversations[row])) for row in pending
        }  # that many dropped: none left, no fit
        while active := [row for row in pending if low[row] < high[row]]:
            middle = {row: (low[row] + high[row]) // 2 for row in active}
            candidates = [_without(conversations[row], middle[row]) for row in active]
            for row, one, fits in zip(active, candidates, self._fit(candidates), strict=True):
                if fits:
                    high[row] = middle[row]
                    self.fitted[row] = one
                else:
                    low[row] = middle[row] + 1

    def cut(self, conversations: list[Conversation]) -> None:
        """Cut the texts of prompts from the front by what is too much, oldest first."""
        for slack in _SLACK:
            pending = self._pending()
            if not pending:
                return
            lengths = self._measure([conversations[row] for row in pending])
            candidates = [
                _cut(self._encoder, conversations[row], max(length - self._max_length, 0) + slack)
                for row, length in zip(pending, lengths, strict=True)
            ]
            for row, one, fits in zip(pending, candidates, self._fit(candidates), strict=True):
                if fits:
                    self.fitted[row] = one

    def _pending(self) -> list[int]:
        return [
            row
            for row, (one, reason) in enumerate(zip(self.fitted, self._reasons, strict=True))
            if one is None and reason is None
        ]

    def _measure(self, conversations: list[Conversation]) -> list[int]:
        tokens = self.encode(conversations, [None] * len(conversations))
        return [int(length) for length in tokens.column("length").to_pylist()]

    def _fit(self, conversations: list[Conversation]) -> list[bool]:
        tokens = self.encode(conversations, [None] * len(conversations))
        columns = (tokens.column("length").to_pylist(), tokens.column("reason").to_pylist())
        return [
            reason is None and 0 < length <= self._max_length for length, reason in zip(*columns, strict=True)
        ]


def _exchanges(one: Conversation) -> list[list[ChatTurn]]:
    """The turns after the leading system turns, cut before each user turn that follows an answer."""
    parts: list[list[ChatTurn]] = []
    for turn in one.turns[_num_system(one) :]:
        if not parts or (turn.role == "user" and parts[-1][-1].role != "user"):
            parts.append([])
        parts[-1].append(turn)
    return parts


def _num_system(one: Conversation) -> int:
    return next((at for at, turn in enumerate(one.turns) if turn.role != "system"), len(one.turns))


def _without(one: Conversation, num_dropped: int) -> Conversation:
    """The conversation without its oldest exchanges; system turns stay."""
    kept = _exchanges(one)[max(num_dropped, 0) :]
    return one.with_turns([*one.turns[: _num_system(one)], *(turn for part in kept for turn in part)])


def _cut(encoder: Encoder, one: Conversation, excess: int) -> Conversation:
    """Take ``excess`` tokens from the front of what users and tools said, oldest first, a token at least staying."""
    turns = []
    for turn in one.turns:
        if excess > 0 and turn.role in ("user", "tool") and turn.content:
            starts = encoder.plain.character_starts(turn.content)
            num_cut = min(excess, len(starts) - 1)
            if num_cut > 0:
                turn = turn._replace(content=turn.content[starts[num_cut] :])
                excess -= num_cut
        turns.append(turn)
    return one.with_turns(turns)


def _lengths(column: pa.ListArray) -> NDArray[np.int64]:
    return np.array([length or 0 for length in column.value_lengths().to_pylist()], np.int64)


def _marked(tokens: pa.RecordBatch, is_cut: NDArray[np.bool_] | None = None) -> pa.RecordBatch:
    """Of the rows that are left, those that were cut (default: all) are truncated ones."""
    left = tokens.column("reason").is_null().to_numpy(zero_copy_only=False)
    truncated = pa.array(left if is_cut is None else left & is_cut, pa.bool_())
    place = tokens.schema.get_field_index("truncated")
    return tokens.set_column(place, tokens.schema.field(place), truncated)
