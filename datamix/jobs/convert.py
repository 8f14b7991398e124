"""One file of records in another format: read, shape, unshape, write, a chunk at a time.

Nothing is lost unasked: fields that no format knows travel along, and what the target cannot hold stops the conversion
unless it is told to be lossy. The target appears only when it is whole.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamix.core.contracts import Reject
from datamix.core.errors import DataError, RecipeError, mask_url
from datamix.core.records import RecordKind
from datamix.formats import (
    EVERYTHING,
    RECORD_FORMATS,
    ShapeSpec,
    can_become,
    native_kinds,
    shape,
    unshape_counted,
)
from datamix.jobs.output_files import check_outputs, complete_files
from datamix.jobs.row_writers import open_writer
from datamix.pipeline.recognise import Recognised, recognise
from datamix.read import find, read


@dataclass(frozen=True)
class Converted:
    """What a conversion did."""

    source: str
    target: str
    format_from: str
    format_to: str
    num_records: int  # read
    num_rows: int  # written
    lost: dict[str, int]  # what was lost -> records

    def __str__(self) -> str:
        lines = [
            f"{_counted(self.num_records, 'record')} of {mask_url(self.source)} ({self.format_from}) "
            f"-> {_counted(self.num_rows, 'row')} of {self.target} ({self.format_to})"
        ]
        lines += [f"  lost: {what}: {num:,}" for what, num in self.lost.items()]
        return "\n".join(lines)


def _counted(num: int, what: str) -> str:
    return f"{num:,} {what}{'s' * (num != 1)}"


def convert(source: str, target: str, to: str, lossy: bool = False, overwrite: bool = False) -> Converted:
    """Write the records of one file in format ``to``; the target's name says jsonl, json, csv, tsv or parquet.

    Raises RecipeError: an unknown format, a kind that ``to`` cannot hold, losses without ``lossy``, a target that is the source or
    exists without ``overwrite``. Raises DataError:
    the source is unreadable or in no known format.
    """
    if to not in RECORD_FORMATS:
        near = difflib.get_close_matches(to, RECORD_FORMATS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise RecipeError(f"--to {to}: there is no such format.{meant} Formats: {', '.join(RECORD_FORMATS)}.")
    paths = find([source], ".")
    if len(paths) != 1:
        raise RecipeError(f"{source}: is {len(paths):,} files; convert takes one at a time.")
    check_outputs([Path(target)], paths, overwrite)
    seen = recognise(paths[0])
    if not seen.values and not seen.rejects:
        raise DataError(f"{source}: it holds no records, so there is nothing to convert.")
    if seen.detection is None:
        raise DataError(
            f"{source}: its records are in no known format: {seen.fields()}. Rename its fields to those of a known "
            "format, or build from it with `columns:` in a recipe."
        )
    native = seen.detection.format
    kind, lost = _target_kind(native, to)
    spec = ShapeSpec(native, kind, seen.detection.columns, keep_meta=(EVERYTHING,))
    work = _Conversion(seen, spec, to, Counter(), [], Counter())
    with complete_files([Path(target)], overwrite) as (draft,):
        with open_writer(draft, target, to) as writer:
            for rows in work.rows():
                writer.write(rows)
        work.lost.update(writer.lost)
        if lost:
            work.lost[lost] += work.counts["records"]
        lost_all = dict(sorted(work.lost.items()))
        if lost_all and not lossy:
            raise RecipeError(_refusal(source, to, lost_all, work.rejects))
    return Converted(source, target, native, to, work.counts["records"], writer.num_rows, lost_all)


@dataclass
class _Conversion:
    seen: Recognised
    spec: ShapeSpec
    to: str
    lost: Counter[str]
    rejects: list[Reject]  # the first few
    counts: Counter[str]

    def rows(self) -> Iterator[list[dict[str, Any]]]:
        """The rows of the target, a chunk at a time; losses are counted on the way."""
        for rows in read(self.seen.piece):
            shaped = shape(rows, 0, self.spec)
            rejected = sorted([*rows.rejects, *shaped.rejects], key=lambda reject: reject.record)
            self.counts["records"] += len(rows.values) + len(rows.rejects)
            if rejected:
                self.lost["records that do not fit their own format (left out)"] += len(rejected)
                self.rejects += rejected[: 5 - len(self.rejects)]
            written, lost = unshape_counted(shaped.batch, self.spec.kind, self.to)
            self.lost.update(lost)
            yield written


def _target_kind(native: str, to: str) -> tuple[RecordKind, str]:
    """The kind that both formats have, or that the first can become; and what the change of kind loses."""
    kinds = native_kinds(to)
    for kind in native_kinds(native):
        if kind in kinds:
            return kind, ""
    kind_from = native_kinds(native)[0]
    for kind in kinds:
        if can_become(kind_from, kind):
            return kind, "the worse answers" if kind_from == "preference" and kind == "sft" else "the answers"
    raise RecipeError(
        f"--to {to}: holds {kinds[0]} records, and {native} rows are {kind_from} records, which cannot become that. "
        f"Formats for them: {', '.join(name for name, f in RECORD_FORMATS.items() if kind_from in f.kinds)}."
    )


def _refusal(source: str, to: str, lost: dict[str, int], rejects: list[Reject]) -> str:
    named = "; ".join(f"{what}: {num:,}" for what, num in lost.items())
    examples = "; ".join(f"{_place(r)}: {r.detail}" for r in rejects)
    told = f" First of those that do not fit: {examples}." if examples else ""
    return f"{source} cannot be written as {to} without loss: {named}.{told} Allow it with --lossy, or choose another format."


def _place(reject: Reject) -> str:
    return f"line {reject.line}" if reject.line is not None else f"record {reject.record}"
