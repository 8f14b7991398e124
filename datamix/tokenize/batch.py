"""Batches of conversations, and batches of tokens (``records.TOKENS``) out of flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import offsets_from_lengths
from datamix.core.records import TOKENS, WEIGHTS
from datamix.tokenize.conversation import ChatTurn, Conversation
from datamix.tokenize.segments import Layout, TextSegment
from datamix.tokenize.special_tokens import ControlTokens
from datamix.tokenize.tokenizer import FlatIds, PlainEncoder

Reasons = Sequence[str | None]  # why each row cannot be emitted, None where it can


@dataclass(frozen=True)
class TokenRows:
    """Conversations to encode, row for row; of pairs, ``prompts`` with their completions."""

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
        """All text of a row's record: the prompt and each completion."""
        prompt = self.prompts[row]
        sides = [side[row] for side in (self.chosen, self.rejected) if side is not None]
        return [prompt, *(prompt.with_turns(turns) for turns in sides if turns is not None)]


class Encoded(NamedTuple):
    """Encoded rows, empty where they cannot be emitted."""

    flat: FlatIds
    trained: NDArray[np.uint8]  # of each id
    reasons: Sequence[str | None]
    weights: Mapping[int, NDArray[np.float32]]  # of each id of the rows that have any but 1


def sft_batch(
    flat: FlatIds,
    trained: NDArray[np.uint8],
    reasons: Reasons,
    weights: Mapping[int, NDArray[np.float32]] = MappingProxyType({}),
) -> pa.RecordBatch:
    """Tokens of conversations; a row without a trained token is ``no_loss``. ``weights``: of rows that have any but 1.

    The first token of a row is never trained: nothing precedes it to predict it from.
    """
    lengths = np.diff(flat.offsets)
    mask = trained.copy()
    mask[flat.offsets[:-1][lengths > 0]] = 0
    sums = np.add.reduceat(np.append(mask, np.uint8(0)), flat.offsets[:-1], dtype=np.int64)
    num_trained = np.where(lengths > 0, sums, 0)
    reasons = _with_no_loss(reasons, num_trained)
    is_emitted = _is_emitted(reasons)
    mask = mask[np.repeat(is_emitted, lengths)]
    flat = _only_rows(flat, is_emitted)
    weighed = pa.nulls(len(reasons), WEIGHTS)
    if weights:
        rows = enumerate(is_emitted)
        weighed = pa.array([weights.get(row) if emitted else None for row, emitted in rows], WEIGHTS)
    lists = [_id_lists(flat), _lists(flat.offsets, mask, pa.uint8()), weighed]
    return _batch("sft", lists, (np.diff(flat.offsets), np.where(is_emitted, num_trained, 0)), reasons)


def text_batch(flat: FlatIds, reasons: Reasons) -> pa.RecordBatch:
    """Tokens of documents, all trained."""
    return _flat_batch("pretrain", flat, reasons)


def prompt_batch(flat: FlatIds, reasons: Reasons) -> pa.RecordBatch:
    """Tokens of prompts; both length and loss count them all."""
    return _flat_batch("prompt", flat, reasons)


def _flat_batch(kind: str, flat: FlatIds, reasons: Reasons) -> pa.RecordBatch:
    flat = _only_rows(flat, _is_emitted(reasons))
    lengths = np.diff(flat.offsets)
    return _batch(kind, [_id_lists(flat)], (lengths, lengths), reasons)


def pair_batch(flat: FlatIds, reasons: Reasons, is_paired: Sequence[bool]) -> pa.RecordBatch:
    """Tokens of pairs: ``flat`` has three rows a record (prompt, chosen, rejected)."""
    lengths = np.diff(flat.offsets).reshape(-1, 3)
    reasons = _with_no_loss(reasons, lengths[:, 1])
    is_emitted = _is_emitted(reasons)
    flat = _only_rows(flat, np.repeat(is_emitted, 3))
    lengths = np.where(is_emitted[:, None], lengths, 0)
    lists = []
    for side in range(3):
        is_side = np.repeat(np.tile(np.arange(3) == side, len(is_emitted)), lengths.reshape(-1))
        nulls = ~np.array(is_paired, np.bool_) if side == 2 else None
        lists.append(_lists(offsets_from_lengths(lengths[:, side]), flat.ids[is_side], pa.int32(), nulls))
    return _batch("preference", lists, (lengths.sum(axis=1), lengths[:, 1:].sum(axis=1)), reasons)


def refused_batch(kind: str, reasons: Reasons) -> pa.RecordBatch:
    """A batch of rows that cannot be emitted, each with its reason."""
    empty = FlatIds(np.empty(0, np.int32), np.zeros(len(reasons) + 1, np.int64))
    if kind == "sft":
        return sft_batch(empty, np.empty(0, np.uint8), reasons)
    if kind == "preference":
        sides = FlatIds(empty.ids, np.zeros(3 * len(reasons) + 1, np.int64))
        return pair_batch(sides, reasons, [True] * len(reasons))
    return _flat_batch(kind, empty, reasons)


def _with_no_loss(reasons: Reasons, num_trained: NDArray[np.int64]) -> list[str | None]:
    """The reasons, and ``no_loss`` for rows that would train nothing."""
    pairs = zip(reasons, num_trained, strict=True)
    return ["no_loss" if reason is None and not num else reason for reason, num in pairs]


def _is_emitted(reasons: Reasons) -> NDArray[np.bool_]:
    return np.fromiter((reason is None for reason in reasons), np.bool_, len(reasons))


def _only_rows(flat: FlatIds, is_emitted: NDArray[np.bool_]) -> FlatIds:
    """The same rows, those that are not emitted empty."""
    if is_emitted.all():
        return flat
    lengths = np.diff(flat.offsets)
    offsets = offsets_from_lengths(np.where(is_emitted, lengths, 0))
    return FlatIds(flat.ids[np.repeat(is_emitted, lengths)], offsets)


def _id_lists(flat: FlatIds) -> pa.ListArray:
    return _lists(flat.offsets, flat.ids, pa.int32())


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
    """Rows of layouts with their texts, encoded together in one call of the tokenizer."""

    def __init__(self, plain: PlainEncoder, allowed: ControlTokens | None = None) -> None:
        self._plain = plain
        self._allowed = allowed  # control tokens that count as such inside the data's texts too
        self._texts: list[str] = []
        self._begins: list[bool] = []
        self._constants: dict[TextSegment, int] = {}  # the number of each constant text
        self._templates: dict[
            int, tuple[Layout, list[int]]
        ] = {}  # by id of the layout, which keeps the id valid
        self._parts: list[int] = []  # the number of a text, or -1 - id
        self._trained: list[bool] = []
        self._weights: dict[int, list[float]] = {}  # of each part of a row that has any but 1
        self._ends: list[int] = [0]  # of each row, in parts

    def add(self, layout: Layout, texts: Sequence[str]) -> None:
        """Add a row."""
        weights = layout.weights
        if self._allowed is not None:
            counts = []
            for entry, trained in zip(layout.entries, layout.trained, strict=True):
                parts = [-1 - entry] if isinstance(entry, int) else self._split(entry, texts, self._allowed)
                self._parts += parts
                self._trained += [trained] * len(parts)
                counts.append(len(parts))
            weights = weights and tuple(np.repeat(weights, counts).tolist())
        else:
            parts = self._constant_parts(layout).copy()
            for place, segment in layout.slots:
                parts[place] = self._add_text(segment.fill(texts), segment.begins)
            self._parts += parts
            self._trained += layout.trained
        if weights is not None:
            self._weights[len(self._ends) - 1] = list(weights)
        self._ends.append(len(self._parts))

    def add_empty(self, num_rows: int = 1) -> None:
        """Add empty rows."""
        self._ends += [len(self._parts)] * num_rows

    def _split(self, segment: TextSegment, texts: Sequence[str], allowed: ControlTokens) -> list[int]:
        """The parts of a segment, control tokens in its texts included."""
        text, begins = segment.fill(texts), segment.begins
        parts, at = [], 0
        for match in allowed.find(text):
            if match.start > at:
                parts.append(self._add_text(text[at : match.start], begins))
            parts.append(-1 - match.token.id)
            at, begins = match.end, self._plain.restarts_after_control
        if at < len(text):
            parts.append(self._add_text(text[at:], begins))
        return parts

    def _constant_parts(self, layout: Layout) -> list[int]:
        """The parts of a layout, 0 in place of what depends on the row's texts."""
        cached = self._templates.get(id(layout))
        if cached is None:
            parts = list(layout.controls)
            for segment, places in layout.constants:
                if segment not in self._constants:
                    self._constants[segment] = self._add_text(segment.fill(()), segment.begins)
                for place in places:
                    parts[place] = self._constants[segment]
            cached = self._templates[id(layout)] = (layout, parts)
        return cached[1]

    def _add_text(self, text: str, begins: bool) -> int:
        self._texts.append(text)
        self._begins.append(begins)
        return len(self._texts) - 1

    def encode(self) -> tuple[FlatIds, NDArray[np.uint8], dict[int, NDArray[np.float32]]]:
        """The ids of every row, for each id whether it is trained, and of rows with weights that of each id."""
        flat = self._plain.encode(self._texts, self._begins)
        parts = np.array(self._parts, np.int64)
        is_control = parts < 0
        texts = np.where(is_control, 0, parts)
        starts = flat.offsets[texts] if len(self._texts) else np.zeros(len(parts), np.int64)
        lengths = np.diff(flat.offsets)[texts] if len(self._texts) else np.zeros(len(parts), np.int64)
        lengths[is_control] = 1
        starts[is_control] = len(flat.ids) + np.arange(np.count_nonzero(is_control))
        pool = np.concatenate([flat.ids, (-1 - parts[is_control]).astype(np.int32)])
        offsets = offsets_from_lengths(lengths)
        ids = pool[np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])]
        trained = np.repeat(np.array(self._trained, np.uint8), lengths)
        weights = {}
        for row, of_parts in self._weights.items():
            counts = lengths[self._ends[row] : self._ends[row + 1]]
            weights[row] = np.repeat(np.array(of_parts, np.float32), counts)
        return FlatIds(ids, offsets[np.array(self._ends)]), trained, weights
