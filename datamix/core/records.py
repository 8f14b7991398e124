"""The four kinds of record as Arrow schemas, and the text in them.

A batch of records is what flows from ``formats`` through ``clean`` and ``dedup`` to ``tokenize``.
Conversations are lists of messages in the field's common form (role, content, tool calls); structured leaves
without a standard shape (tool definitions, tool calls, meta) travel as JSON text, so that every batch has one
schema.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from datamix.core.arrays import lists_by_row, parent_rows

Kind = Literal["pretrain", "sft", "preference", "prompt"]  # of a recipe
RecordKind = Literal["text", "sft", "preference", "prompt"]  # of a record
Fields = Literal["prompt", "answer", "all"]

ROLES = ("system", "user", "assistant", "tool")

MESSAGE = pa.struct(
    [
        ("role", pa.string()),  # system | user | assistant | tool
        ("content", pa.string()),  # null only where a turn is nothing but calls
        ("reasoning", pa.string()),  # assistant: what it thought before content
        # assistant: JSON list of {"id"?, "type", "function": {"name", "arguments": object}}
        ("tool_calls", pa.string()),
        ("tool_call_id", pa.string()),  # tool
        ("name", pa.string()),  # tool: function name
        (
            "train",
            pa.float64(),
        ),  # assistant: null = as the recipe says, 0 = never trained, else the weight of its loss
    ]
)
MESSAGES = pa.list_(MESSAGE)
TURN_FIELDS = (
    "role",
    "content",
    "reasoning",
    "tool_calls",
    "tool_call_id",
    "name",
)  # of turns in emitted rows

_ID = [
    pa.field("slice", pa.int32(), False),  # index of the slice inside its task
    pa.field("record", pa.int64(), False),  # ordinal inside the slice, counting rejects too
]
_CHAT = [
    pa.field("tools", pa.string()),  # JSON list of tool definitions, null where none
    pa.field("kwargs", pa.string()),  # JSON object: chat_template_kwargs of this record
]
_META = [pa.field("meta", pa.string())]  # JSON object of fields to carry, null where none

SCHEMAS: dict[str, pa.Schema] = {
    "text": pa.schema([*_ID, pa.field("text", pa.string(), False), *_META]),
    "sft": pa.schema([*_ID, pa.field("messages", MESSAGES, False), *_CHAT, *_META]),
    "preference": pa.schema(
        [
            *_ID,
            pa.field("messages", MESSAGES, False),  # the prompt, without the completion
            pa.field("chosen", MESSAGES, False),  # final turns; of an unpaired record: its completion
            pa.field("rejected", MESSAGES),  # null where unpaired
            pa.field("label", pa.bool_()),  # null where paired
            pa.field("margin", pa.float64()),
            *_CHAT,
            *_META,
        ]
    ),
    "prompt": pa.schema(
        [
            *_ID,
            pa.field("messages", MESSAGES, False),
            pa.field("reference", pa.string()),  # the text itself; other JSON values as JSON text
            *_CHAT,
            *_META,
        ]
    ),
}

FIELD_SEPARATOR = "\x1e"  # between turns: a character that text does not hold
_PART_SEPARATOR = "\x1f"  # between the parts of one turn


def texts(batch: pa.RecordBatch, kind: str, fields: Fields = "all") -> pa.Array:
    """The words of each record as one string, turns joined by ``FIELD_SEPARATOR``.

    ``prompt``: what the model is given (system, user and tool turns of a conversation; the prompt of a pair).
    ``answer``: what it should say (assistant turns; both completions of a pair). Text records are all prompt
    and all answer. Roles are not part of it.
    """
    if kind == "text":
        return batch.column("text")
    messages = batch.column("messages")
    if kind == "sft":
        return _join(messages, None if fields == "all" else fields == "answer")
    prompt = _join(messages)
    if kind == "prompt" or fields == "prompt":
        return prompt
    answer = pc.binary_join_element_wise(
        _join(batch.column("chosen")),
        _join(batch.column("rejected")),
        FIELD_SEPARATOR,
        null_handling="replace",
        null_replacement="",
    )
    if fields == "answer":
        return answer
    return pc.binary_join_element_wise(prompt, answer, FIELD_SEPARATOR)


def _join(messages: pa.Array, assistant: bool | None = None, roles: bool = False) -> pa.Array:
    """Join the turns of each conversation; only the assistant's (True), only the others' (False), or all
    (None).
    """
    turns = messages.flatten()
    text, rows = _turn_text(turns), parent_rows(messages)
    if roles:
        text = pc.binary_join_element_wise(turns.field("role"), text, _PART_SEPARATOR)
    if assistant is not None:
        selected = (pc.equal if assistant else pc.not_equal)(turns.field("role"), "assistant").fill_null(
            False
        )
        text, rows = text.filter(selected), rows[selected.to_numpy(zero_copy_only=False)]
    return pc.binary_join(lists_by_row(text, rows, len(messages)), FIELD_SEPARATOR)


def _turn_text(turns: pa.StructArray) -> pa.Array:
    """The parts of each turn that it has, joined; empty where it has none.

    Such a turn gets an empty part first: Arrow's join loses rows in which everything is skipped (seen in
    26.0).
    """
    reasoning, content, calls = (turns.field(name) for name in ("reasoning", "content", "tool_calls"))
    absent = pc.and_(pc.and_(reasoning.is_null(), content.is_null()), calls.is_null())
    calls = pc.if_else(absent, "", calls)
    return pc.binary_join_element_wise(reasoning, content, calls, _PART_SEPARATOR, null_handling="skip")


def identity_texts(batch: pa.RecordBatch, kind: str) -> pa.Array:
    """What makes two records the same: roles, words, calls, tools, labels; neither their place nor their
    meta.
    """
    if kind == "text":
        return batch.column("text")
    names = batch.schema.names
    parts = [_join(batch.column(n), roles=True) for n in ("messages", "chosen", "rejected") if n in names]
    parts += [batch.column(n).cast(pa.string()) for n in ("label", "reference", "tools") if n in names]
    return pc.binary_join_element_wise(*parts, "\x1d", null_handling="replace", null_replacement="\x00")


# Tokens of a batch of records, row for row (``encode``). ``reason`` is null, or why the record cannot be
# emitted.
_ENCODED = [
    pa.field("length", pa.int32(), False),  # real tokens
    pa.field("loss", pa.int32(), False),  # tokens that are trained
    pa.field("reason", pa.string()),
    pa.field("truncated", pa.bool_(), False),
]
_IDS = pa.list_(pa.int32())
WEIGHTS = pa.list_(pa.float32())

TOKENS: dict[str, pa.Schema] = {
    "pretrain": pa.schema([pa.field("ids", _IDS, False), *_ENCODED]),
    "sft": pa.schema(
        [
            pa.field("ids", _IDS, False),
            pa.field("mask", pa.list_(pa.uint8()), False),
            pa.field("weights", WEIGHTS),  # of the loss of each token; null where all are 1
            *_ENCODED,
        ]
    ),
    "preference": pa.schema(
        [
            pa.field("prompt", _IDS, False),  # with the generation prompt
            pa.field("chosen", _IDS, False),  # with the end of turn; of an unpaired record: its completion
            pa.field("rejected", _IDS),  # null where unpaired
            *_ENCODED,
        ]
    ),
    "prompt": pa.schema([pa.field("prompt", _IDS, False), *_ENCODED]),
}

PIECE = pa.struct(
    [("file", pa.int32()), ("record", pa.int64()), ("start", pa.int32()), ("length", pa.int32())]
)


OPTIONAL_COLUMNS = ("meta", "weight", "loss_weights", "tools", "chat_template_kwargs")


def row_schema(kind: Kind, packed: bool, paired: bool = True, optional: Collection[str] = ()) -> pa.Schema:
    """The columns of ``train/``. ``packed``: documents of one row kept apart by positions (``best_fit``).

    ``optional``: which of OPTIONAL_COLUMNS the set has; those that rows of this kind never have are left out.
    ``loss_weights`` is of conversations: the weight of the loss of each token, 0 where its label is ignored.
    ``tools`` and ``chat_template_kwargs`` are of pairs and prompts: the tool definitions, with reasoning and calls in
    the turns as records have them, and what the chat template was given beside the messages.
    """
    fields = [
        pa.field("source", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("records", pa.list_(PIECE)),
    ]
    turn = pa.list_(
        pa.struct(
            [field for field in MESSAGE if field.name in TURN_FIELDS[: 6 if "tools" in optional else 2]]
        )
    )
    if kind in ("pretrain", "sft"):
        fields += [pa.field("input_ids", _IDS), pa.field("labels", _IDS)]
        if packed:
            fields += [pa.field("position_ids", _IDS), pa.field("seq_lengths", _IDS)]
        else:
            fields += [pa.field("attention_mask", pa.list_(pa.int8()))]
        if "loss_weights" in optional and kind == "sft":
            fields += [pa.field("loss_weights", WEIGHTS)]
        if "weight" in optional:
            fields += [pa.field("weight", pa.float32())]
    elif kind == "preference" and paired:
        fields += [pa.field(f"{n}_ids", _IDS) for n in ("prompt", "chosen_completion", "rejected_completion")]
        fields += [pa.field("margin", pa.float64())]
        fields += [pa.field(n, turn) for n in ("prompt", "chosen", "rejected")]
    elif kind == "preference":
        fields += [
            pa.field("prompt_ids", _IDS),
            pa.field("completion_ids", _IDS),
            pa.field("label", pa.bool_()),
        ]
        fields += [pa.field("prompt", turn), pa.field("completion", turn)]
    else:
        fields += [pa.field("prompt_ids", _IDS), pa.field("prompt", turn), pa.field("reference", pa.string())]
    if kind in ("preference", "prompt"):
        fields += [pa.field(n, pa.string()) for n in ("tools", "chat_template_kwargs") if n in optional]
    if "meta" in optional or kind == "prompt":
        fields += [pa.field("meta", pa.string())]
    return pa.schema(fields)
