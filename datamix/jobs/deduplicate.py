"""Deduplicate files on their own: the engine of a build, without a tokenizer or a recipe.

Two passes. The first reads every file as records (or one named column as text), signs them and spools records and signatures beside
the target; then all are decided at once; the second pass copies the records that stay, in order, as they stood: the bytes of
the line where the container has lines. What cannot be read as a record stays in the file and is counted.

Files are sources: of two duplicates the one in the file named first stays. Memory: a few bytes a record.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.core.contracts import Rows
from datamix.core.errors import DataError, RecipeError, mask_url
from datamix.core.records import SCHEMAS, RecordKind
from datamix.dedup import Decision, DedupeSpec, Signed, decide, sign
from datamix.formats import ShapeSpec, native_kinds, shape
from datamix.jobs.output_files import check_outputs, complete_files
from datamix.jobs.row_writers import KeptWriter, copied_columns
from datamix.pipeline.recognise import Recognised, recognise
from datamix.read import find, read

_METHODS = np.array(["", "exact", "near"])
_COLUMNAR = ("parquet", "arrow", "arrow_stream")
_COMPRESSED = (".gz", ".zst", ".bz2", ".lz4")  # what is written so where the name asks for it
_SUFFIXES = {
    ".jsonl": ("jsonl",),
    ".ndjson": ("jsonl",),
    ".json": ("json", "jsonl"),
    ".csv": ("csv",),
    ".tsv": ("csv",),
    ".parquet": ("parquet",),
    ".arrow": ("arrow", "arrow_stream"),
}


@dataclass(frozen=True)
class FileCount:
    """What happened to the records of one file."""

    path: str
    num_records: int
    num_exact: int
    num_near: int
    num_unread: int  # no records of the detected format; they stay

    def __str__(self) -> str:
        kept = self.num_records - self.num_exact - self.num_near
        unread = f", {self.num_unread:,} that are no records stay" if self.num_unread else ""
        return (
            f"{mask_url(self.path)}: {kept:,} of {self.num_records:,} stay "
            f"({self.num_exact:,} exact and {self.num_near:,} near duplicates removed{unread})"
        )


@dataclass(frozen=True)
class Deduplication:
    """What was read, and where the rest and the audit stand."""

    files: tuple[FileCount, ...]
    target: Path
    audit: Path  # one row for each removed record: who stayed instead, by which method, at which similarity

    def __str__(self) -> str:
        return "\n".join([*map(str, self.files), f"Wrote {self.target} and {self.audit}"])


@dataclass(frozen=True)
class _Input:
    """One file: how it is read, and its spooled records."""

    seen: Recognised
    spec: ShapeSpec | None  # None: the text of one column
    column: str
    kind: RecordKind


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
    Raises RecipeError: nothing matches, an output is an input, exists without ``overwrite``, or cannot hold them. Raises DataError: a file is unreadable.
    """
    paths = list(dict.fromkeys(path for name in inputs for path in find([name], ".")))  # in the order named
    folder = None if Path(target).suffix else Path(target)
    audit = _audit_path(Path(target), whole=folder is None)
    check_outputs([audit] if folder else [audit, Path(target)], paths, overwrite, folder)
    files = [_input(path, column) for path in paths]
    targets = _targets(files, Path(target))
    outputs = [
        audit,
        *dict.fromkeys(targets),
    ]  # the audit first: records that are gone can always be looked up
    check_outputs(outputs, paths, overwrite, folder)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with complete_files(outputs, overwrite) as drafts:
        spool = drafts[0].with_name(drafts[0].name + ".spool")
        spool.mkdir()
        ordinals, sources = [], []
        for number, file in enumerate(files):
            known, source = _spooled(file, spool, number, spec)
            ordinals.append(known)
            sources.append(source)
        decisions = decide(sources, spec)
        shutil.rmtree(spool)
        draft_of = dict(zip(outputs, drafts, strict=True))
        counts = _copy(files, [draft_of[path] for path in targets], ordinals, decisions)
        pq.write_table(_audit(paths, ordinals, decisions), draft_of[audit])
    return Deduplication(tuple(counts), Path(target), audit)


def _input(path: str, column: str | None) -> _Input:
    seen = recognise(path)
    if column is not None:
        if seen.values and not any(isinstance(v, dict) and column in v for v in seen.values):
            raise RecipeError(f"{path}: no column {column!r}: {seen.fields()}.")
        return _Input(seen, None, column, "text")
    if seen.detection is None:
        if not seen.values:
            raise DataError(f"{path}: {seen.fields()}, so there is nothing to deduplicate.")
        raise DataError(
            f"{path}: its records are in no known format: {seen.fields()}. Name the column to compare with --column."
        )
    kind = native_kinds(seen.detection.format)[0]
    return _Input(seen, ShapeSpec(seen.detection.format, kind, seen.detection.columns), "", kind)


def _targets(files: Sequence[_Input], target: Path) -> list[Path]:
    """Where the rest of each file goes."""
    names = [_plain_name(file.seen) for file in files]
    if target.suffix:
        containers = sorted({file.seen.piece.container for file in files})
        if len(files) > 1 and (len(containers) > 1 or containers[0] in ("text", "csv", *_COLUMNAR)):
            raise RecipeError(
                f"{target}: {len(files)} files ({', '.join(containers)}) do not go into one. Name a folder instead."
            )
        targets = [target] * len(files)
    else:
        if len(set(names)) < len(names):
            raise RecipeError(
                f"{target}: two of the files have the same name. Deduplicate them into one file."
            )
        targets = [target / name for name in names]
    for file, path in zip(files, targets, strict=True):
        _check_name(file, path)
    return targets


def _check_name(file: _Input, path: Path) -> None:
    """Raise RecipeError where a name promises what is not written."""
    container, columnar = file.seen.piece.container, file.seen.piece.container in _COLUMNAR
    if path.suffix == ".xz" or (columnar and path.suffix in _COMPRESSED):
        raise RecipeError(
            f"{path}: {file.seen.path} is not written as {path.suffix}. Name it {path.with_suffix('').name}."
        )
    plain = path.with_suffix("") if path.suffix in _COMPRESSED else path
    as_named = plain.suffix in Path(file.seen.path).suffixes
    if not as_named and container not in _SUFFIXES.get(plain.suffix, (container,)):
        raise RecipeError(
            f"{path}: {file.seen.path} is {container} and stays {container}. Name it {plain.with_suffix('').name}"
            f"{Path(_plain_name(file.seen)).suffix}, or deduplicate into a folder."
        )


def _plain_name(seen: Recognised) -> str:
    """The name in a folder: compressed as before, if that can be written."""
    path = Path(seen.path)
    writable = seen.piece.container not in _COLUMNAR and path.suffix in _COMPRESSED
    return path.stem if seen.piece.compression and path.suffix != ".parquet" and not writable else path.name


def _audit_path(target: Path, whole: bool) -> Path:
    plain = target.with_suffix("") if target.suffix in _COMPRESSED else target
    return plain.with_name(plain.stem + ".removed.parquet") if whole else target / "removed.parquet"


def _spooled(file: _Input, spool: Path, number: int, spec: DedupeSpec) -> tuple[NDArray[np.int64], Signed]:
    """Write records and signatures of one file; returns the ordinal in the file of each record."""
    ordinals: list[int] = []
    records, signatures = spool / f"{number}.records.arrow", spool / f"{number}.signatures.arrow"
    writers: list[pa.ipc.RecordBatchFileWriter] = []
    with pa.OSFile(str(records), "wb") as first, pa.OSFile(str(signatures), "wb") as second:
        for batch in _batches(file):
            ordinals += batch.column("record").to_pylist()
            signed = sign(batch, file.kind, spec)
            if not writers:
                writers = [pa.ipc.new_file(first, batch.schema), pa.ipc.new_file(second, signed.schema)]
            writers[0].write_batch(batch)
            writers[1].write_batch(signed)
        for writer in writers:
            writer.close()
    source = Signed(file.seen.path, (str(signatures),), (str(records),), file.kind, number)
    return np.array(ordinals, np.int64), source


def _batches(file: _Input) -> Iterator[pa.RecordBatch]:
    for rows in read(file.seen.piece):
        batch = _text_batch(rows, file.column) if file.spec is None else shape(rows, 0, file.spec).batch
        if len(batch):
            yield batch


def _text_batch(rows: Rows, column: str) -> pa.RecordBatch:
    found = [
        (record, value[column])
        for record, value in zip(rows.records, rows.values, strict=True)
        if isinstance(value, dict) and isinstance(value.get(column), str)
    ]
    columns = {"record": [r for r, _ in found], "text": [t for _, t in found]}
    columns |= {"slice": [0] * len(found), "meta": [None] * len(found)}
    return pa.RecordBatch.from_pydict({n: columns[n] for n in SCHEMAS["text"].names}, SCHEMAS["text"])


def _copy(
    files: Sequence[_Input],
    targets: Sequence[Path],
    ordinals: Sequence[NDArray[np.int64]],
    decisions: Sequence[Decision],
) -> list[FileCount]:
    """Copy what stays, file by file; several inputs of one target follow one another."""
    counts: list[FileCount] = []
    writer: KeptWriter | None = None
    for number, (file, known, decision) in enumerate(zip(files, ordinals, decisions, strict=True)):
        gone = known[_whole(known, decision.fate > 0)]
        target = targets[number]
        if file.seen.piece.container in _COLUMNAR:
            total = copied_columns(file.seen.path, file.seen.piece.container, target, gone)
        else:
            if writer is None or writer.path != target:
                writer = KeptWriter(target, file.seen.piece)
            total = writer.copy(read(file.seen.piece), set(gone.tolist()))
            if number + 1 == len(files) or targets[number + 1] != target:
                writer.close()
        fates = decision.fate[np.unique(known, return_index=True)[1]][np.isin(np.unique(known), gone)]
        exact, near = (int((fates == code).sum()) for code in (1, 2))
        counts.append(FileCount(file.seen.path, total, exact, near, total - len(set(known.tolist()))))
    return counts


def _whole(known: NDArray[np.int64], removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of rows that give several records (pairs of one prompt), only those all of whose records are removed."""
    stays = np.unique(known[~removed])
    whole: NDArray[np.bool_] = removed & ~np.isin(known, stays)
    return whole


def _audit(
    paths: Sequence[str], ordinals: Sequence[NDArray[np.int64]], decisions: Sequence[Decision]
) -> pa.Table:
    columns: dict[str, list[object]] = {
        name: [] for name in ("file", "record", "method", "kept_file", "kept_record", "similarity")
    }
    for path, known, decision in zip(paths, ordinals, decisions, strict=True):
        gone = np.flatnonzero(_whole(known, decision.fate > 0))
        columns["file"] += [mask_url(path)] * len(gone)
        columns["record"] += known[gone].tolist()
        columns["method"] += _METHODS[decision.fate[gone]].tolist()
        columns["kept_file"] += [mask_url(paths[s]) for s in decision.kept_source[gone].tolist()]
        pairs = zip(decision.kept_source[gone].tolist(), decision.kept_record[gone].tolist(), strict=True)
        columns["kept_record"] += [int(ordinals[s][r]) for s, r in pairs]
        columns["similarity"] += decision.similarity[gone].tolist()
    types = [pa.string(), pa.int64(), pa.string(), pa.string(), pa.int64(), pa.float32()]
    return pa.table(columns, pa.schema(list(zip(columns, types, strict=True))))
