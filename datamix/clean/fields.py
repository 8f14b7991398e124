"""Which texts of a record a cleaning step sees, in each of the four kinds' Arrow columns.

A mend is applied to every selected *leaf* (the content and the reasoning of a turn, a document, a reference), a
judge to every selected *view* (one text a record: the selected turns of one conversation joined by line feeds).
A preference pair has two views, one per completion, and both must pass. Calls and meta are JSON, not prose: no judge
reads them, and only a pass that knows JSON mends them. Costs a copy of the columns that are mended, nothing for those that are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.records import MESSAGE, MESSAGES, Fields, RecordKind

Mend = Callable[[pa.Array, Any], pa.Array]  # string[n] -> string[n]; null stays null
Judge = Callable[[pa.Array, Any], pa.Array]  # string[n] -> reason, or null where the text may stay

_PROSE = ("reasoning", "content")


@dataclass(frozen=True)
class Pass:
    """One way over the texts of a batch."""

    counter: str  # what the rows it changes are counted under
    text: Mend
    json: Mend | None = (
        None  # the same for JSON: calls of the selected turns, and kept meta where fields is all
    )


def mend_batch(
    batch: pa.RecordBatch, kind: RecordKind, fields: Fields, once: tuple[Pass, Any]
) -> tuple[pa.RecordBatch, int]:
    """Mend every selected leaf; return the batch and the number of rows that changed."""
    mend, options = once
    changed = np.zeros(batch.num_rows, bool)
    columns = {name: batch.column(name) for name in batch.schema.names}
    for name, assistant in _selected(kind, fields):
        if pa.types.is_list(columns[name].type):
            columns[name], rows = _mend_turns(columns[name], assistant, mend, options)
        else:
            columns[name], rows = _mend_leaf(columns[name], mend.text, options)
        changed[rows] = True
    if mend.json and fields == "all":
        columns["meta"], rows = _mend_leaf(columns["meta"], mend.json, options)
        changed[rows] = True
    if not changed.any():
        return batch, 0
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema), int(changed.sum())


def judge_views(
    batch: pa.RecordBatch, kind: RecordKind, fields: Fields, judge: tuple[Judge, Any]
) -> pa.Array:
    """The reason of each row, null where every selected view passes; the first view that fails gives it."""
    call, options = judge
    verdicts = [call(view, options) for view in views(batch, kind, fields)]
    return pc.coalesce(*verdicts)


def views(batch: pa.RecordBatch, kind: RecordKind, fields: Fields) -> list[pa.Array]:
    """One or two string columns of ``num_rows``: what a judge reads. Null where the record has no such part.

    text: the document. sft: the selected turns. prompt: the prompt, or for ``answer`` the reference. preference:
    the prompt, or each completion, or for ``all`` the prompt followed by each completion.
    """
    if kind == "text":
        return [batch.column("text")]
    prompt = batch.column("messages")
    if kind == "sft":
        return [join_turns(prompt, {"all": None, "answer": True, "prompt": False}[fields])]
    if kind == "prompt":
        return [batch.column("reference") if fields == "answer" else join_turns(prompt, None)]
    if fields == "prompt":
        return [join_turns(prompt, None)]
    completions = [join_turns(batch.column(name), None) for name in ("chosen", "rejected")]
    if fields == "answer":
        return completions
    return [pc.binary_join_element_wise(join_turns(prompt, None), c, "\n") for c in completions]


def join_turns(
    messages: pa.Array, assistant: bool | None, parts: tuple[str, ...] = _PROSE, separator: str = "\n"
) -> pa.Array:
    """One text a conversation: of the assistant (True), of the others (False), of all (None); null stays null."""
    turns = messages.flatten()
    text = _joined([turns.field(part) for part in parts], separator)
    chosen = pc.greater(pc.binary_length(text), 0)
    if assistant is not None:
        said = pc.fill_null(pc.equal(turns.field("role"), "assistant"), False)
        chosen = pc.and_(chosen, said if assistant else pc.invert(said))
    counts = np.bincount(_parents(messages)[_bools(chosen)], minlength=len(messages))
    return pc.binary_join(_lists(messages, counts, text.filter(chosen), pa.list_(pa.string())), separator)


def _joined(parts: list[pa.Array], separator: str) -> pa.Array:
    """The parts of each row that are there, joined; empty where none is.

    Such a row gets an empty part first: Arrow's join loses rows in which everything is skipped (seen in 26.0).
    """
    absent = parts[0].is_null()
    for part in parts[1:]:
        absent = pc.and_(absent, part.is_null())
    last = pc.if_else(absent, "", parts[-1])
    return pc.binary_join_element_wise(*parts[:-1], last, separator, null_handling="skip")


def _selected(kind: RecordKind, fields: Fields) -> list[tuple[str, bool | None]]:
    """The columns that hold the selected leaves, with the turns to take of each: the assistant's, others', all."""
    if kind == "text":
        return [("text", None)]
    if kind == "sft":
        return [("messages", {"all": None, "answer": True, "prompt": False}[fields])]
    prompt: list[tuple[str, bool | None]] = [] if fields == "answer" else [("messages", None)]
    if fields == "prompt":
        return prompt
    return prompt + [
        (name, None) for name in (("reference",) if kind == "prompt" else ("chosen", "rejected"))
    ]


def _mend_leaf(leaf: pa.Array, call: Mend, options: Any) -> tuple[pa.Array, NDArray[np.int64]]:
    after = call(leaf, options)
    return after, np.flatnonzero(_bools(pc.fill_null(pc.not_equal(leaf, after), False)))


def _mend_turns(
    messages: pa.Array, assistant: bool | None, mend: Pass, options: Any
) -> tuple[pa.Array, NDArray[np.int64]]:
    turns = messages.flatten()
    children = {field.name: turns.field(field.name) for field in MESSAGE}
    said = _bools(pc.fill_null(pc.equal(children["role"], "assistant"), False))
    wanted = np.ones(len(turns), bool) if assistant is None else said == assistant
    changed = np.zeros(len(turns), bool)
    calls = {**dict.fromkeys(_PROSE, mend.text), **({"tool_calls": mend.json} if mend.json else {})}
    for part, call in calls.items():
        after, rows = _mend_leaf(children[part], call, options)
        rows = rows[wanted[rows]]
        if len(rows):
            children[part] = pc.if_else(pa.array(wanted), after, children[part])
            changed[rows] = True
    if not changed.any():
        return messages, np.empty(0, np.int64)
    structs = pa.StructArray.from_arrays(list(children.values()), fields=list(MESSAGE))
    counts = pc.fill_null(pc.list_value_length(messages), 0).to_numpy(zero_copy_only=False)
    return _lists(messages, counts, structs, MESSAGES), np.unique(_parents(messages)[changed])


def _lists(like: pa.Array, counts: NDArray[Any], values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Lists of ``counts`` values each, null where ``like`` is null."""
    offsets = np.zeros(len(like) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    mask = like.is_null() if like.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind, mask=mask)


def _parents(messages: pa.Array) -> NDArray[np.int64]:
    parents: NDArray[np.int64] = pc.list_parent_indices(messages).to_numpy(zero_copy_only=False)
    return parents


def _bools(column: pa.Array) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = column.to_numpy(zero_copy_only=False)
    return flags
