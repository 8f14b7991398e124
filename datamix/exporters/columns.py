"""Columns of rows as numpy and back: rows cut anew, ids in the dtype of a vocabulary, and the columns that trainers expect.

Functions of a batch are pure, ``[num_rows]`` in and out (``documents``: one row a document). Views where Arrow allows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import IGNORE_INDEX, Ragged, list_column, offsets_from_lengths, ragged
from datamix.core.errors import DataError


def piece_lengths(batch: pa.RecordBatch) -> Ragged:
    """The tokens of each piece of each row."""
    lists = batch.column("records")
    lengths = lists.values.field("length").to_numpy(zero_copy_only=True)
    return Ragged(lengths, lists.offsets.to_numpy().astype(np.int64, copy=False))


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 where every id fits, else uint32; both little-endian."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def as_tokens(ids: NDArray[np.generic], dtype: np.dtype[Any]) -> NDArray[np.generic]:
    """``ids`` in ``dtype``, nothing cut off. Raises DataError where an id does not fit."""
    # a negative id is past every limit when it is seen as unsigned: one pass finds both
    unsigned = ids.view(f"<u{ids.dtype.itemsize}")
    signed_limit = (1 << 8 * ids.dtype.itemsize - 1) - 1
    if len(ids) and int(unsigned.max()) > min(int(np.iinfo(dtype).max), signed_limit):
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise DataError(
            f"token id {wrong} does not fit {dtype.name}, the dtype for the "
            "tokenizer's stated vocabulary; the rows were made with another tokenizer than the one beside them"
        )
    return unsigned.view(dtype) if unsigned.itemsize == dtype.itemsize else unsigned.astype(dtype)


def rechunk(batches: Iterable[pa.RecordBatch], num_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly ``num_rows`` (the last may be smaller), each in one chunk.

    However the rows came cut, the tables are the same: files cut by them have the same bytes. Each is one compact copy:
    of a slice, Arrow's writers may put more of its buffers on disk than the slice.
    """
    for group in regroup(batches, num_rows):
        empty = group[0].slice(0, 0)
        columns = [
            pa.concat_arrays([*(batch.column(i) for batch in group), empty.column(i)])
            for i in range(empty.num_columns)
        ]
        yield pa.Table.from_arrays(columns, schema=empty.schema)


def regroup(batches: Iterable[pa.RecordBatch], num_rows: int) -> Iterator[list[pa.RecordBatch]]:
    """The same rows in lists of slices that hold exactly ``num_rows`` together (the last may hold fewer)."""
    waiting: list[pa.RecordBatch] = []
    held = 0
    for batch in batches:
        start = 0
        while held + len(batch) - start >= num_rows:
            stop = start + num_rows - held
            yield [*waiting, batch.slice(start, stop - start)]
            waiting, held, start = [], 0, stop
        if start < len(batch):
            waiting.append(batch.slice(start))
            held += len(batch) - start
    if held:
        yield waiting


def first_schema(
    batches: Iterable[pa.RecordBatch], empty: pa.Schema
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema of the rows that come (``empty`` where none does) and the rows in it.

    Metadata is dropped and the elements of lists are called ``item``: Parquet calls them ``element``, and the same rows
    must be written alike whether they come from a build or from its files.
    """
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        return empty, rest
    schema = pa.schema([pa.field(field.name, _plain(field.type)) for field in first.schema])
    return schema, (_in_schema(batch, schema) for batch in chain([first], rest))


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(kind.field(i).name, _plain(kind.field(i).type)) for i in range(kind.num_fields)])
    return kind


def _in_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch cast, with zeros under the nulls of number columns: what is there is undefined, and would reach the file."""
    columns = [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)]
    for i, column in enumerate(columns):
        if pa.types.is_floating(column.type) and column.null_count:
            nulls = column.is_null().to_numpy(zero_copy_only=False)
            columns[i] = pa.array(column.fill_null(0.0).to_numpy(), column.type, mask=nulls)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def select(*names: str) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """Only these columns of a batch."""
    return lambda batch: batch.select(list(names))


def documents(batch: pa.RecordBatch) -> pa.RecordBatch:
    """``input_ids``, ``attention_mask``, ``labels``: packed rows cut into their documents, others as they are."""
    ids, labels = ragged(batch, "input_ids"), ragged(batch, "labels")
    lengths = ids.lengths
    if "seq_lengths" in batch.schema.names:
        lengths = ragged(batch, "seq_lengths").flat.astype(np.int64)
    return pa.RecordBatch.from_pydict(
        {
            "input_ids": list_column(ids.flat, lengths),
            "attention_mask": list_column(np.ones(len(ids.flat), np.int8), lengths),
            "labels": list_column(labels.flat, lengths),
        }
    )


def completion(batch: pa.RecordBatch, column: str, prefix: str) -> dict[str, pa.Array]:
    """``{prefix}input_ids``, ``attention_mask``, ``labels`` of prompt and completion, the prompt's labels ignored."""
    prompt, answer = ragged(batch, "prompt_ids"), ragged(batch, column)
    lengths = prompt.lengths + answer.lengths
    begin = offsets_from_lengths(lengths)[:-1]
    ids = np.empty(int(lengths.sum()), prompt.values.dtype)
    ids[ranges(begin, prompt.lengths)] = prompt.flat
    labels = np.full(len(ids), IGNORE_INDEX, np.int32)
    answers = ranges(begin + prompt.lengths, answer.lengths)
    ids[answers] = labels[answers] = answer.flat
    return {
        f"{prefix}input_ids": list_column(ids, lengths),
        f"{prefix}attention_mask": list_column(np.ones(len(ids), np.int8), lengths),
        f"{prefix}labels": list_column(labels, lengths),
    }


def pairs(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    """``chosen_*`` and ``rejected_*``: each completion with its prompt before it."""
    return completion(batch, "chosen_completion_ids", "chosen_") | completion(
        batch, "rejected_completion_ids", "rejected_"
    )


def documents_or_pairs(batch: pa.RecordBatch) -> pa.RecordBatch:
    """What trains without another step: pairs joined with their prompts, or documents."""
    if "chosen_completion_ids" in batch.schema.names:
        return pa.RecordBatch.from_pydict(pairs(batch))
    return documents(batch)


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """``starts[i] .. starts[i] + lengths[i]`` for all i, end to end."""
    ends = np.cumsum(lengths)
    within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    return np.repeat(starts, lengths) + within
