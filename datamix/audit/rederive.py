"""``verify --inputs``: the raw files against the manifest, and a seeded sample of rows encoded again from them.

Every input is hashed and read again, so that its digest, size, records and rejects are those of the manifest. Of the rows of
train/, a sample is chosen by the number of each row; their records are read, shaped, cleaned and encoded with the tokenizer
beside the rows, from nothing that a cache holds, and compared id by id. Cost: one read of the inputs, the encoding of the
sampled records, and the memory of the sampled rows.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.audit.fates import gives_several, live_records
from datamix.audit.findings import Check, Findings, Unchecked, first_line
from datamix.core.arrays import IGNORE_INDEX
from datamix.core.errors import DatamixError
from datamix.core.hashing import file_sha256, mix64, salt
from datamix.pipeline.built_sets import built_set, default_cache
from datamix.pipeline.engine import LocalEngine
from datamix.pipeline.input_places import input_places, missing_inputs
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

    def equals(self, encoded: dict[str, Any], manifest: dict[str, Any]) -> bool:
        """Whether its ids and labels are those of the record as it is encoded."""
        if "input_ids" not in self.columns:
            sides = _SIDES[manifest["kind"]]
            return all(np.array_equal(ids, encoded[sides[name]] or []) for name, ids in self.columns.items())
        ids, labels = self.columns["input_ids"], self.columns["labels"]
        stop = self.start + len(ids)
        if not np.array_equal(ids, encoded["ids"][self.start : stop]):
            return False
        trained = (
            np.array(encoded["mask"][self.start : stop], bool)
            if "mask" in encoded
            else np.ones(len(ids), bool)
        )
        expected = np.where(trained, ids, IGNORE_INDEX)
        if manifest["packing"]["strategy"] == "best_fit" and len(expected):
            expected[0] = IGNORE_INDEX  # no token of its document comes before it
        return np.array_equal(labels, expected)


def check_inputs(out: Path, manifest: dict[str, Any], share: float, claims: list[Unchecked]) -> list[Check]:
    """The inputs as listed, and a ``share`` of the rows (1: all) encoded again from them."""
    inputs, rows = Findings("inputs"), Findings("derived")
    places = input_places(out, manifest)
    if missing := missing_inputs(manifest, places):
        text = "was not found: run verify in the folder of the recipe file that built the set, or with the cache of the build"
        inputs.add(f"{missing[0]} {text} ({default_cache(out)})", len(missing))
        return [inputs.check()]
    for entry, path in zip(
        manifest["inputs"], places.paths, strict=True
    ):  # those at addresses are hashed as they are read
        if path and (os.path.getsize(path) != entry["bytes"] or file_sha256(Path(path)) != entry["sha256"]):
            inputs.add(f"{entry['path']} has other content than when the set was built")
    if inputs.num:
        return [inputs.check()]
    num_rows = 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            sources, works, encoder = _prepared(out, manifest, places.recipe, Path(folder))
            _check_counts(inputs, manifest, sources)
            pieces = _sample_pieces(out, manifest, share)
            num_rows = len({p.row for group in pieces.values() for p in group})
            for source, work in zip(sources, works, strict=True):
                _compare(rows, manifest, source, work, encoder, pieces)
            for group in list(pieces.values())[:1]:
                text = f"row {group[0].row:,} holds a record that the inputs do not give"
                rows.add(text, sum(map(len, pieces.values())))
    except (DatamixError, OSError, ValueError) as error:
        rows.add(f"the rows cannot be encoded again: {first_line(error)}")
    checked = f"{len(manifest['inputs']):,} files: sizes, sha256, records and rejects as listed"
    encoded = f"{num_rows:,} rows encoded again from the raw files: every id and label equal"
    return [inputs.check(checked), rows.check(encoded)]


def _prepared(
    out: Path, manifest: dict[str, Any], recipe: Recipe, folder: Path
) -> tuple[list[PreparedSource], list[SourceWork], Encoder]:
    """Every source read, shaped and cleaned anew below ``folder``."""
    spec = encode_spec(recipe, find_tokenizer(str((out / "tokenizer").absolute()), "."))
    works = source_works(recipe, spec, manifest["sample"])
    context = BuildContext(folder, LocalEngine(1), Screen(quiet=True))
    try:
        reading = [replace(work, encode=None, dedupe=None) for work in works]
        return prepare_sources(context, reading), works, load(spec)
    finally:
        context.engine.close()


def _check_counts(findings: Findings, manifest: dict[str, Any], sources: list[PreparedSource]) -> None:
    """Every field of the inputs, and what reading and cleaning counted, are as listed."""
    files = [(file, n) for s in sources for file, n in zip(s.files, s.file_records, strict=True)]
    entries = manifest["inputs"]
    findings.expect("the number of input files", len(entries), len(files))
    for entry, (file, count) in zip(entries, files, strict=False):
        text = None if file.container in _WITHOUT_TEXT else file.encoding
        for key, value in {
            "source": file.source, "path": file.label, "bytes": file.num_bytes, "sha256": file.sha256, "records": count,
            "encoding": text, "container": file.container, "compression": file.compression, "format": file.format,
        }.items():  # fmt: skip
            if key == "path" and entry[key].startswith("../"):
                continue  # of 0.1: as seen from the recipe
            if key in entry:
                findings.expect(f"{entry['path']}: {key}", entry[key], value)
    for source in sources:
        claims, name = manifest["sources"][source.name], source.name
        records, available = claims["records"], claims["available"]["records"]
        ordinals = records["read"] - records["rejected"] - records["cleaned"]
        if gives_several(manifest, claims) and source.num_prepared <= ordinals:
            findings.expect(f"{name}: available records", available, live_records(claims))
        for reason in ("rejected_by", "mended_by"):
            counted = dict(sorted(source.count(reason).items()))
            findings.expect(f"{name}: {reason}", claims.get(reason, {}), counted)


def _sample_pieces(out: Path, manifest: dict[str, Any], share: float) -> dict[RecordId, list[_Piece]]:
    """The pieces of a seeded sample of rows, by record: their part of the row's columns."""
    seed, limit = salt(manifest["seed"], "verify"), np.uint64(min(int(share * 2.0**64), 2**64 - 1))
    paths = sorted(e["path"] for e in manifest["outputs"] if e["path"].startswith("train/"))
    batches: Iterable[pa.RecordBatch]
    batches = (batch for path in paths for batch in pq.ParquetFile(out / path).iter_batches(256))
    if manifest.get("virtual"):
        reader = RowReader(built_set(out, manifest).splits["train"])
        batches = reader.batches(0, len(reader))
    pieces: dict[RecordId, list[_Piece]] = defaultdict(list)
    first = 0
    for batch in batches:
        numbers = np.arange(first, first + batch.num_rows, dtype=np.uint64)
        of_kind = ("input_ids", "labels") if "input_ids" in batch.schema.names else _SIDES[manifest["kind"]]
        names = [name for name in of_kind if name in batch.schema.names]
        for row in np.flatnonzero((mix64(numbers ^ seed) <= limit) | (numbers == 0)).tolist():
            whole = {name: np.array(batch.column(name)[row].as_py(), np.int64) for name in names}
            place = 0
            for part in batch.column("records")[row].as_py():
                stop = place + part["length"]
                columns = {n: v[place:stop] for n, v in whole.items()} if "input_ids" in whole else whole
                pieces[part["file"], part["record"]].append(_Piece(first + row, part["start"], columns))
                place = stop
        first += batch.num_rows
    return pieces


def _compare(
    findings: Findings,
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
            records = bases[slices] + batch.column("record").to_numpy()
            ids = list(zip(files[slices].tolist(), records.tolist(), strict=True))
            sampled = [n for n, record in enumerate(ids) if record in pieces or record in unequal]
            if not sampled:
                continue
            tokens = _encode(batch.take(pa.array(sampled)), source, work, encoder)
            for n, encoded in zip(sampled, tokens, strict=True):
                left = pieces.pop(ids[n], []) or unequal.pop(ids[n], [])
                left = [piece for piece in left if not piece.equals(encoded, manifest)]
                if left:
                    unequal[ids[n]] = left
    for group in unequal.values():
        where = f"row {group[0].row:,} of train/ is not what {source.name} and the recipe give"
        findings.add(where, len(group))


def _encode(
    batch: pa.RecordBatch, source: PreparedSource, work: SourceWork, encoder: Encoder
) -> list[dict[str, Any]]:
    """Tokens of records, those that are too long cut to fit."""
    rows: list[dict[str, Any]] = encoder.encode(batch, source.kind)[0].to_pylist()
    if work.max_length is None or work.overlong == "split":
        return rows
    long = [n for n, row in enumerate(rows) if row["length"] > work.max_length and row["reason"] is None]
    if long:
        records = batch.take(pa.array(long))
        fitted = fit(encoder, records, source.kind, work.max_length, work.overlong)
        for n, row in zip(long, fitted.tokens.to_pylist(), strict=True):
            rows[n] = row
    return rows
