"""Validate files of records: which line, which field, why.

A record is right when a build would take it: every row goes through ``shape``. Asked for a kind (``--as sft``), files in
our own form must also hold to its published JSON Schema, checked by a compiled validator. One pass, bounded memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from datamix.core.contracts import Reject, Rows
from datamix.core.errors import RecipeError, mask_url
from datamix.core.records import RecordKind
from datamix.formats import RECORD_FORMATS, ShapeSpec, can_become, native_kinds, shape
from datamix.pipeline.recognise import Recognised, recognise
from datamix.read import find, read
from datamix.recipe.schemas import schema_text

KINDS: tuple[RecordKind, ...] = ("text", "sft", "preference", "prompt")
_OWN = {  # formats that are our own record form, by kind
    "text": ("text",),
    "sft": ("alpaca", "messages"),
    "preference": ("preference", "medicalgpt", "kto"),
    "prompt": ("prompt",),
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one record, or with a whole file (no record)."""

    file: str
    record: int | None  # ordinal in the file, from 0
    line: int | None  # 1-based, where the container has lines
    field: str  # path of the field; "" for the record as a whole
    reason: str

    def __str__(self) -> str:
        place = f":{self.line}" if self.line is not None else ""
        if not place and self.record is not None:
            place = f" record {self.record}"
        return f"{mask_url(self.file)}{place}: {self.field + ' ' if self.field else ''}{self.reason}"


def check(files: Sequence[str], kind: str | None = None) -> Iterator[Problem]:
    """The problems of ``files`` (paths, globs, folders) in order; ``kind``: what their records should be.

    Raises RecipeError: a path matches nothing, or ``kind`` is no kind of record. Raises DataError: a file is unreadable.
    """
    wanted = _kind(kind)
    for path in find(files, "."):
        yield from _check_file(path, wanted)


def _kind(kind: str | None) -> RecordKind | None:
    asked = "text" if kind == "pretrain" else kind
    for known in KINDS:
        if asked == known:
            return known
    if kind is None:
        return None
    raise RecipeError(f"--as {kind}: there is no such kind of record. Kinds: {', '.join(KINDS)}.")


def _check_file(path: str, kind: RecordKind | None) -> Iterator[Problem]:
    seen = recognise(path)
    spec = _spec(seen, kind)
    if not seen.values:
        yield from _check_unread(path, seen)
        return
    if spec is None:
        yield Problem(path, None, None, "", f"is in no known format: {seen.fields()}")
        return
    strict = kind is not None and spec.format in _OWN[spec.kind]
    validator = jsonschema_rs.Draft202012Validator(json.loads(schema_text(spec.kind))) if strict else None
    native = seen.detection.kind if seen.detection else spec.kind
    if spec.kind not in native_kinds(spec.format) and not can_become(native, spec.kind):
        yield Problem(
            path, None, None, "", f"holds {native} records ({spec.format}), not {spec.kind} records"
        )
        return
    for rows in read(seen.piece):
        yield from _check_rows(path, rows, spec, validator)


def _check_unread(path: str, seen: Recognised) -> Iterator[Problem]:
    """Of a file whose first records cannot be read, or that has none."""
    if not seen.rejects:
        yield Problem(path, None, None, "", "holds no records")
    for rows in read(seen.piece):
        for reject in rows.rejects:
            yield Problem(path, reject.record, reject.line, "", f"{reject.reason}: {reject.detail}")


def _spec(seen: Recognised, kind: RecordKind | None) -> ShapeSpec | None:
    """How to read the file; our own form where nothing is recognised but a kind is asked for."""
    if seen.detection is not None:
        native = native_kinds(seen.detection.format)
        wanted = kind or native[0]
        return ShapeSpec(seen.detection.format, wanted, seen.detection.columns)
    if kind is None or not seen.values:
        return None
    own = _OWN[kind]
    fields = [RECORD_FORMATS[name].fields for name in own]
    overlap = [sum(len(known & set(v)) for v in seen.values if isinstance(v, dict)) for known in fields]
    return ShapeSpec(own[overlap.index(max(overlap))], kind)


def _check_rows(path: str, rows: Rows, spec: ShapeSpec, validator: Any) -> Iterator[Problem]:
    unfit = shape(rows, 0, spec).rejects
    found = [(r.record, Problem(path, r.record, r.line, "", f"{r.reason}: {r.detail}")) for r in rows.rejects]
    found += [(reject.record, _problem(path, reject)) for reject in unfit]
    if validator is not None:
        refused = {reject.record for reject in unfit}
        for record, line, value in zip(rows.records, rows.lines, rows.values, strict=True):
            if record not in refused and not validator.is_valid(value):
                found += [(record, p) for p in _schema_problems(path, record, line, value, validator)]
    found.sort(key=lambda item: item[0])
    yield from (problem for _, problem in found)


def _problem(path: str, reject: Reject) -> Problem:
    """The detail of a reject of ``shape`` begins with the field's path."""
    field, _, reason = reject.detail.partition(" ")
    return Problem(path, reject.record, reject.line, "" if field == "record" else field, reason)


def _schema_problems(
    path: str, record: int, line: int | None, value: Any, validator: Any
) -> Iterator[Problem]:
    for error in validator.iter_errors(value):
        steps = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in error.instance_path)
        yield Problem(path, record, line, steps.lstrip("."), error.message[:200])
