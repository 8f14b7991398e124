"""Validate files of records: which line, which field, why.

A record is valid when a build would take it: every row goes through ``shape``, and nothing that ``shape`` takes is a problem.
With a kind (``--as sft``), ``meta`` of files in datamix's native form must also fit its published JSON Schema. One pass,
bounded memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from datamix.core.contracts import Rows
from datamix.core.errors import RecipeError, shown_name
from datamix.core.records import RecordKind
from datamix.formats import RECORD_FORMATS, ShapeSpec, can_become, native_kinds, shape
from datamix.pipeline.scan import Recognised, recognise
from datamix.read import find, read
from datamix.recipe.schemas import schema_text

_NATIVE_FORMATS: dict[RecordKind, tuple[str, ...]] = {
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
    code: str = ""  # of a record: the reason that a build would count it under

    def __str__(self) -> str:
        place = f":{self.line}" if self.line is not None else ""
        if not place and self.record is not None:
            place = f" record {self.record}"
        return f"{shown_name(self.file)}{place}: {self.field + ' ' if self.field else ''}{self.reason}"


def check(files: Sequence[str], kind: str | None = None) -> Iterator[Problem]:
    """The problems of ``files`` (paths, globs, folders) in order; ``kind``: what their records should be.

    Raises RecipeError: a path matches nothing, or ``kind`` is no kind of record. Raises DataError: a file is unreadable.
    """
    expected = next((k for k in _NATIVE_FORMATS if k == ("text" if kind == "pretrain" else kind)), None)
    if kind is not None and expected is None:
        kinds = ", ".join(_NATIVE_FORMATS)
        raise RecipeError(f"--as {kind}: there is no such kind of record. Kinds: {kinds}.")
    for path in find(files, "."):
        seen = recognise(path)
        if not seen.values and not seen.rejects:
            yield Problem(path, None, None, "", "holds no records")
        if not seen.values:
            for rows in read(seen.piece):
                yield from _check_rows(path, rows, None, None)
            continue
        spec = _spec(seen, expected)
        if spec is None:
            yield Problem(path, None, None, "", f"is in no known format: {seen.fields()}")
            continue
        native = seen.detection.kind if seen.detection else spec.kind
        if spec.kind not in native_kinds(spec.format) and not can_become(native, spec.kind):
            reason = f"holds {native} records ({spec.format}), not {spec.kind} records"
            yield Problem(path, None, None, "", reason)
            continue
        strict = expected is not None and spec.format in _NATIVE_FORMATS[spec.kind]
        meta_schema = json.loads(schema_text(spec.kind))["properties"]["meta"] if strict else True
        validator = jsonschema_rs.Draft202012Validator(meta_schema)
        for rows in read(seen.piece):
            yield from _check_rows(path, rows, spec, validator)


def _spec(seen: Recognised, kind: RecordKind | None) -> ShapeSpec | None:
    """How to read the file; the native form where no format is detected but a kind is asked for."""
    if seen.detection is not None:
        target = kind or native_kinds(seen.detection.format)[0]
        return ShapeSpec(seen.detection.format, target, seen.detection.columns)
    if kind is None:
        return None
    formats = _NATIVE_FORMATS[kind]
    fields = [RECORD_FORMATS[name].fields for name in formats]
    overlap = [sum(len(known & set(v)) for v in seen.values if isinstance(v, dict)) for known in fields]
    return ShapeSpec(formats[overlap.index(max(overlap))], kind)


def _check_rows(path: str, rows: Rows, spec: ShapeSpec | None, validator: Any) -> Iterator[Problem]:
    """The problems of a chunk in the order of its records; ``spec`` None: only what cannot be read."""
    problems = [
        (r.record, Problem(path, r.record, r.line, "", f"{r.reason}: {r.detail}", r.reason))
        for r in rows.rejects
    ]
    unfit = shape(rows, 0, spec).rejects if spec else ()
    for reject in unfit:  # its detail begins with the field's path
        field, _, reason = reject.detail.partition(" ")
        field = "" if field == "record" else field
        problems.append(
            (reject.record, Problem(path, reject.record, reject.line, field, reason, reject.reason))
        )
    refused = {reject.record for reject in unfit}
    for record, line, value in zip(rows.records, rows.lines, rows.values, strict=True):
        if validator is None or record in refused or not isinstance(value, dict) or "meta" not in value:
            continue
        for error in validator.iter_errors(value["meta"]):
            problems.append((record, Problem(path, record, line, "meta", error.message[:200], "meta")))
    problems.sort(key=lambda item: item[0])
    yield from (problem for _, problem in problems)
