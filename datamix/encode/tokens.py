"""Batches of conversations, and batches of tokens (``records.TOKENS``) out of flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.encode.conversation import Conversation, Turn
from datamix.encode.engine import Flat
from datamix.records import TOKENS

Reasons = Sequence[str | None]


@dataclass(frozen=True)
class Rows:
    """Conversations row for row; of pairs, ``prompts`` with their completions."""

    prompts: list[Conversation]
    chosen: list[list[Turn] | None] | None
    rejected: list[list[Turn] | None] | None
    reasons: list[str | None]  # why a row cannot be emitted
    num_special: int = 0  # rows that hold the text of a control token

    def pairs(self) -> Iterator[tuple[Conversation, list[Turn] | None, list[Turn] | None]]:
        """(prompt, chosen, rejected) of each row."""
        none: list[list[Turn] | None] = [None] * len(self.prompts)
        return zip(self.prompts, self.chosen or none, self.rejected or none, strict=True)

    def all_turns(self, row: int) -> list[Conversation]:
        """Everything the data wrote in a row."""
        prompt = self.prompts[row]
        sides = [side[row] for side in (self.chosen, self.rejected) if side is not None]
        return [prompt, *(prompt.with_turns(turns) for turns in sides if turns is not None)]


def sft_batch(flat: Flat, trained: NDArray[np.uint8], reasons: Reasons) -> pa.RecordBatch:
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


def text_batch(flat: Flat, reasons: Reasons) -> pa.RecordBatch:
    """Tokens of documents, all trained."""
    flat = _only(flat, _kept(reasons))
    lengths = np.diff(flat.offsets)
    return _batch("pretrain", [_lists(flat.offsets, flat.ids, pa.int32())], (lengths, lengths), reasons)


def prompt_batch(flat: Flat, reasons: Reasons) -> pa.RecordBatch:
    """Tokens of prompts; length and loss are the prompt's."""
    flat = _only(flat, _kept(reasons))
    lengths = np.diff(flat.offsets)
    return _batch("prompt", [_lists(flat.offsets, flat.ids, pa.int32())], (lengths, lengths), reasons)


def pair_batch(flat: Flat, reasons: Reasons, is_paired: Sequence[bool]) -> pa.RecordBatch:
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
    empty = Flat(np.empty(0, np.int32), np.zeros(len(reasons) + 1, np.int64))
    if kind == "sft":
        return sft_batch(empty, np.empty(0, np.uint8), reasons)
    if kind == "preference":
        thrice = Flat(empty.ids, np.zeros(3 * len(reasons) + 1, np.int64))
        return pair_batch(thrice, reasons, [True] * len(reasons))
    return prompt_batch(empty, reasons) if kind == "prompt" else text_batch(empty, reasons)


def _kept(reasons: Reasons) -> NDArray[np.bool_]:
    return np.fromiter((reason is None for reason in reasons), np.bool_, len(reasons))


def _only(flat: Flat, keep: NDArray[np.bool_]) -> Flat:
    """The rows not kept emptied."""
    if keep.all():
        return flat
    lengths = np.diff(flat.offsets)
    offsets = np.concatenate([[0], np.cumsum(np.where(keep, lengths, 0))])
    return Flat(flat.ids[np.repeat(keep, lengths)], offsets)


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
