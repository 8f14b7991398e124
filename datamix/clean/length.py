"""Drop records that are too short or too long, in characters.

A character is a Unicode code point: 400 characters of Chinese say about as much as 1,200 of English. The selected
parts of a record count together (contents, reasoning and calls of its turns, without what stands between them); each
completion of a preference pair counts on its own, so that an empty ``rejected`` is found. Columnar: counts only.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from datamix.clean.fields import join_turns, views
from datamix.core.records import Fields, RecordKind

_PARTS = ("reasoning", "content", "tool_calls")


@dataclass(frozen=True)
class Length:
    """Options of ``length``, in characters."""

    min_chars: int = 1
    max_chars: int | None = None

    def __post_init__(self) -> None:
        if self.min_chars < 0:
            raise ValueError(f"min_chars must be 0 or more, got {self.min_chars}")
        if self.max_chars is not None and self.max_chars < max(self.min_chars, 1):
            raise ValueError(f"max_chars must be at least min_chars and 1, got {self.max_chars}")


def judge_length(batch: pa.RecordBatch, kind: RecordKind, options: Length, fields: Fields) -> pa.Array:
    """``length_min_chars`` or ``length_max_chars`` per row, else null. A part that is absent is not judged."""
    verdicts = [_verdict(chars, options) for chars in _num_chars(batch, kind, fields)]
    return pc.coalesce(*verdicts)


def _num_chars(batch: pa.RecordBatch, kind: RecordKind, fields: Fields) -> list[pa.Array]:
    if kind in ("text", "prompt"):
        return [pc.utf8_length(view) for view in views(batch, kind, fields)]
    if kind == "sft":
        return [_turn_chars(batch.column("messages"), {"all": None, "answer": True, "prompt": False}[fields])]
    prompt = _turn_chars(batch.column("messages"), None)
    if fields == "prompt":
        return [prompt]
    completions = [_turn_chars(batch.column(name), None) for name in ("chosen", "rejected")]
    return completions if fields == "answer" else [pc.add(prompt, c) for c in completions]


def _turn_chars(messages: pa.Array, assistant: bool | None) -> pa.Array:
    return pc.utf8_length(join_turns(messages, assistant, _PARTS, ""))


def _verdict(chars: pa.Array, options: Length) -> pa.Array:
    none = pa.scalar(None, pa.string())
    short = pc.if_else(pc.less(chars, options.min_chars), "length_min_chars", none)
    if options.max_chars is None:
        return short
    return pc.coalesce(short, pc.if_else(pc.greater(chars, options.max_chars), "length_max_chars", none))
