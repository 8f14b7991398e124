"""The laws that each emitted row obeys, held against whole batches.

Every law is one comparison of flat arrays under Arrow's list columns, so a batch costs a few passes over its tokens;
a broken law names the first row that breaks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.arrays import IGNORE_INDEX
from datamix.core.records import Kind


@dataclass(frozen=True)
class Shape:
    """What the manifest says that rows look like."""

    kind: Kind
    packed: bool  # documents of a row are kept apart by positions
    max_length: int | None  # tokens
    vocab_size: int
    weighed: bool = False  # rows have a weight


@dataclass(frozen=True)
class Violation:
    """A law broken by ``num_found`` values; ``row`` is the first of their rows in the batch."""

    row: int
    num_found: int
    sentence: str


@dataclass(frozen=True)
class Lists:
    """A list column as flat values; row r holds ``values[offsets[r]:offsets[r + 1]]``."""

    offsets: NDArray[np.int64]  # [num_rows + 1]
    values: NDArray[Any]  # [num_values]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def rows(self) -> NDArray[np.int64]:
        """The row of each value."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)


@dataclass(frozen=True)
class Pieces:
    """The ``records`` column: which parts of which records each row holds."""

    offsets: NDArray[np.int64]  # [num_rows + 1]
    file: NDArray[np.int64]  # [num_pieces]
    record: NDArray[np.int64]
    start: NDArray[np.int64]  # tokens
    length: NDArray[np.int64]  # tokens

    def rows(self) -> NDArray[np.int64]:
        """The row of each piece."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@dataclass(frozen=True)
class Amounts:
    """How much each row of a batch holds, ``[num_rows]`` each."""

    records: NDArray[np.int64]
    tokens: NDArray[np.int64]
    loss_tokens: NDArray[np.int64]

    def of(self, unit: str) -> NDArray[np.int64]:
        """The amounts in one unit of a recipe."""
        return {"records": self.records, "tokens": self.tokens, "loss_tokens": self.loss_tokens}[unit]


def row_sums(values: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of flat values by row, ``[num_rows]``; flags are counted."""
    total = np.concatenate(([0], np.cumsum(values, dtype=np.int64)))
    sums: NDArray[np.int64] = total[offsets[1:]] - total[offsets[:-1]]
    return sums


def lists(column: pa.Array) -> Lists:
    """A list column without nulls below it, as offsets and values; a null list counts as empty."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return Lists(_offsets(lengths), column.flatten().to_numpy(zero_copy_only=False))


def pieces(batch: pa.RecordBatch) -> Pieces:
    """The ``records`` column of a batch, flat."""
    column = batch.column("records")
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    flat = column.flatten()
    names = ("file", "record", "start", "length")
    values = (
        flat.field(n).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64, copy=False) for n in names
    )
    return Pieces(_offsets(lengths), *values)


def amounts(batch: pa.RecordBatch, kind: Kind) -> Amounts:
    """Records, tokens and loss tokens of each row, counted from its tensors."""
    num_records = pc.list_value_length(batch.column("records")).fill_null(0).to_numpy(zero_copy_only=False)
    records = num_records.astype(np.int64)
    if kind in ("pretrain", "sft"):
        labels = lists(batch.column("labels"))
        trained = np.concatenate(([0], np.cumsum(labels.values != IGNORE_INDEX)))
        loss = trained[labels.offsets[1:]] - trained[labels.offsets[:-1]]
        return Amounts(records, lists(batch.column("input_ids")).lengths, loss)
    prompt = lists(batch.column("prompt_ids")).lengths
    if kind == "prompt":
        return Amounts(records, prompt, prompt)
    answers = np.zeros(batch.num_rows, np.int64)
    for name in ("chosen_completion_ids", "rejected_completion_ids", "completion_ids"):
        if name in batch.schema.names:
            answers += lists(batch.column(name)).lengths
    return Amounts(records, prompt + answers, answers)


def piece_losses(batch: pa.RecordBatch, kind: Kind) -> NDArray[np.int64]:
    """Loss tokens of each piece of each row; a row of the other kinds is one piece."""
    if kind not in ("pretrain", "sft"):
        return amounts(batch, kind).loss_tokens
    trained = np.concatenate(([0], np.cumsum(lists(batch.column("labels")).values != IGNORE_INDEX)))
    ends = np.clip(np.cumsum(pieces(batch).length), 0, len(trained) - 1)
    losses: NDArray[np.int64] = np.diff(trained[np.concatenate(([0], ends))])
    return losses


def broken_laws(batch: pa.RecordBatch, shape: Shape) -> Iterator[Violation]:
    """Every law of section 4 of the contract that some row of the batch breaks."""
    columns = [n for n in batch.schema.names if n.endswith("_ids") and n != "position_ids"]
    for name in (n for n in columns if batch.column(n).flatten().null_count):
        yield Violation(0, 1, f"{name} holds a null")
        return
    for name in columns:
        ids = lists(batch.column(name))
        outside = (ids.values < 0) | (ids.values >= shape.vocab_size)
        yield from _values(outside, ids, f"{name} holds an id outside of 0..{shape.vocab_size - 1}")
    if shape.kind in ("pretrain", "sft"):
        yield from _sequence_laws(batch, shape)
    elif shape.kind == "preference":
        yield from _rows(
            _longest(batch) > (shape.max_length or 1 << 62), f"exceeds {shape.max_length} tokens"
        )
    yield from _piece_laws(batch, shape)


def _sequence_laws(batch: pa.RecordBatch, shape: Shape) -> Iterator[Violation]:
    ids, labels = lists(batch.column("input_ids")), lists(batch.column("labels"))
    yield from _rows(ids.lengths == 0, "is empty")
    if shape.max_length is not None:
        yield from _rows(ids.lengths > shape.max_length, f"is longer than max_length {shape.max_length:,}")
    uneven = list(_rows(labels.lengths != ids.lengths, "has another number of labels than of input_ids"))
    if uneven:
        yield from uneven
        return
    other = (labels.values != IGNORE_INDEX) & (labels.values != ids.values)
    yield from _values(other, labels, "has a label that is neither -100 nor the id at its position")
    if shape.packed:
        yield from _packed_laws(batch, ids, labels)
    else:
        mask = lists(batch.column("attention_mask"))
        yield from _rows(
            mask.lengths != ids.lengths, "has an attention_mask of another length than input_ids"
        )
        yield from _values(mask.values != 1, mask, "has an attention_mask that is not all ones")
    if shape.kind == "pretrain":
        first = _firsts(batch, ids, shape.packed)
        masked = (labels.values == IGNORE_INDEX) & ~first
        yield from _values(masked, labels, "leaves a token untrained that does not begin a document")


def _packed_laws(batch: pa.RecordBatch, ids: Lists, labels: Lists) -> Iterator[Violation]:
    sequences, positions = lists(batch.column("seq_lengths")), lists(batch.column("position_ids"))
    if (sequences.values < 1).any():
        yield from _values(sequences.values < 1, sequences, "has a document without tokens")
        return
    total = np.concatenate(([0], np.cumsum(sequences.values, dtype=np.int64)))
    sums = total[sequences.offsets[1:]] - total[sequences.offsets[:-1]]
    uneven = (sums != ids.lengths) | (positions.lengths != ids.lengths)
    if uneven.any():
        yield from _rows(uneven, "has seq_lengths or position_ids that do not add up to its tokens")
        return
    expected = np.arange(len(ids.values)) - np.repeat(total[:-1], sequences.values)
    wrong = positions.values != expected
    yield from _values(wrong, positions, "has position_ids that do not restart where seq_lengths say")
    heads = (expected == 0) & (labels.values != IGNORE_INDEX)
    yield from _values(
        heads, labels, "trains the first token of a document, which the one before it would predict"
    )


def _piece_laws(batch: pa.RecordBatch, shape: Shape) -> Iterator[Violation]:
    held = pieces(batch)
    bad = (held.length < 1) | (held.start < 0)
    yield from _rows(_any(bad, held.offsets), "names a part of a record that holds nothing")
    total = np.concatenate(([0], np.cumsum(held.length)))
    sums = total[held.offsets[1:]] - total[held.offsets[:-1]]
    yield from _rows(
        sums != amounts(batch, shape.kind).tokens, "holds another number of tokens than its records add up to"
    )
    if shape.packed:
        sequences = lists(batch.column("seq_lengths"))
        same = len(sequences.values) == len(held.length) and np.array_equal(sequences.offsets, held.offsets)
        if not same:
            yield from _rows(
                sequences.lengths != np.diff(held.offsets), "has more or fewer documents than records"
            )
        else:
            yield from _values(
                sequences.values != held.length, sequences, "has seq_lengths other than its records'"
            )


def _longest(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Tokens of the longest sequence of each preference row: the prompt and the longer completion."""
    names = [n for n in batch.schema.names if n.endswith("completion_ids")]
    answers = [lists(batch.column(n)).lengths for n in names]
    longest: NDArray[np.int64] = lists(batch.column("prompt_ids")).lengths + np.max(answers, axis=0)
    return longest


def _firsts(batch: pa.RecordBatch, ids: Lists, packed: bool) -> NDArray[np.bool_]:
    """True at the first token of each row, and of each document of a packed row."""
    first = np.zeros(len(ids.values) + 1, np.bool_)
    first[ids.offsets] = True
    if packed:
        lengths = lists(batch.column("seq_lengths")).values
        first[np.clip(np.cumsum(lengths, dtype=np.int64), 0, len(ids.values))] = True
    return first[:-1]


def _rows(broken: NDArray[np.bool_], sentence: str) -> Iterator[Violation]:
    rows = np.flatnonzero(broken)
    if len(rows):
        yield Violation(int(rows[0]), len(rows), sentence)


def _values(broken: NDArray[np.bool_], of: Lists, sentence: str) -> Iterator[Violation]:
    places = np.flatnonzero(broken)
    if len(places):
        row = int(np.searchsorted(of.offsets, places[0], side="right")) - 1
        where = f"{sentence} (position {places[0] - of.offsets[row]:,})"
        yield Violation(row, len(places), where)


def _any(flags: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether any of a row's flags is set."""
    total = np.concatenate(([0], np.cumsum(flags)))
    found: NDArray[np.bool_] = total[offsets[1:]] > total[offsets[:-1]]
    return found


def _offsets(lengths: NDArray[Any]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
