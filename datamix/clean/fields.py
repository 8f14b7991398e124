"""Which texts of a record a cleaning step sees, in each of the four kinds' Arrow columns, and how they are
changed.

A fix is applied to every selected *leaf* (the content and the reasoning of a turn, a document, a reference),
a judge to every selected *view* (one text a record: the selected turns of one conversation joined by line
feeds). A preference pair has two views, one per completion, and both must pass. Calls and meta are JSON, not
prose: no judge reads them, and only a pass that knows JSON fixes them. Costs a copy of the columns that are
changed, nothing for those that are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.arrays import offsets_from_lengths, parent_rows
from datamix.core.records import MESSAGE, MESSAGES, Fields, RecordKind

Fix = Callable[[pa.Array, Any], pa.Array]  # string[n] -> string[n]; null stays null
Judge = Callable[[pa.Array, Any], pa.Array]  # string[n] -> reason, or null where the text may stay

# Which turns of a conversation each choice of fields selects: the assistant's (True), the others' (False),
# all (None).
ASSISTANT_TURNS: dict[Fields, bool | None] = {"all": None, "answer": True, "prompt": False}
_PROSE = ("reasoning", "content")
_LEAVES: dict[RecordKind, tuple[tuple[str, ...], tuple[str, ...]]] = {  # prompt columns, answer columns
    "text": (("text",), ()),
    "sft": (("messages",), ()),
    "prompt": (("messages",), ("reference",)),
    "preference": (("messages",), ("chosen", "rejected")),
}


@dataclass(frozen=True)
class Pass:
    """One way over the texts of a batch."""

    counter: str  # what the rows it changes are counted under
    text: Fix
    # the same for JSON: calls of the selected turns, and meta where fields is all
    json: Fix | None = None


def fix_batch(
    batch: pa.RecordBatch, kind: RecordKind, fields: Fields, fix: Pass, options: Any
) -> tuple[pa.RecordBatch, int]:
    """Fix every selected leaf; return the batch and the number of rows that changed."""
    prompt, answer = _LEAVES[kind]
    names = {"prompt": prompt, "answer": answer or prompt, "all": prompt + answer}[fields]
    changed = np.zeros(batch.num_rows, bool)
    columns = {name: batch.column(name) for name in batch.schema.names}
    for name in names:
        if pa.types.is_list(columns[name].type):
            assistant = ASSISTANT_TURNS[fields] if kind == "sft" else None
            columns[name], rows = _fix_turns(columns[name], assistant, fix, options)
        else:
            columns[name], rows = _fix_leaf(columns[name], fix.text, options)
        changed[rows] = True
    if fix.json and fields == "all":
        columns["meta"], rows = _fix_leaf(columns["meta"], fix.json, options)
        changed[rows] = True
    if not changed.any():
        return batch, 0
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema), int(changed.sum())


def judge_views(
    batch: pa.RecordBatch, kind: RecordKind, fields: Fields, judge: Judge, options: Any
) -> pa.Array:
    """The reason of each row, null where every selected view passes; the first view that fails gives it."""
    return pc.coalesce(*(judge(view, options) for view in views(batch, kind, fields)))


def views(
    batch: pa.RecordBatch,
    kind: RecordKind,
    fields: Fields,
    parts: tuple[str, ...] = _PROSE,
    separator: str = "\n",
) -> list[pa.Array]:
    """One or two string columns of ``num_rows``: what a judge reads. Null where the record has no such part.

    text: the document. sft: the selected turns. prompt: the prompt, or for ``answer`` the reference.
    preference: the prompt, or each completion, or for ``all`` the prompt followed by each completion.
    """
    if kind == "text":
        return [batch.column("text")]
    if kind == "prompt" and fields == "answer":
        return [batch.column("reference")]
    assistant = ASSISTANT_TURNS[fields] if kind == "sft" else None
    prompt = join_turns(batch.column("messages"), assistant, parts, separator)
    if kind != "preference" or fields == "prompt":
        return [prompt]
    completions = [join_turns(batch.column(name), None, parts, separator) for name in ("chosen", "rejected")]
    if fields == "answer":
        return completions
    return [pc.binary_join_element_wise(prompt, c, separator) for c in completions]


def join_turns(
    messages: pa.Array, assistant: bool | None, parts: tuple[str, ...] = _PROSE, separator: str = "\n"
) -> pa.Array:
    """One text a conversation: of the assistant (True), of the others (False), of all (None); null stays
    null.
    """
    turns = messages.flatten()
    columns = [turns.field(part) for part in parts]
    absent = columns[0].is_null()
    for column in columns[1:]:
        absent = pc.and_(absent, column.is_null())
    # An empty part where all are absent: Arrow's join loses rows in which everything is skipped (seen in
    # 26.0).
    columns[-1] = pc.if_else(absent, "", columns[-1])
    text = pc.binary_join_element_wise(*columns, separator, null_handling="skip")
    selected = pc.greater(pc.binary_length(text), 0)
    if assistant is not None:
        selected = pc.and_(selected, pa.array(_of_assistant(turns) == assistant))
    counts = np.bincount(parent_rows(messages)[_bools(selected)], minlength=len(messages))
    return pc.binary_join(_lists(messages, counts, text.filter(selected), pa.list_(pa.string())), separator)


def replace_matching(texts: pa.Array, pattern: str, replace: Callable[[str], str]) -> pa.Array:
    """Apply ``replace`` to the texts in which ``pattern`` (RE2) matches; null stays null."""
    suspects = pc.fill_null(pc.match_substring_regex(texts, pattern=pattern), False)
    if not pc.any(suspects).as_py():
        return texts
    results = [replace(text) for text in texts.filter(suspects).to_pylist()]
    return pc.replace_with_mask(texts, suspects, pa.array(results, texts.type))


def _fix_leaf(leaf: pa.Array, fix: Fix, options: Any) -> tuple[pa.Array, NDArray[np.int64]]:
    after = fix(leaf, options)
    return after, np.flatnonzero(_bools(pc.fill_null(pc.not_equal(leaf, after), False)))


def _fix_turns(
    messages: pa.Array, assistant: bool | None, fix: Pass, options: Any
) -> tuple[pa.Array, NDArray[np.int64]]:
    turns = messages.flatten()
    children = {field.name: turns.field(field.name) for field in MESSAGE}
    selected = np.ones(len(turns), bool) if assistant is None else _of_assistant(turns) == assistant
    changed = np.zeros(len(turns), bool)
    fixes = {**dict.fromkeys(_PROSE, fix.text), **({"tool_calls": fix.json} if fix.json else {})}
    for part, call in fixes.items():
        after, rows = _fix_leaf(children[part], call, options)
        rows = rows[selected[rows]]
        if len(rows):
            children[part] = pc.if_else(pa.array(selected), after, children[part])
            changed[rows] = True
    if not changed.any():
        return messages, np.empty(0, np.int64)
    structs = pa.StructArray.from_arrays(list(children.values()), fields=list(MESSAGE))
    counts = pc.fill_null(pc.list_value_length(messages), 0).to_numpy(zero_copy_only=False)
    return _lists(messages, counts, structs, MESSAGES), np.unique(parent_rows(messages)[changed])


def _of_assistant(turns: pa.StructArray) -> NDArray[np.bool_]:
    return _bools(pc.fill_null(pc.equal(turns.field("role"), "assistant"), False))


def _lists(like: pa.Array, counts: NDArray[Any], values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Lists of ``counts`` values each, null where ``like`` is null."""
    mask = like.is_null() if like.null_count else None
    offsets = pa.array(offsets_from_lengths(counts, np.int32))
    return pa.ListArray.from_arrays(offsets, values, type=kind, mask=mask)


def _bools(column: pa.Array) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = column.to_numpy(zero_copy_only=False)
    return flags
