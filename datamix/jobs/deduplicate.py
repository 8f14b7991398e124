"""Deduplicate files on their own: the engine of a build, without a tokenizer or a recipe.

Two passes. The first reads every file as records (or one named column as text), signs them and spools records and signatures
beside the target; then all are decided at once; the second pass copies the remaining records in order, byte for byte where the
container has lines. What cannot be read as a record stays in the file and is counted.

Files are sources: of two duplicates, the one in the file named first stays. Memory: a few bytes a record.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.core.contracts import Rows, Slice
from datamix.core.errors import DataError, RecipeError, mask_url, shown_name
from datamix.core.records import SCHEMAS, RecordKind
from datamix.dedup import Decision, DedupeSpec, Signed, decide, sign
from datamix.formats import ShapeSpec, native_kinds, shape
from datamix.jobs.output_files import check_outputs, complete_files
from datamix.pipeline.scan import Recognised, recognise
from datamix.read import find, read

_METHODS = np.array(["", "exact", "near"])
_COLUMNAR = ("parquet", "arrow", "arrow_stream")
_COMPRESSED = (".gz", ".zst", ".bz2", ".lz4")  # written so where the name asks for it
_WIDE = ("utf-16", "utf-32")
_SUFFIXES = {
    ".jsonl": ("jsonl",),
    ".ndjson": ("jsonl",),
    ".json": ("json", "jsonl"),
    ".csv": ("csv",),
    ".tsv": ("csv",),
    ".parquet": ("parquet",),
    ".arrow": ("arrow", "arrow_stream"),
}
_AUDIT = pa.schema(
    {
        "file": pa.string(),
        "record": pa.int64(),
        "method": pa.string(),
        "kept_file": pa.string(),
        "kept_record": pa.int64(),
        "similarity": pa.float32(),
    }
)


@dataclass(frozen=True)
class FileCount:
    """What happened to the records of one file."""

    path: str
    num_records: int
    num_exact: int
    num_near: int
    num_unread: int  # no records of the detected format; they stay

    def __str__(self) -> str:
        num_stay = self.num_records - self.num_exact - self.num_near
        unread = f", {self.num_unread:,} that are no records stay" if self.num_unread else ""
        return (
            f"{shown_name(self.path)}: {num_stay:,} of {self.num_records:,} stay "
            f"({self.num_exact:,} exact and {self.num_near:,} near duplicates removed{unread})"
        )


@dataclass(frozen=True)
class Deduplication:
    """The counts of each file, and the paths of the output and the audit."""

    files: tuple[FileCount, ...]
    target: Path
    audit: Path  # a row a removed record: which record stays instead, by which method, at which similarity

    def __str__(self) -> str:
        return "\n".join([*map(str, self.files), f"Wrote {self.target} and {self.audit}"])


@dataclass(frozen=True)
class _Input:
    """One file, and how it is read."""

    seen: Recognised
    spec: ShapeSpec | None  # None: the text of one column
    column: str
    kind: RecordKind

    @classmethod
    def open(cls, path: str, column: str | None) -> _Input:
        seen = recognise(path)
        if column is not None:
            if seen.values and not any(isinstance(v, dict) and column in v for v in seen.values):
                raise RecipeError(f"{shown_name(str(path))}: no column {column!r}: {seen.fields()}.")
            return cls(seen, None, column, "text")
        if seen.detection is None:
            if not seen.values:
                raise DataError(
                    f"{shown_name(str(path))}: {seen.fields()}, so there is nothing to deduplicate."
                )
            raise DataError(
                f"{shown_name(str(path))}: its records are in no known format: {seen.fields()}. Name the column to compare with --column."
            )
        kind = native_kinds(seen.detection.format)[0]
        return cls(seen, ShapeSpec(seen.detection.format, kind, seen.detection.columns), "", kind)

    @property
    def plain_name(self) -> str:
        """The name in a folder: compressed as before, if that can be written."""
        path = Path(self.seen.path)
        writable = self.seen.piece.container not in _COLUMNAR and path.suffix in _COMPRESSED
        recompressed = self.seen.piece.compression and path.suffix != ".parquet" and not writable
        return path.stem if recompressed else path.name

    def spool(self, folder: Path, number: int, spec: DedupeSpec) -> tuple[NDArray[np.int64], Signed]:
        """Write its records (or texts of the column) and their signatures; return each one's ordinal in the file."""
        ordinals: list[int] = []
        paths = folder / f"{number}.records.arrow", folder / f"{number}.signatures.arrow"
        writers: list[pa.ipc.RecordBatchFileWriter] = []
        for rows in read(self.seen.piece):
            records = shape(rows, 0, self.spec).batch if self.spec else _texts(rows, self.column)
            if not len(records):
                continue
            ordinals += records.column("record").to_pylist()
            batches = records, sign(records, self.kind, spec)
            if not writers:
                writers = [
                    pa.ipc.new_file(str(path), b.schema) for path, b in zip(paths, batches, strict=True)
                ]
            for writer, batch in zip(writers, batches, strict=True):
                writer.write_batch(batch)
        for writer in writers:
            writer.close()
        files, signatures = (((str(path),) if writers else ()) for path in paths)
        return np.array(ordinals, np.int64), Signed(self.seen.path, signatures, files, self.kind, number)


def _texts(rows: Rows, column: str) -> pa.RecordBatch:
    """The texts of one column as records of kind text."""
    texts = {
        record: value[column]
        for record, value in zip(rows.records, rows.values, strict=True)
        if isinstance(value, dict) and isinstance(value.get(column), str)
    }
    columns = {"record": [*texts], "text": [*texts.values()]}
    columns |= {"slice": [0] * len(texts), "meta": [None] * len(texts)}
    return pa.RecordBatch.from_pydict({n: columns[n] for n in SCHEMAS["text"].names}, SCHEMAS["text"])


def deduplicate(
    inputs: Sequence[str],
    target: str,
    spec: DedupeSpec,
    column: str | None = None,
    overwrite: bool = False,
) -> Deduplication:
    """Write the records of ``inputs`` without their duplicates to ``target``, and the audit beside it.

    One file becomes a file; several become a folder of files of the same names, or one file where ``target`` has a
    suffix and all are of one container. ``column``: compare the text of that column instead of whole records.
    Raises RecipeError: nothing matches; an output is an input, exists without ``overwrite``, or cannot hold the records.
    Raises DataError: a file is unreadable.
    """
    paths = list(dict.fromkeys(path for name in inputs for path in find([name], ".")))  # in the order named
    output = Path(target)
    folder = None if output.suffix else output
    plain = output.with_suffix("") if output.suffix in _COMPRESSED else output
    audit = folder / "removed.parquet" if folder else plain.with_name(plain.stem + ".removed.parquet")
    check_outputs([audit] if folder else [audit, output], paths, overwrite, folder)
    files = [_Input.open(path, column) for path in paths]
    targets = _targets(files, output)
    outputs = [audit, *dict.fromkeys(targets)]  # the audit first: every removed record can be looked up
    check_outputs(outputs, paths, overwrite, folder)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with complete_files(outputs, overwrite) as drafts:
        spool = drafts[0].with_name(drafts[0].name + ".spool")
        spool.mkdir()
        spooled = [file.spool(spool, number, spec) for number, file in enumerate(files)]
        ordinals = [known for known, _ in spooled]
        decisions = decide([source for _, source in spooled], spec)
        shutil.rmtree(spool)
        draft_of = dict(zip(outputs, drafts, strict=True))
        removed = []  # of records of a file that give several (pairs of one prompt), only those removed entirely
        for known, decision in zip(ordinals, decisions, strict=True):
            stays = decision.fate == 0
            removed.append(~stays & ~np.isin(known, known[stays]))
        totals = _copy(
            files,
            [draft_of[path] for path in targets],
            [k[r] for k, r in zip(ordinals, removed, strict=True)],
        )
        pq.write_table(_audit(paths, ordinals, decisions, removed), draft_of[audit])
    counts = []
    for path, known, decision, mask, total in zip(paths, ordinals, decisions, removed, totals, strict=True):
        records, first = np.unique(known, return_index=True)
        fates = decision.fate[first][np.isin(records, known[mask])]
        exact, near = (int((fates == code).sum()) for code in (1, 2))
        counts.append(FileCount(path, total, exact, near, total - len(records)))
    return Deduplication(tuple(counts), output, audit)


def _targets(files: Sequence[_Input], target: Path) -> list[Path]:
    """The output of each file. Raises RecipeError where a name promises what is not written."""
    if target.suffix:
        containers = sorted({file.seen.piece.container for file in files})
        if len(files) > 1 and (len(containers) > 1 or containers[0] in ("text", "csv", *_COLUMNAR)):
            raise RecipeError(
                f"{target}: {len(files)} files ({', '.join(containers)}) do not go into one. Name a folder instead."
            )
        targets = [target] * len(files)
    else:
        targets = [target / file.plain_name for file in files]
        if len(set(targets)) < len(targets):
            raise RecipeError(
                f"{target}: two of the files have the same name. Deduplicate them into one file."
            )
    for file, path in zip(files, targets, strict=True):
        source, container = file.seen.path, file.seen.piece.container
        if path.suffix == ".xz" or (container in _COLUMNAR and path.suffix in _COMPRESSED):
            raise RecipeError(
                f"{path}: {source} is not written as {path.suffix}. Name it {path.with_suffix('').name}."
            )
        plain = path.with_suffix("") if path.suffix in _COMPRESSED else path
        same_suffix = plain.suffix in Path(source).suffixes
        if not same_suffix and container not in _SUFFIXES.get(plain.suffix, (container,)):
            name = plain.with_suffix("").name + Path(file.plain_name).suffix
            raise RecipeError(
                f"{path}: {source} is {container} and stays {container}. Name it {name}, or deduplicate into a folder."
            )
    return targets


def _copy(
    files: Sequence[_Input], targets: Sequence[Path], removed: Sequence[NDArray[np.int64]]
) -> list[int]:
    """Copy the remaining records file by file, several inputs of one target in sequence; return the records read of each."""
    totals: list[int] = []
    writer: RecordCopier | None = None
    for number, (file, target, ordinals) in enumerate(zip(files, targets, removed, strict=True)):
        piece = file.seen.piece
        if piece.container in _COLUMNAR:
            totals.append(copy_columns(piece, target, ordinals))
            continue
        if writer is None or writer.path != target:
            writer = RecordCopier(target, piece)
        totals.append(writer.copy(read(piece), set(ordinals.tolist())))
        if number + 1 == len(files) or targets[number + 1] != target:
            writer.close()
    return totals


def copy_columns(piece: Slice, target: Path, removed: NDArray[np.int64]) -> int:
    """Copy a Parquet or Arrow file without some rows, its schema unchanged; return the rows read."""
    total = 0
    with pa.OSFile(piece.path, "rb") as stream:
        if piece.container == "parquet":
            parquet = pq.ParquetFile(stream)
            batches, schema = parquet.iter_batches(), parquet.schema_arrow
            writer = pq.ParquetWriter(target, schema, compression="zstd")
        elif piece.container == "arrow":
            file = pa.ipc.open_file(stream)
            batches, schema = (file.get_batch(i) for i in range(file.num_record_batches)), file.schema
            writer = pa.ipc.new_file(str(target), schema)
        else:
            batches = pa.ipc.open_stream(stream)
            writer = pa.ipc.new_stream(str(target), batches.schema)
        with closing(writer):
            for batch in batches:
                rows = np.arange(total, total + len(batch))
                writer.write_batch(batch.filter(pa.array(~np.isin(rows, removed))))
                total += len(batch)
    return total


class RecordCopier:
    """A text file that records are copied to, compressed as its suffix says (.gz, .zst, .bz2, .lz4).

    JSON Lines, JSON and text stay byte for byte; tables are written as UTF-8.
    """

    def __init__(self, path: Path, piece: Slice) -> None:
        self.path = path
        self._piece = piece
        self._stream = pa.output_stream(str(path), compression="detect", buffer_size=1 << 20)
        self._num_written = 0

    def copy(self, chunks: Iterable[Rows], removed: set[int]) -> int:
        """Copy all but the records in ``removed``; return how many records were read, broken ones included."""
        container, total = self._piece.container, 0
        end = b"\n" if container in ("csv", "jsonl", "lines") else b""
        for rows in chunks:
            records = [*zip(rows.records, rows.raws, rows.values, strict=True)]
            records += [(reject.record, reject.raw, None) for reject in rows.rejects]
            total += len(records)
            for record, raw, value in sorted(records, key=lambda item: item[0]):
                if record in removed:
                    continue
                if container == "csv" and isinstance(value, dict):
                    text = io.StringIO(newline="")
                    delimiter = dict(self._piece.options).get("delimiter", ",")
                    table = csv.writer(text, delimiter=delimiter, lineterminator="\n")
                    if not self._num_written:
                        table.writerow(list(value))
                    table.writerow(["" if cell is None else cell for cell in value.values()])
                    raw = text.getvalue().encode().removesuffix(b"\n")
                elif value is not None and container != "csv" and self._piece.encoding.startswith(_WIDE):
                    raw = orjson.dumps(value)
                if container == "json":
                    raw = (b",\n" if self._num_written else b"[\n") + raw
                self._stream.write(raw + end)
                self._num_written += 1
        return total

    def close(self) -> None:
        if self._piece.container == "json":
            self._stream.write(b"\n]\n" if self._num_written else b"[]\n")
        self._stream.close()


def _audit(
    paths: Sequence[str],
    ordinals: Sequence[NDArray[np.int64]],
    decisions: Sequence[Decision],
    removed: Sequence[NDArray[np.bool_]],
) -> pa.Table:
    """A row for each removed record."""
    names = [mask_url(path) for path in paths]
    rows: list[tuple[object, ...]] = []
    for name, known, decision, mask in zip(names, ordinals, decisions, removed, strict=True):
        methods = _METHODS[decision.fate[mask]].tolist()
        sources, records = decision.kept_source[mask].tolist(), decision.kept_record[mask].tolist()
        kept = [(names[s], int(ordinals[s][r])) for s, r in zip(sources, records, strict=True)]
        similarity = decision.similarity[mask].tolist()
        rows += [
            (name, record, method, *of, alike)
            for record, method, of, alike in zip(known[mask].tolist(), methods, kept, similarity, strict=True)
        ]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * len(_AUDIT)
    return pa.table(dict(zip(_AUDIT.names, columns, strict=True)), _AUDIT)
