"""The laws that each emitted row obeys, held against whole batches, and what each row holds, counted from its tensors.

Every law is one comparison of flat arrays under Arrow's list columns, so a batch costs a few passes over its tokens;
a broken law names the first row that breaks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.audit.findings import Check, Findings
from datamix.core.arrays import IGNORE_INDEX, Ragged, offsets_from_lengths
from datamix.core.records import OPTIONAL_COLUMNS, Kind, row_schema

_ROUNDING = 1e-6  # of a float32


@dataclass(frozen=True)
class RowShape:
    """What the manifest says that rows look like."""

    kind: Kind
    packed: bool  # documents of a row are kept apart by positions
    max_length: int | None  # tokens
    vocab_size: int
    weighed: bool = False  # rows have a weight


@dataclass(frozen=True)
class Violation:
    """A law broken by ``num`` values; ``row`` is the first of their rows in the batch."""

    row: int
    num: int
    sentence: str


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
    total = offsets_from_lengths(values)
    sums: NDArray[np.int64] = total[offsets[1:]] - total[offsets[:-1]]
    return sums


def _offsets(column: pa.Array) -> NDArray[np.int64]:
    lengths = pc.list_value_length(column).fill_null(0)
    return offsets_from_lengths(lengths.to_numpy(zero_copy_only=False))


def lists(column: pa.Array) -> Ragged:
    """A list column without nulls below it; a null list counts as empty."""
    return Ragged(column.flatten().to_numpy(zero_copy_only=False), _offsets(column))


def pieces(batch: pa.RecordBatch) -> Pieces:
    """The ``records`` column of a batch, flat."""
    column = batch.column("records")
    flat = column.flatten()
    columns = (flat.field(name).fill_null(-1) for name in ("file", "record", "start", "length"))
    values = (c.to_numpy(zero_copy_only=False).astype(np.int64, copy=False) for c in columns)
    return Pieces(_offsets(column), *values)


def amounts(batch: pa.RecordBatch, kind: Kind) -> Amounts:
    """Records, tokens and loss tokens of each row, counted from its tensors."""
    records = np.diff(_offsets(batch.column("records")))
    if kind in ("pretrain", "sft"):
        labels = lists(batch.column("labels"))
        loss = row_sums(labels.values != IGNORE_INDEX, labels.offsets)
        return Amounts(records, lists(batch.column("input_ids")).lengths, loss)
    prompt = lists(batch.column("prompt_ids")).lengths
    if kind == "prompt":
        return Amounts(records, prompt, prompt)
    names = [n for n in batch.schema.names if n.endswith("completion_ids")]
    answers = np.zeros(batch.num_rows, np.int64)
    for name in names:
        answers += lists(batch.column(name)).lengths
    return Amounts(records, prompt + answers, answers)


def piece_losses(batch: pa.RecordBatch, kind: Kind) -> NDArray[np.int64]:
    """Loss tokens of each piece of each row; a row of the other kinds is one piece."""
    if kind not in ("pretrain", "sft"):
        return amounts(batch, kind).loss_tokens
    trained = lists(batch.column("labels")).values != IGNORE_INDEX
    return row_sums(trained, np.clip(offsets_from_lengths(pieces(batch).length), 0, len(trained)))


def wrong_columns(schema: pa.Schema, shape: RowShape) -> str:
    """What the columns of a shard have that rows of this kind do not, or the other way; "" where they agree."""
    paired = "completion_ids" not in schema.names
    optional = {name for name in OPTIONAL_COLUMNS if name in schema.names} - {"weight"}
    expected = row_schema(
        shape.kind, shape.packed, paired, optional | ({"weight"} if shape.weighed else set())
    )
    for name in expected.names:
        if name not in schema.names:
            return f"lacks the column {name}"
        if schema.field(name).type != expected.field(name).type:
            return f"has the column {name} as {schema.field(name).type}, not {expected.field(name).type}"
    more = [name for name in schema.names if name not in expected.names]
    return f"has a column {more[0]} that rows do not" if more else ""


def broken_laws(batch: pa.RecordBatch, shape: RowShape) -> Iterator[Violation]:
    """Every law of the row format that some row of the batch breaks."""
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
    elif shape.kind == "preference":  # the prompt and the longer completion
        names = [n for n in columns if n.endswith("completion_ids")]
        longest = np.max([lists(batch.column(n)).lengths for n in names], axis=0)
        longest = longest + lists(batch.column("prompt_ids")).lengths
        yield from _rows(longest > (shape.max_length or 1 << 62), f"exceeds {shape.max_length} tokens")
    parts, tokens = pieces(batch), amounts(batch, shape.kind).tokens
    empty = row_sums((parts.length < 1) | (parts.start < 0), parts.offsets)
    yield from _rows(empty > 0, "names a part of a record that holds nothing")
    other = row_sums(parts.length, parts.offsets) != tokens
    yield from _rows(other, "holds another number of tokens than its records add up to")
    if shape.packed:
        sequences = lists(batch.column("seq_lengths"))
        if np.array_equal(sequences.offsets, parts.offsets):
            other = sequences.values != parts.length
            yield from _values(other, sequences, "has seq_lengths other than its records'")
        else:
            other = sequences.lengths != np.diff(parts.offsets)
            yield from _rows(other, "has more or fewer documents than records")


def _sequence_laws(batch: pa.RecordBatch, shape: RowShape) -> Iterator[Violation]:
    ids, labels = lists(batch.column("input_ids")), lists(batch.column("labels"))
    yield from _rows(ids.lengths == 0, "is empty")
    if shape.max_length is not None:
        yield from _rows(ids.lengths > shape.max_length, f"is longer than max_length {shape.max_length:,}")
    uneven = labels.lengths != ids.lengths
    if uneven.any():
        yield from _rows(uneven, "has another number of labels than of input_ids")
        return
    other = (labels.values != IGNORE_INDEX) & (labels.values != ids.values)
    yield from _values(other, labels, "has a label that is neither -100 nor the id at its position")
    begins = np.zeros(len(ids.values) + 1, np.bool_)  # the first token of each row, and of each document
    begins[ids.offsets] = True
    if shape.packed:
        yield from _packed_laws(batch, ids, labels)
        lengths = lists(batch.column("seq_lengths")).values
        begins[np.clip(np.cumsum(lengths, dtype=np.int64), 0, len(ids.values))] = True
    else:
        mask = lists(batch.column("attention_mask"))
        other = mask.lengths != ids.lengths
        yield from _rows(other, "has an attention_mask of another length than input_ids")
        yield from _values(mask.values != 1, mask, "has an attention_mask that is not all ones")
    if shape.kind == "pretrain":
        masked = (labels.values == IGNORE_INDEX) & ~begins[:-1]
        yield from _values(masked, labels, "leaves a token untrained that does not begin a document")


def _packed_laws(batch: pa.RecordBatch, ids: Ragged, labels: Ragged) -> Iterator[Violation]:
    sequences, positions = lists(batch.column("seq_lengths")), lists(batch.column("position_ids"))
    if (sequences.values < 1).any():
        yield from _values(sequences.values < 1, sequences, "has a document without tokens")
        return
    sums = row_sums(sequences.values, sequences.offsets)
    uneven = (sums != ids.lengths) | (positions.lengths != ids.lengths)
    if uneven.any():
        yield from _rows(uneven, "has seq_lengths or position_ids that do not add up to its tokens")
        return
    starts = offsets_from_lengths(sequences.values)[:-1]
    expected = np.arange(len(ids.values)) - np.repeat(starts, sequences.values)
    wrong = positions.values != expected
    yield from _values(wrong, positions, "has position_ids that do not restart where seq_lengths say")
    heads = (expected == 0) & (labels.values != IGNORE_INDEX)
    sentence = "trains the first token of a document, which the one before it would predict"
    yield from _values(heads, labels, sentence)


def _rows(broken: NDArray[np.bool_], sentence: str) -> Iterator[Violation]:
    rows = np.flatnonzero(broken)
    if len(rows):
        yield Violation(int(rows[0]), len(rows), sentence)


def _values(broken: NDArray[np.bool_], of: Ragged, sentence: str) -> Iterator[Violation]:
    places = np.flatnonzero(broken)
    if len(places):
        row, position = row_and_position(of.offsets, int(places[0]))
        yield Violation(row, len(places), f"{sentence} (position {position:,})")


def row_and_position(offsets: NDArray[np.int64], place: int) -> tuple[int, int]:
    """The row of a flat place, and its position in it."""
    row = int(np.searchsorted(offsets, place, side="right")) - 1
    return row, place - int(offsets[row])


@dataclass
class RowWeights:
    """Whether the column ``weight`` makes one average of the loss the other, counted again from the labels.

    A row of n trained tokens weighs m / n for a trainer that averages over tokens, n / m for one that averages over examples;
    m is the mean of n over the rows of train/ that train anything. So each weight implies m, and all must imply the one counted.
    """

    trainer: str  # token | example: what the trainer averages over
    findings: Findings = field(default_factory=lambda: Findings("weights"))
    _num_rows: int = 0  # of train/, that train anything
    _loss_tokens: int = 0
    _least: float = np.inf  # mean that a weight implies
    _most: float = 0.0

    def count(self, loss_tokens: NDArray[np.int64]) -> None:
        """Take rows of train/ into the mean. ``[num_rows]``."""
        self._num_rows += int(np.count_nonzero(loss_tokens))
        self._loss_tokens += int(loss_tokens.sum())

    def add(self, column: pa.Array, loss_tokens: NDArray[np.int64], place: str, first: int) -> None:
        """Note which means the weights of some rows imply; ``[num_rows]`` each."""
        weight = column.to_numpy(zero_copy_only=False).astype(np.float64)
        trains, positive = loss_tokens > 0, np.isfinite(weight) & (weight > 0)
        odd = np.flatnonzero(np.where(trains, ~positive, weight != 0))
        self.findings.add_first(odd, lambda row: f"{place} {first + row:,} weighs {weight[row]:g}")
        weight, tokens = weight[trains & positive], loss_tokens[trains & positive]
        means = weight * tokens if self.trainer == "token" else tokens / weight
        self._least = min(self._least, float(means.min(initial=np.inf)))
        self._most = max(self._most, float(means.max(initial=0)))

    def check(self) -> Check:
        """The verdict, once all rows are counted."""
        mean = self._loss_tokens / max(1, self._num_rows)
        for implied in (self._least, self._most) if self._num_rows else ():
            if not abs(implied - mean) <= _ROUNDING * mean:
                text = f"a row weighs as if rows trained {implied:,.6g} tokens in the mean; it is {mean:,.6g}"
                self.findings.add(text)
        return self.findings.check(f"each follows from the row's trained tokens and their mean, {mean:,.6g}")
