"""``datamix trace``: a row of a finished set back to its bytes, and what became of each record on its way.

The row names its records by input file and ordinal; the file is found where the build read it, or below this folder or one above
OUT, and must still have the listed sha256. There the record is counted out, read, shaped and cleaned again, one step at a time. Cost: one
pass over the file up to the record, and a hash of the file where it was touched since.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datamix.clean import clean
from datamix.core.contracts import Rows, Slice
from datamix.core.errors import DatamixError, RecipeError
from datamix.core.records import FIELD_SEPARATOR, RecordKind, texts
from datamix.formats import ShapeSpec, shape
from datamix.pipeline import origin
from datamix.pipeline.built_sets import cache_of, open_any
from datamix.pipeline.exporting import finished_manifest
from datamix.pipeline.input_places import input_places
from datamix.pipeline.prepare_sources import SourceWork, record_kind
from datamix.pipeline.record_rules import apply_rules
from datamix.pipeline.scan import InputFile, recognise
from datamix.pipeline.shards import RecordStore, SourceShards, TokenStore, identities, take
from datamix.pipeline.translate import source_works
from datamix.read import Place, codec_of, file_state, locate, read, sha256_of, sniff
from datamix.recipe import Recipe
from datamix.reporting.decode import read_row, split_shards

_COPIES = ["exact", "near", "leaked"]
Record = dict[str, Any]


@dataclass(frozen=True)
class _Set:
    """A finished set: its manifest, its recipe, and what the cache knows of it."""

    out: Path
    manifest: dict[str, Any]
    recipe: Recipe
    works: tuple[SourceWork, ...]
    known: origin.Origin | None
    cache: Path

    def shards(self, source: str) -> SourceShards | None:
        """What the cache holds of a source."""
        sources = self.known.select.sources if self.known else ()
        return next(
            (s for s in sources if s.name == source and all(p.records.exists() for p in s.parts)), None
        )


def trace(out: Path, row: int, split: str = "train", cache: Path | None = None) -> dict[str, Any]:
    """``{row, records: [{source, file, record, bytes | row_group, line, license, steps, removed_because_of}]}``.

    What needs the input is None where that is missing or changed. Raises RecipeError for a row or split that the set does not have.
    """
    manifest = finished_manifest(out)
    recipe = Recipe.model_validate(manifest["recipe"])
    works = tuple(source_works(recipe, None, manifest["sample"]))
    root = cache_of(out, cache)
    whole = _Set(out, manifest, recipe, works, origin.find(root, manifest.get("key", "")), root)
    pieces = _row(out, manifest, row, split, cache)
    return {"row": row, "records": [_record(whole, piece) for piece in pieces]}


def _row(
    out: Path, manifest: dict[str, Any], row: int, split: str, cache: Path | None
) -> list[dict[str, Any]]:
    """The pieces of a row: file, record, start, length."""
    if manifest.get("virtual") and split == "train":
        rows = open_any(out, split, cache).rows
        total = len(rows)
        found = rows.table(["records"], row, row + 1).to_pylist() if 0 <= row < total else []
    else:
        shards = split_shards(out, manifest, split)
        total = sum(pq.read_metadata(path).num_rows for path in shards)
        found = [read_row(shards, row)] if 0 <= row < total else []
    if not found or found[0] is None:
        has = f"{total:,} rows, numbered from 0 to {total - 1:,}" if total else "no rows"
        raise RecipeError(f"--row {row}: {split} of {out} has {has}.")
    pieces: list[dict[str, Any]] = found[0]["records"]
    return pieces


def _record(whole: _Set, piece: dict[str, Any]) -> Record:
    """One record of the row; ``tokens`` are those of it that the row holds."""
    entry, record = whole.manifest["inputs"][piece["file"]], piece["record"]
    asked = whole.recipe.sources.get(entry["source"])
    where: Record = {"bytes": None, "line": None}
    steps: list[dict[str, Any]] | None = None
    with suppress(DatamixError):  # a file that cannot be read is as one that is missing
        file = _input_file(whole, piece["file"])
        if file is not None and (place := locate(_slice(file), record)) is not None:
            span = [place.start, place.stop]
            where = {"bytes": span} if place.row_group is None else {"row_group": place.row_group}
            where["line"] = place.line
            steps = list(_steps(whole, file, place, (piece["file"], record)))
    return {
        "source": entry["source"],
        "file": entry["path"],
        "record": record,
        "tokens": [piece["start"], piece["start"] + piece["length"]],
        **where,
        "license": asked.license if asked else None,
        "steps": steps,
        "removed_because_of": list(_copies(whole, entry["source"], piece["file"], record)),
    }


def _slice(file: InputFile) -> Slice:
    """The whole file as one slice."""
    first = file.slices()[0]
    return replace(first, start=0, stop=None, state=())


def _input_file(whole: _Set, number: int) -> InputFile | None:
    """An input file as it was read, where it still is what it was; None where it is missing or has other content."""
    entry = whole.manifest["inputs"][number]
    noted = whole.known.inputs[number] if whole.known else None
    path = next((place for place in _places(whole, number) if _is_same(place, entry, noted)), None)
    if path is None:
        return None
    if noted is not None:
        return replace(noted, path=path, state=())
    seen = sniff(path, entry.get("container"))
    work = next(w for w in whole.works if w.request.source == entry["source"])
    columns = work.request.columns
    if not columns and (detection := recognise(path, (), seen, entry["encoding"]).detection) is not None:
        columns = tuple(detection.columns)
    return InputFile(
        entry["source"], path, entry["path"], entry["sha256"], entry["bytes"], seen.container, seen.compression,
        entry["encoding"] or seen.encoding, seen.options, entry.get("format"), None, columns, (),
    )  # fmt: skip


def _places(whole: _Set, number: int) -> Iterator[str]:
    """Where an input file may be: where it was read, then where the set's inputs are found now."""
    if whole.known is not None:
        yield whole.known.inputs[number].path
    name = whole.manifest["inputs"][number]["path"]
    if "://" in name:
        yield name
    elif (path := input_places(whole.out, whole.manifest, whole.cache).paths[number]) is not None:
        yield path


def _is_same(path: str, entry: dict[str, Any], noted: InputFile | None) -> bool:
    """Whether a path holds the listed content; hashed unless its state is the one that was noted."""
    if "://" not in path and not Path(path).is_file():
        return False
    try:
        state = file_state(path)
        if noted is not None and state == tuple(noted.state) and path == noted.path:
            return True
        return state[0] in (0, entry["bytes"]) and sha256_of(path) == entry["sha256"]
    except DatamixError:
        return False


def _steps(whole: _Set, file: InputFile, place: Place, known: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """What each step changed of the record's text: its name, whether it did, and the text before and after where it did.

    ``known``: the number of its file and its ordinal there. The last two steps are seen in the cache alone.
    """
    work = next(w for w in whole.works if w.request.source == file.source)
    shards = whole.shards(file.source)
    kind: RecordKind = shards.kind if shards else record_kind(work, [file])
    asked = ShapeSpec(
        file.format or "text", kind, file.columns, work.system, work.keep_meta, work.kwargs, work.media
    )
    batch = shape(_read_one(_slice(file), place, known[1]), 0, work.rules.shape(asked)).batch
    texts_of = [_text(batch, kind)]
    batch, _ = apply_rules(batch, work.rules, work.keep_meta)
    names = ["thinking"] if work.rules.thinking != "keep" else []
    texts_of += [_text(batch, kind)] * len(names)
    for step in work.steps:
        batch = clean(batch, kind, [step]).batch
        names.append(step.name)
        texts_of.append(_text(batch, kind))
    for name, text in _cached_texts(shards, known) if shards else ():
        if name != "lines" or work.lines is not None:
            names.append(name)
            texts_of.append(text)
    for name, (before, after) in zip(names, pairwise(texts_of), strict=True):
        changed = {"before": before, "after": after} if before != after else {}
        yield {"step": name, "changed": bool(changed), **changed}


def _cached_texts(shards: SourceShards, known: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """The text of a record after repeated lines were cut, and after it was truncated, where the cache has them."""
    ids = identities(shards.parts)
    rows = np.flatnonzero((ids.file == known[0]) & (ids.record == known[1]))
    if not len(rows):
        return
    if shards.kind == "text":
        yield "lines", "\n".join(take(RecordStore(shards.parts), rows, ["text"]).column("text").to_pylist())
    for batch, at, _ in TokenStore(shards.shards).batches(rows) if shards.shards else ():
        if "messages" in batch.schema.names:
            messages = batch.column("messages").take(pa.array(at))
            if not messages.null_count:
                turns = [turn for left in messages.to_pylist() for turn in left]
                yield "max_length", "\n".join(turn["content"] or "" for turn in turns)


def _text(batch: pa.RecordBatch, kind: RecordKind) -> str:
    """The words of a record, one turn a line; of one that gave several, all of them."""
    joined = "\n".join(text or "" for text in texts(batch, kind).to_pylist())
    return joined.replace(FIELD_SEPARATOR, "\n").replace("\x1f", "\n")


def _read_one(piece: Slice, place: Place, record: int) -> Rows:
    """The record as the reader gives it, as record 0."""
    if place.row_group is not None and piece.container != "arrow_stream":
        piece, record = replace(piece, start=place.row_group, stop=place.row_group + 1), place.row
    elif (
        piece.container in ("jsonl", "lines")
        and piece.compression is None
        and codec_of(piece.encoding) == "utf-8"
    ):
        start = place.start if place.line != 1 else 0
        piece, record = replace(piece, start=start, stop=start + 1), 0
    for rows in read(piece):
        if record in rows.records:
            at = rows.records.index(record)
            return Rows([rows.values[at]], [0], [rows.lines[at]], [rows.raws[at]])
    return Rows([], [], [], [])


def _copies(whole: _Set, source: str, file: int, record: int) -> Iterator[dict[str, Any]]:
    """The records that were removed as copies of this one."""
    inputs = whole.manifest["inputs"]
    for path in sorted((whole.out / "removed").glob("*.parquet")):
        is_kept = (pc.field("kept_source") == source) & (pc.field("kept_file") == file)
        for row in pq.read_table(path, filters=is_kept & (pc.field("kept_record") == record)).to_pylist():
            yield {
                "source": row["source"],
                "file": inputs[row["file"]]["path"],
                "record": row["record"],
                "reason": row["reason"],
                "similarity": row["similarity"],
            }
