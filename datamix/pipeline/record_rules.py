"""What a recipe asks of single records by their fields: bands of a number (``keep``), groups, reasoning in earlier turns.

Fields are the files' own, by name, or by a path such as ``extra_info.pass_rate``; they are read beside the record and are
carried to the rows only where ``keep_meta`` names them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from datamix.core.hashing import canonical, content_keys, fixed_binary, key_ranks, salt
from datamix.formats import ShapeSpec

KEEP, KEEP_MISSING = "keep", "keep_missing"
_THOUGHT = re.compile(r"\A\s*(?:<think>.*?|(?:(?!<think>).)*?)</think>\n*", re.DOTALL)


@dataclass(frozen=True)
class Band:
    """Records whose number in ``field`` is from ``min`` to ``max``."""

    field: str
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class RecordRules:
    """The rules of one source."""

    keep: tuple[Band, ...] = ()
    group_by: str | None = None
    thinking: Literal["keep", "drop", "last"] = "keep"
    inline_tags: bool = True  # <think> in the text of an answer is reasoning

    def shape(self, asked: ShapeSpec) -> ShapeSpec:
        """The shape that also carries the fields of these rules."""
        names = [*(band.field for band in self.keep), *([self.group_by] if self.group_by else [])]
        firsts = dict.fromkeys(name.split(".")[0] for name in names)
        extra = tuple(name for name in firsts if name not in asked.keep_meta)
        return replace(asked, keep_meta=(*asked.keep_meta, *extra))


NO_RULES = RecordRules()


def apply_rules(
    batch: pa.RecordBatch, rules: RecordRules, keep_meta: tuple[str, ...]
) -> tuple[pa.RecordBatch, dict[int, str]]:
    """The batch under the rules, with its column ``group`` where records are grouped; rows to drop, with the reason."""
    if rules.thinking != "keep":
        batch = _without_thinking(batch, rules)
    if not rules.keep and rules.group_by is None:
        return batch, {}
    metas = [orjson.loads(text) if text else {} for text in batch.column("meta").to_pylist()]
    dropped: dict[int, str] = {}
    for band in rules.keep:
        for row, meta in enumerate(metas):
            if reason := _outside(_value(meta, band.field), band):
                dropped.setdefault(row, reason)
    place = batch.schema.get_field_index("meta")
    carried = [{key: value for key, value in meta.items() if _is_carried(key, keep_meta)} for meta in metas]
    texts = [orjson.dumps(meta).decode() if meta else None for meta in carried]
    if "meta" not in keep_meta:
        batch = batch.set_column(place, batch.schema.field(place), pa.array(texts, pa.string()))
    if rules.group_by is not None:
        values = [_value(meta, rules.group_by) for meta in metas]
        names = pa.array([None if value is None else canonical(value) for value in values], pa.string())
        ranks = key_ranks(fixed_binary(content_keys(names)), salt(0, "group"))
        hashes = np.where(names.is_valid().to_numpy(zero_copy_only=False), np.maximum(ranks, 1), 0)
        batch = batch.append_column(pa.field("group", pa.uint64(), False), pa.array(hashes.astype(np.uint64)))
    return batch, dropped


def _is_carried(key: str, keep_meta: tuple[str, ...]) -> bool:
    return "*" in keep_meta or key in keep_meta


def _value(meta: dict[str, Any], path: str) -> Any:
    """What a path names; the fields of ``meta`` itself are among those of the record."""
    value: Any = meta
    for name in path.removeprefix("meta.").split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _outside(value: Any, band: Band) -> str | None:
    """Why a value is not in a band."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return KEEP_MISSING
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        return KEEP_MISSING
    inside = (band.min is None or value >= band.min) and (band.max is None or value <= band.max)
    return None if inside else KEEP


def _without_thinking(batch: pa.RecordBatch, rules: RecordRules) -> pa.RecordBatch:
    """Reasoning taken out of every answer (``drop``), or of those before the last question (``last``)."""
    for name in ("messages", "chosen", "rejected"):
        place = batch.schema.get_field_index(name)
        if place < 0 or (rules.thinking == "last" and name != "messages"):
            continue
        turns = batch.column(name)
        offsets, flat = turns.offsets.to_numpy().astype(np.int64), turns.values
        roles = flat.field("role").to_numpy(zero_copy_only=False)
        taken = roles == "assistant"
        if (
            rules.thinking == "last"
            and "chosen" not in batch.schema.names
            and "reference" not in batch.schema.names
        ):
            users = np.flatnonzero(roles == "user")
            before = np.searchsorted(users, offsets[1:]) - 1  # the last question of each record
            last = np.where(before >= 0, users[np.maximum(before, 0)] if len(users) else 0, -1)
            last = np.where(last >= offsets[:-1], last, -1)
            row_of = np.repeat(np.arange(len(turns)), np.diff(offsets))
            inside = np.arange(offsets[0], offsets[-1])
            taken[inside] &= inside < last[row_of]
        fields = {field.name: flat.field(field.name) for field in turns.type.value_type}
        fields["reasoning"] = pc.if_else(pa.array(taken), None, fields["reasoning"])
        if rules.inline_tags:
            has_tag = pc.fill_null(pc.match_substring(fields["content"], "</think>"), False)
            mask = pc.and_(pa.array(taken), has_tag)
            answers = [_THOUGHT.sub("", text, count=1) for text in fields["content"].filter(mask).to_pylist()]
            fields["content"] = pc.replace_with_mask(fields["content"], mask, pa.array(answers, pa.string()))
        struct = pa.StructArray.from_arrays(list(fields.values()), fields=list(turns.type.value_type))
        nulls = turns.is_null() if turns.null_count else None
        lists = pa.ListArray.from_arrays(turns.offsets, struct, type=turns.type, mask=nulls)
        batch = batch.set_column(place, batch.schema.field(place), lists)
    return batch


def count_thinking(batch: pa.RecordBatch) -> int:
    """Records with reasoning in an answer."""
    found = np.zeros(batch.num_rows, bool)
    for name in ("messages", "chosen", "rejected"):
        if name in batch.schema.names:
            turns = batch.column(name)
            flat, offsets = turns.values, turns.offsets.to_numpy().astype(np.int64)
            inline = pc.fill_null(pc.match_substring(flat.field("content"), "</think>"), False)
            is_answer = pc.fill_null(pc.equal(flat.field("role"), "assistant"), False)
            has = pc.and_(is_answer, pc.or_(flat.field("reasoning").is_valid(), inline))
            total = np.concatenate([[0], np.cumsum(has.to_numpy(zero_copy_only=False))])
            found |= total[offsets[1:]] > total[offsets[:-1]]
    return int(found.sum())
