"""What is read from one foreign row, before it becomes a row of a batch; and why a row is rejected.

A turn is a plain tuple in the order of ``records.MESSAGE``: tuples are the cheapest thing Python can build, and
``zip(*turns)`` transposes a whole chunk of them into Arrow columns at C speed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from datamix.core.arrays import offsets_from_lengths
from datamix.core.records import MESSAGE, SCHEMAS, RecordKind

# role, content, reasoning, tool_calls, tool_call_id, name, train: the fields of records.MESSAGE
Turn = tuple[str, str | None, str | None, str | None, str | None, str | None, float | None]
ForeignRow = dict[str, Any]

_LONG_NUMBER = re.compile(r"\d{17,}")  # an integer that orjson would round to a float


class Unfit(Exception):
    """A row that does not fit its format: a short reason, the field's path, and the rest of a sentence about it."""

    def __init__(self, reason: str, field: str, problem: str) -> None:
        super().__init__(reason, field, problem)
        self.reason = reason
        self.field = field
        self.problem = problem


@dataclass(slots=True)
class Draft:
    """One record. ``turns``: the conversation of an sft record, the prompt part of a preference or a prompt."""

    turns: list[Turn]
    chosen: list[Turn] | None = None
    rejected: list[Turn] | None = None
    label: bool | None = None
    margin: float | None = None
    reference: str | None = None
    tools: str | None = None
    kwargs: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class TurnNames:
    """The keys that hold role, content and training flag in a source's turns (None: the usual ones); ``roles`` maps
    their role words to ours."""

    role: str | None
    content: str | None
    roles: dict[str, str]  # user | assistant | system | tool | call
    train: str | None = None


def user(content: str) -> Turn:
    return ("user", content, None, None, None, None, None)


def assistant(content: str, reasoning: str | None = None) -> Turn:
    return ("assistant", content, reasoning, None, None, None, None)


def system(content: str) -> Turn:
    return ("system", content, None, None, None, None, None)


def required_text(row: ForeignRow, field: str) -> str:
    """The text of a field. Raises Unfit: it is missing, null or something else."""
    value = row.get(field)
    if value.__class__ is str:
        return value
    if value is None:
        raise absent(row, (field,))
    raise Unfit("not_text", field, f"is {named(value)}, not text")


def optional_text(row: ForeignRow, field: str) -> str | None:
    """The text of a field; None where it is missing, null or empty. Raises Unfit: it is something else."""
    value = row.get(field)
    if value is None or value == "":
        return None
    if value.__class__ is str:
        return value
    raise Unfit("not_text", field, f"is {named(value)}, not text")


def first_present(row: ForeignRow, fields: tuple[str, ...]) -> str | None:
    """The first of ``fields`` that is in the row and not null."""
    for field in fields:
        if row.get(field) is not None:
            return field
    return None


def absent(row: ForeignRow, fields: tuple[str, ...]) -> Unfit:
    """Why none of ``fields`` can be read: the first that the row has is null, or all are missing."""
    null = next((field for field in fields if field in row), None)
    if null is None:
        return Unfit("missing_field", fields[0], "is missing")
    return Unfit("null_field", null, "is null")


def present(row: ForeignRow, fields: tuple[str, ...]) -> str:
    """The first of ``fields`` that is in the row and not null. Raises Unfit: none is."""
    field = first_present(row, fields)
    if field is None:
        raise absent(row, fields)
    return field


def listed(value: Any, field: str) -> list[Any]:
    """A list, also where a CSV cell holds it as JSON text. Raises Unfit."""
    if isinstance(value, str):
        value = parsed(value, field, "not_list")
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, list):
        return value
    raise Unfit("not_list", field, f"is {named(value)}, not a list")


def parsed(text: str, field: str, reason: str) -> Any:
    """The value of a JSON text. Raises Unfit with ``reason``: it does not parse."""
    try:
        return json.loads(text) if _LONG_NUMBER.search(text) else orjson.loads(text)
    except (ValueError, RecursionError):
        raise Unfit(reason, field, f"does not parse as JSON: {text[:60]!r}") from None


def json_text(value: Any) -> str:
    """Compact JSON; what JSON lacks (decimals, bytes of a Parquet file) becomes text."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def named(value: Any) -> str:
    """The type of a value, for a sentence."""
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text"}
    names |= {dict: "an object", list: "a list", tuple: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")


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
        if kind == "preference":
            columns += [_turns([d.chosen for d in drafts]), _turns([d.rejected for d in drafts])]
            columns.append(pa.array([d.label for d in drafts], pa.bool_()))
            columns.append(pa.array([d.margin for d in drafts], pa.float64()))
        elif kind == "prompt":
            columns.append(pa.array([d.reference for d in drafts], pa.string()))
        columns.append(pa.array([d.tools for d in drafts], pa.string()))
        columns.append(pa.array([d.kwargs for d in drafts], pa.string()))
    columns.append(pa.array(metas, pa.string()))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMAS[kind])


def drafts_of(batch: pa.RecordBatch, kind: RecordKind) -> list[tuple[Draft, str | None]]:
    """The records of a batch with their meta: ``record_batch`` backwards."""
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
    offsets = offsets_from_lengths([len(turns) if turns else 0 for turns in conversations], np.int32)
    flat = list(chain.from_iterable(turns for turns in conversations if turns))
    fields = list(MESSAGE)
    columns = zip(*flat, strict=True) if flat else ((),) * len(fields)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, fields, strict=True)]
    turns = pa.StructArray.from_arrays(arrays, fields=fields)
    nulls = [turns is None for turns in conversations]
    mask = pa.array(nulls, pa.bool_()) if any(nulls) else None
    return pa.ListArray.from_arrays(pa.array(offsets), turns, mask=mask)
