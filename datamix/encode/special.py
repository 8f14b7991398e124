"""Which records hold the text of a control token, in any field.

Arrow's regular expressions clear most of a batch; only rows that they flag, or whose JSON may hide a character behind
an escape, are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.encode.control import ControlTokens
from datamix.encode.conversation import Conversation, dressed, exact_json

_TURN_FIELDS = ("content", "reasoning", "tool_calls", "tool_call_id", "name")


def rows_to_look_at(batch: pa.RecordBatch, control: ControlTokens) -> list[int]:
    """The rows that may hold control text, in order."""
    flagged = np.zeros(batch.num_rows, np.bool_)
    for name in ("messages", "chosen", "rejected"):
        if name in batch.schema.names:
            column = batch.column(name)
            turns = column.flatten()
            parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
            for field in _TURN_FIELDS:
                flagged[parents[_suspects(turns.field(field), control)]] = True
    for name in ("tools", "kwargs"):
        flagged |= _suspects(batch.column(name), control)
    return [int(row) for row in np.flatnonzero(flagged)]


def _suspects(texts: pa.Array, control: ControlTokens) -> NDArray[np.bool_]:
    if texts.null_count == len(texts):
        return np.zeros(len(texts), np.bool_)
    hidden = pc.fill_null(pc.match_substring(texts, "\\u"), False)
    found = pc.or_(control.are_in(texts), hidden).to_numpy(zero_copy_only=False)
    return np.asarray(found, np.bool_)


def holds_control(conversations: Iterable[Conversation], control: ControlTokens) -> bool:
    """Whether any string that the data wrote into these conversations holds a control token's text."""
    found = False

    def look(text: str) -> str:
        nonlocal found
        found = found or control.is_in(text)
        return text

    for one in conversations:
        for turn in one.turns:
            dressed(turn, look, look)
        exact_json(one.tools, look)
        exact_json(one.kwargs, look)
    return found
