"""``verify --inputs``: the raw files against the manifest, and a seeded sample of rows made again from them.

Every input is hashed and read again, so that its digest, size, records and rejects are those of the manifest. Of the rows of
train/, a sample is chosen by the number of each row; their records are read, shaped, cleaned and encoded with the tokenizer
beside the rows, from nothing that a cache holds, and compared id by id. Cost: one read of the inputs, the encoding of the
sampled records, and the memory of the sampled rows.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.audit.available import gives_several, live_records
from datamix.audit.findings import Check, Findings, first_line
from datamix.audit.unchecked import Unchecked
from datamix.core.arrays import IGNORE_INDEX
from datamix.core.errors import DatamixError
from datamix.core.hashing import file_sha256, mix64, salt
from datamix.pipeline.engine import LocalEngine
from datamix.pipeline.opening import built_set
from datamix.pipeline.prepare import read_batches
from datamix.pipeline.prepare_sources import BuildContext, PreparedSource, SourceWork, prepare_sources
from datamix.pipeline.progress import Screen
from datamix.pipeline.rows import RowReader
from datamix.pipeline.translate import encode_spec, source_works
from datamix.recipe import Recipe
from datamix.tokenize import Encoder, find_tokenizer, fit, load

_PREFERENCE = {
    "prompt_ids": "prompt",
    "chosen_completion_ids": "chosen",
    "rejected_completion_ids": "rejected",
}
_SIDES = {"preference": _PREFERENCE | {"completion_ids": "chosen"}, "prompt": {"prompt_ids": "prompt"}}
_WITHOUT_TEXT = ("parquet", "arrow", "arrow_stream")  # containers with no character encoding
RecordId = tuple[int, int]  # input file, ordinal in it


@dataclass(frozen=True)
class _Piece:
    """A part of a record as it was emitted: the row, and what it holds of the record."""

    row: int
    start: int
    columns: dict[str, NDArray[Any]]


def check_inputs(out: Path, manifest: dict[str, Any], share: float, claims: list[Unchecked]) -> list[Check]:
    """The inputs as listed, and a ``share`` of the rows (1: all) made again from them."""
    found, derived = Findings("inputs"), Findings("derived")
    base = _base(out, manifest)
    if base is None:
        first = next((e["path"] for e in manifest["inputs"] if "://" not in e["path"]), "")
        found.add(f"{first} is not below this folder or one above {out}: run verify where the recipe lies")
        return [found.check("")]
    for entry in manifest["inputs"]:
        if "://" in entry["path"]:
            continue  # hashed as it is read
        path = base / entry["path"]
        if not path.is_file():
            found.add(f"{entry['path']} is missing")
        elif path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
            found.add(f"{entry['path']} has other content than when the set was built")
    checked = f"{len(manifest['inputs']):,} files: sizes, sha256, records and rejects as listed"
    if not found.check("").ok:
        return [found.check(checked)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            sources, works, encoder = _prepared(out, manifest, base, Path(folder))
            _check_counts(found, manifest, sources)
            pieces = _sampled(out, manifest, share)
            num_rows = len({p.row for group in pieces.values() for p in group})
            for source, work in zip(sources, works, strict=True):
                _compare(derived, manifest, source, work, encoder, pieces)
            for record in list(pieces)[:1]:
                rows = sum(len(group) for group in pieces.values())
                derived.add(f"row {pieces[record][0].row:,} holds a record that the inputs do not give", rows)
    except (DatamixError, OSError, ValueError) as error:
        derived.add(f"the rows cannot be made again: {first_line(error)}")
        return [found.check(checked), derived.check("")]
    return [
        found.check(checked),
        derived.check(f"{num_rows:,} rows made again from the raw files: every id and label equal"),
    ]


def _base(out: Path, manifest: dict[str, Any]) -> Path | None:
    """The recipe's folder: the first of this one, OUT's parents and OUT under which every local input is found."""
    local = [e["path"] for e in manifest["inputs"] if "://" not in e["path"]]
    candidates = [Path(), *out.absolute().parents, out]
    return next((base for base in candidates if all((base / path).is_file() for path in local)), None)


def _prepared(
    out: Path, manifest: dict[str, Any], base: Path, folder: Path
) -> tuple[list[PreparedSource], list[SourceWork], Encoder]:
    """Every source read, shaped and cleaned anew below ``folder``."""
    recipe = Recipe.model_validate(manifest["recipe"])
    recipe._base = str(base)
    spec = encode_spec(recipe, find_tokenizer(str((out / "tokenizer").absolute()), "."))
    works = source_works(recipe, spec, manifest["sample"])
    context = BuildContext(folder, LocalEngine(1), Screen(quiet=True))
    try:
        reading = [replace(work, encode=None, dedupe=None) for work in works]
        return prepare_sources(context, reading), works, load(spec)
    finally:
        context.engine.close()


def _check_counts(found: Findings, manifest: dict[str, Any], sources: list[PreparedSource]) -> None:
    files = [
        (file, n) for source in sources for file, n in zip(source.found, source.file_records, strict=True)
    ]
    entries = manifest["inputs"]
    found.expect("the number of input files", len(entries), len(files))
    for entry, (file, count) in zip(entries, files, strict=False):
        text = None if file.container in _WITHOUT_TEXT else file.encoding
        for key, value in {
            "source": file.source, "path": file.label, "bytes": file.num_bytes, "sha256": file.sha256, "records": count,
            "encoding": text, "container": file.container, "compression": file.compression, "format": file.format,
        }.items():  # fmt: skip
            if key in entry:
                found.expect(f"{entry['path']}: {key}", entry[key], value)
    for source in sources:
        claims = manifest["sources"][source.name]
        ordinals = claims["records"]["read"] - claims["records"]["rejected"] - claims["records"]["cleaned"]
        if gives_several(manifest, claims) and source.num_prepared <= ordinals:
            found.expect(
                f"{source.name}: available records", claims["available"]["records"], live_records(claims)
            )
        for reason in ("rejected_by", "mended_by"):
            found.expect(
                f"{source.name}: {reason}", claims.get(reason, {}), dict(sorted(source.count(reason).items()))
            )


def _sampled(out: Path, manifest: dict[str, Any], share: float) -> dict[RecordId, list[_Piece]]:
    """The pieces of a seeded sample of rows, by record."""
    seed, limit = salt(manifest["seed"], "verify"), np.uint64(min(int(share * 2.0**64), 2**64 - 1))
    pieces: dict[RecordId, list[_Piece]] = defaultdict(list)
    first = 0
    for batch in _batches(out, manifest):
        numbers = np.arange(first, first + batch.num_rows, dtype=np.uint64)
        for row in np.flatnonzero((mix64(numbers ^ seed) <= limit) | (numbers == 0)).tolist():
            for record, piece in _pieces(batch, row, first + row, manifest["kind"]):
                pieces[record].append(piece)
        first += batch.num_rows
    return pieces


def _batches(out: Path, manifest: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    if manifest.get("virtual"):
        rows = RowReader(built_set(out, manifest).splits["train"])
        yield from rows.batches(0, len(rows))
        return
    for path in sorted(e["path"] for e in manifest["outputs"] if e["path"].startswith("train/")):
        yield from pq.ParquetFile(out / path).iter_batches(256)


def _pieces(batch: pa.RecordBatch, row: int, number: int, kind: str) -> Iterator[tuple[RecordId, _Piece]]:
    """The pieces of one row: their record, and their part of the row's columns."""
    place = 0
    for held in batch.column("records")[row].as_py():
        stop = place + held["length"]
        names = [n for n in ("input_ids", "labels") if n in batch.schema.names] or [
            n for n in _SIDES[kind] if n in batch.schema.names
        ]
        whole = {name: np.array(batch.column(name)[row].as_py(), np.int64) for name in names}
        columns = {n: v[place:stop] for n, v in whole.items()} if "input_ids" in whole else whole
        yield (held["file"], held["record"]), _Piece(number, held["start"], columns)
        place = stop


def _compare(
    derived: Findings,
    manifest: dict[str, Any],
    source: PreparedSource,
    work: SourceWork,
    encoder: Encoder,
    pieces: dict[RecordId, list[_Piece]],
) -> None:
    """Encode the sampled records of a source and take each piece that equals its part out of ``pieces``."""
    unequal: dict[RecordId, list[_Piece]] = {}
    for part in source.shards.parts:
        bases = np.array([place.base for place in part.places], np.int64)
        files = np.array([place.file for place in part.places], np.int64)
        for batch in read_batches(str(part.records)):
            slices = batch.column("slice").to_numpy()
            ids = list(
                zip(
                    files[slices].tolist(),
                    (bases[slices] + batch.column("record").to_numpy()).tolist(),
                    strict=True,
                )
            )
            chosen = [n for n, record in enumerate(ids) if record in pieces or record in unequal]
            if not chosen:
                continue
            tokens = _encoded(batch.take(pa.array(chosen)), source, work, encoder)
            for n, made in zip(chosen, tokens, strict=True):
                left = pieces.pop(ids[n], []) or unequal.pop(ids[n], [])
                left = [piece for piece in left if not _equal(piece, made, manifest)]
                if left:
                    unequal[ids[n]] = left
    for group in unequal.values():
        where = f"row {group[0].row:,} of train/ is not what {source.name} and the recipe give"
        derived.add(where, len(group))


def _encoded(
    batch: pa.RecordBatch, source: PreparedSource, work: SourceWork, encoder: Encoder
) -> list[dict[str, Any]]:
    """Tokens of records, those that are too long made to fit."""
    tokens = encoder.encode(batch, source.kind)[0]
    rows: list[dict[str, Any]] = tokens.to_pylist()
    if work.max_length is None or work.overlong == "split":
        return rows
    long = [n for n, row in enumerate(rows) if row["length"] > work.max_length and row["reason"] is None]
    if long:
        fitted = fit(
            encoder, batch.take(pa.array(long)), source.kind, work.max_length, work.overlong
        ).to_pylist()
        for n, row in zip(long, fitted, strict=True):
            rows[n] = row
    return rows


def _equal(piece: _Piece, made: dict[str, Any], manifest: dict[str, Any]) -> bool:
    if "input_ids" not in piece.columns:
        sides = _SIDES[manifest["kind"]]
        return all(np.array_equal(ids, made[sides[name]] or []) for name, ids in piece.columns.items())
    ids, labels = piece.columns["input_ids"], piece.columns["labels"]
    stop = piece.start + len(ids)
    if not np.array_equal(ids, made["ids"][piece.start : stop]):
        return False
    trained = np.array(made["mask"][piece.start : stop], bool) if "mask" in made else np.ones(len(ids), bool)
    expected = np.where(trained, ids, IGNORE_INDEX)
    if manifest["packing"]["strategy"] == "best_fit" and len(expected):
        expected[0] = IGNORE_INDEX  # no token of its document stands before it
    return np.array_equal(labels, expected)
