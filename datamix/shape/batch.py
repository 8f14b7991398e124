"""Drafts to Arrow, a column at a time: turns are transposed with ``zip`` and become one struct array a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pyarrow as pa

from datamix.records import MESSAGE, SCHEMAS, RecordKind
from datamix.shape.draft import Draft, Turn

_TURN_FIELDS = list(MESSAGE)


def record_batch(
    kind: RecordKind, slice_index: int, records: list[int], drafts: list[Draft], metas: list[str | None]
) -> pa.RecordBatch:
    """A batch of ``records.SCHEMAS[kind]``, one row a draft. Raises UnicodeEncodeError: a text holds a lone surrogate."""
    columns: list[pa.Array] = [
        pa.array(np.full(len(drafts), slice_index, np.int32)),
        pa.array(records, pa.int64()),
    ]
    if kind == "text":
        columns.append(pa.array([d.text for d in drafts], pa.string()))
    else:
        columns.append(_turns([d.turns for d in drafts]))
        columns += _own_columns(kind, drafts)
        columns.append(pa.array([d.tools for d in drafts], pa.string()))
        columns.append(pa.array([d.kwargs for d in drafts], pa.string()))
    columns.append(pa.array(metas, pa.string()))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMAS[kind])


def _own_columns(kind: RecordKind, drafts: list[Draft]) -> list[pa.Array]:
    if kind == "preference":
        return [
            _turns([d.chosen for d in drafts]),
            _turns([d.rejected for d in drafts]),
            pa.array([d.label for d in drafts], pa.bool_()),
            pa.array([d.margin for d in drafts], pa.float64()),
        ]
    if kind == "prompt":
        return [pa.array([d.reference for d in drafts], pa.string())]
    return []


def drafts_of(batch: pa.RecordBatch, kind: RecordKind) -> list[tuple[Draft, str | None]]:
    """The records of a batch with their meta: what ``record_batch`` was made of."""
    columns = {name: batch.column(name).to_pylist() for name in batch.schema.names[2:]}
    metas = columns.pop("meta")
    if kind == "text":
        return [(Draft([], text=text), meta) for text, meta in zip(columns["text"], metas, strict=True)]
    columns["turns"] = columns.pop("messages")
    for name in {"turns", "chosen", "rejected"} & columns.keys():
        columns[name] = [
            turns if turns is None else [tuple(turn.values()) for turn in turns] for turns in columns[name]
        ]
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    return [(Draft(**dict(zip(names, row, strict=True))), m) for row, m in zip(rows, metas, strict=True)]


def _turns(conversations: Sequence[list[Turn] | None]) -> pa.Array:
    """Lists of turns as ``list<MESSAGE>``; None stays null."""
    lengths = [len(turns) if turns else 0 for turns in conversations]
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    flat = list(chain.from_iterable(turns for turns in conversations if turns))
    fields = zip(*flat, strict=True) if flat else ((),) * len(_TURN_FIELDS)
    arrays = [pa.array(values, field.type) for values, field in zip(fields, _TURN_FIELDS, strict=True)]
    turns = pa.StructArray.from_arrays(arrays, fields=_TURN_FIELDS)
    nulls = [turns is None for turns in conversations]
    mask = pa.array(nulls, pa.bool_()) if any(nulls) else None
    return pa.ListArray.from_arrays(pa.array(offsets), turns, mask=mask)
