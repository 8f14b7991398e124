"""Read, shape, clean: one task for each group of small files, up to 16 MiB, and for each slice of a large file.

A task leaves ``records.arrow`` (the records that fit, with their content key), ``cleaned.arrow`` (which were dropped by
which step) and ``rejects.arrow`` (what did not fit, with its original bytes). Memory: one chunk of about 8 MB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamix.clean import Step, clean
from datamix.core.contracts import Receipt, Reject, Rows, Shaped, Slice, Task
from datamix.core.hashing import content_keys, digest
from datamix.core.records import SCHEMAS, RecordKind, identity_texts
from datamix.formats import RECORD_FORMATS, FastPath, ShapeSpec, shape, together
from datamix.pipeline.grouping import group_files
from datamix.pipeline.record_rules import NO_RULES, RecordRules, apply_rules, count_thinking
from datamix.pipeline.scan import InputFile
from datamix.read import read

_VERSION = 4
_GROUP_BYTES = 16 << 20
_FILE_BYTES = 4 << 10  # a file counts at least so much: a group holds 4,096 files at most
_CHEAPNESS = 32  # reading is about so many times as fast as encoding, by which a task's weight is measured

CLEANED = pa.schema([("slice", pa.int32()), ("record", pa.int64()), ("reason", pa.string())])
REJECTS = pa.schema(
    [
        ("slice", pa.int32()),
        ("record", pa.int64()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("raw", pa.large_binary()),
    ]
)


def prepared_schema(kind: RecordKind, grouped: bool = False) -> pa.Schema:
    """Records as the cache stores them: the kind's schema, a hash of their group where asked, a 128-bit content key."""
    schema = SCHEMAS[kind]
    if grouped:
        schema = schema.append(pa.field("group", pa.uint64(), False))
    return schema.append(pa.field("key", pa.binary(16), False))


@dataclass(frozen=True)
class PrepareSpec:
    """Slices of one source, and how their records are shaped and cleaned."""

    slices: tuple[Slice, ...]
    shape: ShapeSpec
    steps: tuple[Step, ...]
    limit: int | None = None  # at most this many records of each slice
    rules: RecordRules = NO_RULES

    def key(self) -> str:
        """Content decides, never the place: the same file elsewhere is the same work."""
        shape = self.rules.shape(self.shape)
        names = "path" in shape.keep_meta
        slices = [
            replace(s, path="", state=(), options=tuple(p for p in s.options if names or p[0] != "name"))
            for s in self.slices
        ]
        asked = [self.shape, self.steps, self.limit, *([self.rules] if self.rules != NO_RULES else [])]
        return digest("prepare", _VERSION, slices, *asked)


@dataclass(frozen=True)
class PreparedSlices:
    """One prepare task, and which file each of its slices belongs to (index among the files of the source)."""

    task: Task
    files: tuple[int, ...]


def parts(
    files: Sequence[InputFile],
    asked: ShapeSpec,
    steps: tuple[Step, ...],
    limit: int | None,
    home: Path,
    rules: RecordRules = NO_RULES,
) -> list[PreparedSlices]:
    """The prepare tasks of one source, in file order; files of equal format that are small share a task.

    ``asked`` is the shape without format and columns, which are each file's. ``group_files`` says what a changed file costs: of
    its neighbours at most 16 MiB before it and 16 MiB after it.
    """
    made: list[PreparedSlices] = []
    cheapness = 1 if steps else _CHEAPNESS
    native = next(
        name for name, known in RECORD_FORMATS.items() if asked.kind in known.kinds
    )  # of empty files
    first = 0
    for (format_, columns), alike in groupby(files, key=lambda file: (file.format or native, file.columns)):
        shape = replace(asked, format=format_, columns=columns)
        run = list(alike)
        sizes = [max(_FILE_BYTES, file.num_bytes) for file in run]
        for group in group_files([file.sha256 for file in run], sizes, _GROUP_BYTES):
            pieces = [(first + i, piece) for i in group for piece in run[i].slices()]
            shared = [pieces] if len(group) > 1 else [[piece] for piece in pieces]
            weight = sum(sizes[i] for i in group) // len(shared) // cheapness + 1
            for part in shared:
                work = PrepareSpec(tuple(piece for _, piece in part), shape, steps, limit, rules)
                task = Task(f"prepare {run[0].source}", work.key(), prepare, work, home, weight)
                made.append(PreparedSlices(task, tuple(file for file, _ in part)))
        first += len(run)
    return made


def prepare(spec: PrepareSpec, folder: Path) -> dict[str, Any]:
    """Carry one task out; counts say what became of every record of every slice."""
    kind = spec.shape.kind
    tally = _Tally(len(spec.slices))
    schema = prepared_schema(kind, spec.rules.group_by is not None)
    with (
        open_ipc(folder / "records.arrow", schema) as records,
        open_ipc(folder / "cleaned.arrow", CLEANED) as cleaned,
        open_ipc(folder / "rejects.arrow", REJECTS) as rejects,
    ):
        for index, batch, rejected in _shaped(spec, tally):
            if rejected:
                rows = zip(
                    *((index, r.record, r.line, r.reason, r.detail, r.raw) for r in rejected), strict=True
                )
                columns = [pa.array(column, field.type) for column, field in zip(rows, REJECTS, strict=True)]
                rejects.write_batch(pa.RecordBatch.from_arrays(columns, schema=REJECTS))
            batch, outside = apply_rules(batch, spec.rules, spec.shape.keep_meta)
            stays = np.setdiff1d(np.arange(batch.num_rows), list(outside))
            result = clean(batch.take(pa.array(stays)) if outside else batch, kind, spec.steps)
            dropped = outside | {int(stays[row]): reason for row, reason in result.dropped.items()}
            tally.cleaned.update(dropped.values())
            tally.fixed.update(result.fixed)
            tally.thinking += count_thinking(result.batch) if kind != "text" else 0
            if dropped:
                at = sorted(dropped)
                ids = [batch.column(name).take(pa.array(at, pa.int64())) for name in ("slice", "record")]
                reasons = pa.array([dropped[i] for i in at], pa.string())
                cleaned.write_batch(pa.RecordBatch.from_arrays([*ids, reasons], schema=CLEANED))
            if result.batch.num_rows:
                keys = content_keys(identity_texts(result.batch, kind))
                whole = pa.RecordBatch.from_arrays([*result.batch.columns, keys], schema=schema)
                records.write_batch(whole)
                tally.batches.append([whole.num_rows, whole.nbytes])
    return tally.counts()


@contextmanager
def open_ipc(path: Path, schema: pa.Schema) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    """Write an Arrow IPC file batch by batch."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        yield writer


class _Tally:
    """Counts of one task, by slice where they are."""

    def __init__(self, num_slices: int) -> None:
        self.read = [0] * num_slices
        self.lines = [0] * num_slices
        self.rejected: Counter[str] = Counter()
        self.cleaned: Counter[str] = Counter()
        self.fixed: Counter[str] = Counter()
        self.batches: list[list[int]] = []
        self.thinking = 0  # records with reasoning
        self.raw_bytes = 0  # of the records as they stood, where the container has them

    def see(self, index: int, rows: Rows) -> None:
        """Count a chunk; its records and its rejects are in order, so that the last of each says how far it reaches."""
        ends = [
            (record + 1, line or 0) for record, line in zip(rows.records[-1:], rows.lines[-1:], strict=True)
        ]
        ends += [(reject.record + 1, reject.line or 0) for reject in rows.rejects[-1:]]
        self.raw_bytes += sum(map(len, rows.raws)) + sum(len(reject.raw) for reject in rows.rejects)
        if rows.taken is not None:
            ends.append((rows.taken.num_records, rows.taken.num_lines))
            self.raw_bytes += rows.taken.num_bytes
        self.read[index] = max(self.read[index], *(record for record, _ in ends))
        self.lines[index] = max(self.lines[index], *(line for _, line in ends))

    def counts(self) -> dict[str, Any]:
        plain = {"rejected_by": self.rejected, "cleaned_by": self.cleaned, "mended_by": self.fixed}
        return {
            "read": self.read,
            "lines": self.lines,
            "batches": self.batches,
            "raw_bytes": self.raw_bytes,
            "thinking": self.thinking,
            **{k: dict(sorted(v.items())) for k, v in plain.items()},
        }


def _shaped(spec: PrepareSpec, tally: _Tally) -> Iterator[tuple[int, pa.RecordBatch, list[Reject]]]:
    asked = spec.rules.shape(spec.shape)
    quick = FastPath(asked)
    for index, piece in enumerate(spec.slices):
        for rows in read(piece, limit=spec.limit, take=partial(quick, index)):
            shaped = shape(rows, index, asked)
            if rows.taken is not None:
                shaped = Shaped(together(rows.taken.batch, shaped.batch), shaped.rejects)
            rejected = [*rows.rejects, *shaped.rejects]
            tally.see(index, rows)
            tally.rejected.update(r.reason for r in rejected)
            yield index, shaped.batch, sorted(rejected, key=lambda r: r.record)


@dataclass(frozen=True)
class Window:
    """Batches ``start..stop`` of one prepared file: the unit of encode and sign tasks."""

    prepared: Receipt
    start: int
    stop: int
    num_rows: int
    num_bytes: int

    @property
    def path(self) -> str:
        return str(self.prepared.folder / "records.arrow")

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The records, memory-mapped."""
        yield from read_batches(self.path, self.start, self.stop)


def windows(receipts: Sequence[Receipt], window_bytes: int = 16 << 20) -> list[Window]:
    """Cut prepared files into windows of about 16 MiB, by their batches: the same cuts on every machine."""
    made: list[Window] = []
    for receipt in receipts:
        batches = receipt.counts["batches"]
        start = rows = size = 0
        for index, (num_rows, num_bytes) in enumerate(batches):
            rows, size = rows + num_rows, size + num_bytes
            if size >= window_bytes or index == len(batches) - 1:
                made.append(Window(receipt, start, index + 1, rows, size))
                start, rows, size = index + 1, 0, 0
    return made


def read_batches(path: str, start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
    """Record batches ``start..stop`` of an Arrow IPC file, memory-mapped."""
    with pa.memory_map(path) as source, pa.ipc.open_file(source) as reader:
        for index in range(start, reader.num_record_batches if stop is None else stop):
            yield reader.get_batch(index)
