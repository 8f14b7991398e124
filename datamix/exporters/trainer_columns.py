"""Rows in the columns that trainers expect: plain, cut into documents, or pairs joined with their prompt.

Each is a pure function of a batch, ``[num_rows]`` in and out (``documents``: one row a document).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import IGNORE_INDEX, Ragged, list_column, offsets_from_lengths, ragged


def select(*names: str) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """Only these columns of a batch."""

    def convert(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.select(list(names))

    return convert


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


def joined(first: Ragged, second: Ragged) -> Ragged:
    """Row by row, ``first`` and then ``second``."""
    lengths = first.lengths + second.lengths
    offsets = offsets_from_lengths(lengths)
    values = np.empty(int(offsets[-1]), first.values.dtype)
    values[ranges(offsets[:-1], first.lengths)] = first.flat
    values[ranges(offsets[:-1] + first.lengths, second.lengths)] = second.flat
    return Ragged(values, offsets)


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """``starts[i] .. starts[i] + lengths[i]`` for all i, end to end."""
    ends = np.cumsum(lengths)
    within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    return np.repeat(starts, lengths) + within


def masked(prompt: Ragged) -> Ragged:
    """As many ignored labels as the prompt has tokens."""
    return Ragged(np.full(len(prompt.flat), IGNORE_INDEX, np.int32), prompt.offsets - prompt.offsets[0])


def completion(batch: pa.RecordBatch, column: str, prefix: str) -> dict[str, pa.Array]:
    """``{prefix}input_ids``, ``attention_mask``, ``labels`` of prompt and completion, the prompt's labels ignored."""
    prompt, answer = ragged(batch, "prompt_ids"), ragged(batch, column)
    ids, labels = joined(prompt, answer), joined(masked(prompt), answer)
    return {
        f"{prefix}input_ids": list_column(ids.flat, ids.lengths),
        f"{prefix}attention_mask": list_column(np.ones(len(ids.flat), np.int8), ids.lengths),
        f"{prefix}labels": list_column(labels.flat, ids.lengths),
    }


def pairs(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    """``chosen_*`` and ``rejected_*``: each completion with its prompt before it."""
    return completion(batch, "chosen_completion_ids", "chosen_") | completion(
        batch, "rejected_completion_ids", "rejected_"
    )
