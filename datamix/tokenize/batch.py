"""Batches of conversations, and batches of tokens (``records.TOKENS``) out of flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.records import TOKENS
from datamix.tokenize.conversation import ChatTurn, Conversation
from datamix.tokenize.segments import Layout, TextSegment
from datamix.tokenize.special_tokens import ControlTokens
from datamix.tokenize.tokenizer import FlatIds, PlainEncoder

Reasons = Sequence[str | None]


@dataclass(frozen=True)
class TokenRows:
    """Conversations row for row; of pairs, ``prompts`` with their completions."""

    prompts: list[Conversation]
    chosen: list[list[ChatTurn] | None] | None
    rejected: list[list[ChatTurn] | None] | None
    reasons: list[str | None]  # why a row cannot be emitted
    num_special: int = 0  # rows that hold the text of a control token

    def pairs(self) -> Iterator[tuple[Conversation, list[ChatTurn] | None, list[ChatTurn] | None]]:
        """(prompt, chosen, rejected) of each row."""
        none: list[list[ChatTurn] | None] = [None] * len(self.prompts)
        return zip(self.prompts, self.chosen or none, self.rejected or none, strict=True)

    def all_turns(self, row: int) -> list[Conversation]:
        """Everything the data wrote in a row."""
        prompt = self.prompts[row]
        sides = [side[row] for side in (self.chosen, self.rejected) if side is not None]
        return [prompt, *(prompt.with_turns(turns) for turns in sides if turns is not None)]


def sft_batch(flat: FlatIds, trained: NDArray[np.uint8], reasons: Reasons) -> pa.RecordBatch:
    """Tokens of conversations: the first token is never trained; a row without a trained token is ``no_loss``."""
    mask = trained.copy()
    starts = flat.offsets[:-1][np.diff(flat.offsets) > 0]
    mask[starts] = 0
    loss = _sums(mask, flat.offsets)
    reasons = [
        "no_loss" if reason is None and not num else reason for reason, num in zip(reasons, loss, strict=True)
    ]
    keep = _kept(reasons)
    mask = mask[np.repeat(keep, np.diff(flat.offsets))]
    flat = _only(flat, keep)
    lists = [_lists(flat.offsets, flat.ids, pa.int32()), _lists(flat.offsets, mask, pa.uint8())]
    return _batch("sft", lists, (np.diff(flat.offsets), np.where(keep, loss, 0)), reasons)


def text_batch(flat: FlatIds, reasons: Reasons) -> pa.RecordBatch:
    """Tokens of documents, all trained."""
    flat = _only(flat, _kept(reasons))
    lengths = np.diff(flat.offsets)
    return _batch("pretrain", [_lists(flat.offsets, flat.ids, pa.int32())], (lengths, lengths), reasons)


def prompt_batch(flat: FlatIds, reasons: Reasons) -> pa.RecordBatch:
    """Tokens of prompts; length and loss are the prompt's."""
    flat = _only(flat, _kept(reasons))
    lengths = np.diff(flat.offsets)
    return _batch("prompt", [_lists(flat.offsets, flat.ids, pa.int32())], (lengths, lengths), reasons)


def pair_batch(flat: FlatIds, reasons: Reasons, is_paired: Sequence[bool]) -> pa.RecordBatch:
    """Tokens of pairs: ``flat`` has three rows a record (prompt, chosen, rejected)."""
    lengths = np.diff(flat.offsets).reshape(-1, 3)
    reasons = [
        "no_loss" if reason is None and not num else reason
        for reason, num in zip(reasons, lengths[:, 1], strict=True)
    ]
    keep = _kept(reasons)
    flat = _only(flat, np.repeat(keep, 3))
    lengths = np.where(keep[:, None], lengths, 0)
    lists = []
    for side in range(3):
        offsets = np.concatenate([[0], np.cumsum(lengths[:, side])])
        is_side = np.repeat(np.tile(np.arange(3) == side, len(keep)), lengths.reshape(-1))
        nulls = ~np.array(is_paired, np.bool_) if side == 2 else None
        lists.append(_lists(offsets, flat.ids[is_side], pa.int32(), nulls))
    return _batch("preference", lists, (lengths.sum(axis=1), lengths[:, 1:].sum(axis=1)), reasons)


def reasoned(kind: str, reasons: Reasons) -> pa.RecordBatch:
    """A batch of rows that cannot be emitted, each with its reason."""
    empty = FlatIds(np.empty(0, np.int32), np.zeros(len(reasons) + 1, np.int64))
    if kind == "sft":
        return sft_batch(empty, np.empty(0, np.uint8), reasons)
    if kind == "preference":
        thrice = FlatIds(empty.ids, np.zeros(3 * len(reasons) + 1, np.int64))
        return pair_batch(thrice, reasons, [True] * len(reasons))
    return prompt_batch(empty, reasons) if kind == "prompt" else text_batch(empty, reasons)


def _kept(reasons: Reasons) -> NDArray[np.bool_]:
    return np.fromiter((reason is None for reason in reasons), np.bool_, len(reasons))


def _only(flat: FlatIds, keep: NDArray[np.bool_]) -> FlatIds:
    """The rows not kept emptied."""
    if keep.all():
        return flat
    lengths = np.diff(flat.offsets)
    offsets = np.concatenate([[0], np.cumsum(np.where(keep, lengths, 0))])
    return FlatIds(flat.ids[np.repeat(keep, lengths)], offsets)


def _sums(values: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each stretch ``values[offsets[i]:offsets[i + 1]]`` its sum; of an empty one 0."""
    sums = np.add.reduceat(np.append(values, np.uint8(0)), offsets[:-1], dtype=np.int64)
    return np.where(np.diff(offsets) > 0, sums, 0)


def _lists(
    offsets: NDArray[np.int64],
    values: NDArray[Any],
    kind: pa.DataType,
    nulls: NDArray[np.bool_] | None = None,
) -> pa.ListArray:
    mask = None if nulls is None or not nulls.any() else pa.array(nulls)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values, kind), mask=mask)


def _batch(
    kind: str, lists: list[pa.Array], lengths: tuple[NDArray[np.int64], NDArray[np.int64]], reasons: Reasons
) -> pa.RecordBatch:
    columns = [
        *lists,
        pa.array(lengths[0].astype(np.int32)),
        pa.array(lengths[1].astype(np.int32)),
        pa.array(reasons, pa.string()),
        pa.array(np.zeros(len(reasons), np.bool_)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TOKENS[kind])


class Assembly:
    """A batch of layouts with their texts, to be encoded together."""

    def __init__(self, plain: PlainEncoder, allowed: ControlTokens | None = None) -> None:
        self._plain = plain
        self._allowed = allowed  # control tokens that count as such inside the data's texts too
        self._texts: list[str] = []
        self._begins: list[bool] = []
        self._constants: dict[TextSegment, int] = {}
        self._resolved: dict[int, tuple[Layout, list[int]]] = {}
        self._parts: list[int] = []  # a text's number, or -1 - id
        self._trained: list[bool] = []
        self._ends: list[int] = [0]

    def add(self, layout: Layout, texts: Sequence[str]) -> None:
        """Lay out one more row."""
        if self._allowed is not None:
            self._add_allowing(layout, texts, self._allowed)
        else:
            parts = self._resolve(layout).copy()
            for place, stretch in layout.slots:
                parts[place] = self._text(stretch.fill(texts), stretch.begins)
            self._parts += parts
            self._trained += layout.trained
        self._ends.append(len(self._parts))

    def add_nothing(self) -> None:
        """An empty row."""
        self._ends.append(len(self._parts))

    def _add_allowing(self, layout: Layout, texts: Sequence[str], allowed: ControlTokens) -> None:
        for entry, trained in zip(layout.entries, layout.trained, strict=True):
            if isinstance(entry, int):
                parts = [-1 - entry]
            else:
                parts = self._split(entry.fill(texts), entry.begins, allowed)
            self._parts += parts
            self._trained += [trained] * len(parts)

    def _split(self, text: str, begins: bool, allowed: ControlTokens) -> list[int]:
        parts, at = [], 0
        for found in allowed.find(text):
            if found.start > at:
                parts.append(self._text(text[at : found.start], begins))
            parts.append(-1 - found.token.id)
            at, begins = found.end, self._plain.restarts_after_control
        if at < len(text):
            parts.append(self._text(text[at:], begins))
        return parts

    def _resolve(self, layout: Layout) -> list[int]:
        known = self._resolved.get(id(layout))
        if known is None:
            parts = [
                -1 - entry if isinstance(entry, int) else self._constant(entry) for entry in layout.entries
            ]
            known = self._resolved[id(layout)] = (layout, parts)  # holding the layout keeps its id its own
        return known[1]

    def _constant(self, stretch: TextSegment) -> int:
        if not stretch.is_constant:
            return 0
        found = self._constants.get(stretch)
        if found is None:
            found = self._constants[stretch] = self._text(stretch.fill(()), stretch.begins)
        return found

    def _text(self, text: str, begins: bool) -> int:
        self._texts.append(text)
        self._begins.append(begins)
        return len(self._texts) - 1

    def encode(self) -> tuple[FlatIds, NDArray[np.uint8]]:
        """The ids of every row, and for each id whether it is trained."""
        flat = self._plain.encode(self._texts, self._begins)
        parts = np.array(self._parts, np.int64)
        is_control = parts < 0
        texts = np.where(is_control, 0, parts)
        starts = flat.offsets[texts] if len(self._texts) else np.zeros(len(parts), np.int64)
        lengths = np.diff(flat.offsets)[texts] if len(self._texts) else np.zeros(len(parts), np.int64)
        lengths[is_control] = 1
        starts[is_control] = len(flat.ids) + np.arange(np.count_nonzero(is_control))
        pool = np.concatenate([flat.ids, (-1 - parts[is_control]).astype(np.int32)])
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        ids = pool[np.repeat(starts - (ends - lengths), lengths) + np.arange(total)]
        trained = np.repeat(np.array(self._trained, np.uint8), lengths)
        offsets = np.concatenate([[0], ends])[np.array(self._ends)]
        return FlatIds(ids, offsets.astype(np.int64)), trained
