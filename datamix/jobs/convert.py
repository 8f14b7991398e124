"""One file of records in another format: read, shape, write, a chunk at a time.

Nothing is lost by default: fields that no format knows are carried over, and what the target cannot hold stops the conversion
unless it may be lossy. The target appears only when it is complete.

The container follows the target's name: JSON Lines, JSON, CSV, TSV, Parquet; gzip, zstd, xz, bz2, lz4 of text. Tables hold
less than JSON: in a CSV every cell is text, so lists and objects are written as JSON text where a reader parses them, and
conversations of one turn as that turn's text. In Parquet, calls and tools are JSON text, because a column of objects with
different fields would give each the fields of all. What still cannot be held is counted as lost.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lz4.frame
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from datamix.core.contracts import Reject
from datamix.core.errors import DataError, RecipeError, nearest, shown_name
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
from datamix.pipeline.scan import recognise
from datamix.read import find, read

OutputRow = dict[str, Any]
_PARSED = {"messages", "conversations", "history", "tools", "chosen_messages", "rejected_messages"}
_PARSED |= {"completions", "instances", "responses", "chat_template_kwargs", "rewards_armorm"}
_EMPTY_IS_NONE = {"system", "input", "history", "tools", "chat_template_kwargs", "reasoning", "margin"}
_TURN_FIELDS = ("prompt", "completion", "chosen", "rejected")
_NAMES = "jsonl, json, csv, tsv or parquet (jsonl, json, csv and tsv also with .gz, .zst, .xz, .bz2 or .lz4)"


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
        nums = [
            f"{num:,} {noun}{'s' * (num != 1)}"
            for num, noun in ((self.num_records, "record"), (self.num_rows, "row"))
        ]
        first = f"{nums[0]} of {shown_name(self.source)} ({self.format_from}) -> {nums[1]} of {shown_name(str(self.target))} ({self.format_to})"
        return "\n".join([first, *(f"  lost: {what}: {num:,}" for what, num in self.lost.items())])


def convert(source: str, target: str, to: str, lossy: bool = False, overwrite: bool = False) -> Converted:
    """Write the records of one file in format ``to``; the target's name says jsonl, json, csv, tsv or parquet.

    Raises RecipeError: an unknown format, a kind that ``to`` cannot hold, losses without ``lossy``, a target that is the
    source or exists without ``overwrite``. Raises DataError: the source is unreadable or in no known format.
    """
    if to not in RECORD_FORMATS:
        near = nearest(to, list(RECORD_FORMATS))
        hint = f" Did you mean {near}?" if near else ""
        raise RecipeError(f"--to {to}: there is no such format.{hint} Formats: {', '.join(RECORD_FORMATS)}.")
    paths = find([source], ".")
    if len(paths) != 1:
        raise RecipeError(f"{shown_name(source)}: is {len(paths):,} files; convert takes one at a time.")
    check_outputs([Path(target)], paths, overwrite)
    seen = recognise(paths[0])
    if not seen.values and not seen.rejects:
        raise DataError(f"{shown_name(source)}: it holds no records, so there is nothing to convert.")
    if not seen.values:
        raise DataError(
            f"{shown_name(source)}: none of its first records can be read; {seen.fields()}. Fix the file first."
        )
    if seen.detection is None:
        raise DataError(
            f"{shown_name(source)}: its records are in no known format: {seen.fields()}. Rename its fields to those of a known "
            "format, or build from it with `columns:` in a recipe."
        )
    native = seen.detection.format
    kind, lost_by_kind = _target_kind(native, to)
    spec = ShapeSpec(native, kind, seen.detection.columns, keep_meta=(EVERYTHING,), media="keep")
    num_records, lost = 0, Counter[str]()
    rejects: list[Reject] = []  # the first few
    with complete_files([Path(target)], overwrite) as (draft,):
        with open_writer(draft, target, to) as writer:
            for rows in read(seen.piece):
                shaped = shape(rows, 0, spec)
                num_records += len(rows.values) + len(rows.rejects)
                if rejected := sorted([*rows.rejects, *shaped.rejects], key=lambda reject: reject.record):
                    lost["records that do not fit their own format (left out)"] += len(rejected)
                    rejects += rejected[: 5 - len(rejects)]
                written, lost_here = unshape_counted(shaped.batch, kind, to)
                lost.update(lost_here)
                writer.write(written)
        lost.update(writer.lost)
        if lost_by_kind:
            lost[lost_by_kind] += num_records
        if lost and not lossy:
            losses = "; ".join(f"{what}: {num:,}" for what, num in sorted(lost.items()))
            examples = "; ".join(
                f"{f'record {r.record}' if r.line is None else f'line {r.line}'}: {r.detail}" for r in rejects
            )
            first = f" First of those that do not fit: {examples}." if examples else ""
            raise RecipeError(
                f"{shown_name(source)} cannot be written as {to} without loss: {losses}.{first} Allow it with --lossy, or choose another format."
            )
    return Converted(source, target, native, to, num_records, writer.num_rows, dict(sorted(lost.items())))


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


class RowWriter(Protocol):
    """Takes rows in chunks; ``lost`` counts what the container could not hold."""

    num_rows: int
    lost: Counter[str]

    def write(self, rows: list[OutputRow]) -> None: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def open_writer(path: Path, name: str, format: str) -> Iterator[RowWriter]:
    """A writer to ``path`` of the container that ``name`` says. Raises RecipeError: the name says none."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes[-2:]]
    codec = suffixes.pop() if suffixes and suffixes[-1] in _OPENERS else ""
    container = suffixes[-1] if suffixes else ""
    if container == ".parquet" and not codec:
        writer: RowWriter = _Parquet(path)
    elif container in (".jsonl", ".ndjson", ".json", ".csv", ".tsv"):
        stream = io.TextIOWrapper(_OPENERS[codec](path, "wb"), encoding="utf-8", newline="")
        if container in (".csv", ".tsv"):
            writer = _Csv(stream, path, "," if container == ".csv" else "\t", format)
        else:
            writer = _Json(stream, lines=container != ".json")
    else:
        raise RecipeError(f"{name}: its name does not say what to write. Known are {_NAMES}.")
    with contextlib.closing(writer):
        yield writer


def _gzip(path: Path, mode: str) -> Any:
    """gzip without a time and a name, so that equal rows give equal bytes."""
    stream = open(path, mode)  # noqa: SIM115 - closed with the archive, as its `myfileobj`
    archive = gzip.GzipFile("", mode, fileobj=stream, mtime=0)
    archive.myfileobj = stream  # type: ignore[assignment]
    return archive


_OPENERS: dict[str, Any] = {
    "": open,
    ".gz": _gzip,
    ".zst": zstandard.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".lz4": lz4.frame.open,
}


def _dumps(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class _Json:
    """JSON Lines, or one array with a record a line."""

    def __init__(self, stream: io.TextIOWrapper, lines: bool) -> None:
        self.num_rows = 0
        self.lost: Counter[str] = Counter()
        self._stream = stream
        self._lines = lines

    def write(self, rows: list[OutputRow]) -> None:
        for row in rows:
            if not self._lines:
                self._stream.write(",\n" if self.num_rows else "[\n")
            self._stream.write(_dumps(row) + "\n" * self._lines)
            self.num_rows += 1

    def close(self) -> None:
        if not self._lines:
            self._stream.write("\n]\n" if self.num_rows else "[]\n")
        self._stream.close()


class _Waiting:
    """Rows as JSON Lines in a file beside the target, removed once they were read."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".rows")
        self._stream = self._path.open("w", encoding="utf-8")

    def add(self, row: OutputRow) -> None:
        self._stream.write(_dumps(row) + "\n")

    def rows(self) -> Iterator[OutputRow]:
        self._stream.close()
        try:
            with self._path.open(encoding="utf-8", newline="\n") as stream:
                for line in stream:
                    yield json.loads(line)
        finally:
            self._path.unlink()


class _Csv:
    """Comma or tab separated. The header is known after the last row: until then rows wait in a file beside the target."""

    def __init__(self, stream: io.TextIOWrapper, path: Path, delimiter: str, format: str) -> None:
        self.num_rows = 0
        self.lost: Counter[str] = Counter()
        self._stream = stream
        self._delimiter = delimiter
        with_turns = format in ("preference", "prompt_completion", "prompt", "kto")
        self._turn_fields = _TURN_FIELDS if with_turns else ()
        self._waiting = _Waiting(path)
        self._num_cells: Counter[str] = Counter()  # in the order in which fields appear

    def write(self, rows: list[OutputRow]) -> None:
        for row in rows:
            cells: dict[str, str] = {}
            for field, value in row.items():
                turns = field in self._turn_fields
                if isinstance(value, str):
                    cells[field] = value
                    continue
                if turns and isinstance(value, list) and [set(v) for v in value] == [{"role", "content"}]:
                    cells[field] = str(value[0]["content"])
                    continue
                if turns:
                    self.lost[f"turns in {field} (CSV holds one text)"] += 1
                elif field not in _PARSED and not isinstance(value, (bool, int, float)):
                    self.lost[f"the structure of {field} (CSV holds text)"] += 1
                elif field not in _PARSED and field not in ("label", "margin"):
                    self.lost[f"that {field} is not text (CSV holds text)"] += 1
                cells[field] = _dumps(value)
            self._num_cells.update(cells.keys())
            self._waiting.add(cells)
        self.num_rows += len(rows)

    def close(self) -> None:
        with contextlib.closing(self._stream):
            for field, num in self._num_cells.items():
                if num < self.num_rows and field not in _EMPTY_IS_NONE:
                    self.lost[f"where {field} is absent (CSV holds an empty text)"] += self.num_rows - num
            table = csv.writer(self._stream, delimiter=self._delimiter, lineterminator="\n")
            if self._num_cells:
                table.writerow(self._num_cells)
            for cells in self._waiting.rows():
                table.writerow([cells.get(field, "") for field in self._num_cells])


class _Parquet:
    """Parquet with the schema of all rows; until it is known they wait in a file beside the target."""

    def __init__(self, path: Path) -> None:
        self.num_rows = 0
        self.lost: Counter[str] = Counter()
        self._path = path
        self._waiting = _Waiting(path)
        self._schema = pa.schema([])

    def write(self, rows: list[OutputRow]) -> None:
        for row in rows:
            for field, value in row.items():
                if field in ("tools", "chat_template_kwargs") and not isinstance(value, str):
                    row[field] = _dumps(value)
                elif isinstance(value, dict) and not {"from", "value"} >= value.keys():
                    self.lost[f"the structure of {field} (written as JSON text)"] += 1
                    row[field] = _dumps(value)
                elif isinstance(value, list):
                    turns = [turn for turn in value if isinstance(turn, dict)]
                    for call in (call for turn in turns for call in turn.get("tool_calls") or ()):
                        if not isinstance(call["function"]["arguments"], str):
                            call["function"]["arguments"] = _dumps(call["function"]["arguments"])
            self._waiting.add(row)
        fields = dict.fromkeys(field for row in rows for field in row)
        table = pa.table({field: pa.array([row.get(field) for row in rows]) for field in fields})
        self._schema = pa.unify_schemas([self._schema, table.schema], promote_options="permissive")
        self.num_rows += len(rows)

    def close(self) -> None:
        with pq.ParquetWriter(self._path, self._schema, compression="zstd") as writer:
            waiting = self._waiting.rows()
            while chunk := list(itertools.islice(waiting, 1024)):
                writer.write_table(pa.Table.from_pylist(chunk, self._schema))
