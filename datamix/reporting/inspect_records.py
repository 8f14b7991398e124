"""Records of input files: of one file as it is named, or found again from what a manifest says of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.text import Text

from datamix.core.errors import DataError, RecipeError
from datamix.core.hashing import file_sha256
from datamix.core.records import FIELD_SEPARATOR, texts
from datamix.formats import ShapeSpec, shape
from datamix.pipeline.recognise import Recognised, recognise
from datamix.read import read
from datamix.reporting.decode import visible
from datamix.reporting.terminal import GONE, HEAD, SOFT, TRAINED, render

_FIRST = 3  # records shown where none is asked for


def show_records(path: Path, row: int | None) -> str:
    """Record ``row`` of a file, or the first few, as datamix reads them. Raises RecipeError where there is no such record."""
    seen = recognise(str(path))
    if seen.detection is None:
        raise DataError(
            f"{path}: its records are in no known format: {seen.fields()}. `columns` in a recipe can name them."
        )
    wanted = set(range(_FIRST)) if row is None else {row}
    head = f"{path}   {seen.piece.container}, {seen.piece.encoding}   format {seen.detection.format} ({seen.detection.kind})"
    parts = [Text(head, HEAD)]
    found = list(_records(seen, wanted))
    if row is not None and not found:
        raise RecipeError(f"--row {row}: {path} has no record of that number; they are numbered from 0.")
    for number, body in found:
        parts += [Text(f"-- record {number:,}", SOFT), body, Text("")]
    return render(*parts)


def _records(seen: Recognised, wanted: set[int]) -> Iterator[tuple[int, Text]]:
    assert seen.detection is not None
    spec = ShapeSpec(seen.detection.format, seen.detection.kind, seen.detection.columns)
    for rows in read(seen.piece, limit=max(wanted) + 1):
        shaped = shape(rows, 0, spec)
        held = {
            record: _shown(shaped.batch.slice(i, 1), spec.kind)
            for i, record in enumerate(shaped.batch["record"].to_pylist())
        }
        held |= {
            r.record: Text(f"{r.reason}: {visible(r.detail)}", GONE) for r in (*rows.rejects, *shaped.rejects)
        }
        yield from ((number, held[number]) for number in sorted(wanted & held.keys()))


def _shown(record: pa.RecordBatch, kind: str) -> Text:
    """One record: turns by role, what the assistant says coloured."""
    row: dict[str, Any] = record.to_pylist()[0]
    text = Text()
    if kind == "text":
        return Text(visible(row["text"]))
    if row.get("tools"):
        text.append(f"tools: {visible(row['tools'])}\n", SOFT)
    for part in ("messages", "chosen", "rejected"):
        if row.get(part) and part != "messages":
            text.append(f"[{part}]\n", SOFT)
        for turn in row.get(part) or []:
            _add_turn(text, turn)
    for name in ("reference", "label", "margin", "meta"):
        if row.get(name) is not None:
            text.append(f"{name}: {visible(str(row[name]))}\n", SOFT)
    text.rstrip()
    return text


def _add_turn(text: Text, turn: dict[str, Any]) -> None:
    style = TRAINED if turn["role"] == "assistant" and turn["train"] is not False else ""
    text.append(f"{turn['role']}: ", SOFT)
    for name in ("reasoning", "content", "tool_calls"):
        if turn.get(name):
            text.append(f"{'(' + name + ') ' if name != 'content' else ''}{visible(turn[name])}\n", style)


def find_input(entry: dict[str, Any], out: Path) -> Path | None:
    """The input file that a manifest names, by its bytes: looked for from here and beside OUT, and one folder below."""
    places = dict.fromkeys((Path.cwd(), out.absolute().parent))
    for place in places:
        below = (
            sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
            if place.is_dir()
            else []
        )
        for folder in (place, *below):
            path: Path = folder / entry["path"]
            if (
                path.is_file()
                and path.stat().st_size == entry["bytes"]
                and file_sha256(path) == entry["sha256"]
            ):
                return path
    return None


def read_texts(path: Path, columns: tuple[tuple[str, str], ...], wanted: set[int]) -> dict[int, str]:
    """The words of some records of a file, turns on lines of their own; records that do not fit are left out."""
    seen = recognise(str(path), columns)
    if seen.detection is None:
        return {}
    spec = ShapeSpec(seen.detection.format, seen.detection.kind, seen.detection.columns)
    found: dict[int, str] = {}
    for rows in read(seen.piece, limit=max(wanted) + 1):
        if wanted.isdisjoint(rows.records):
            continue
        batch = shape(rows, 0, spec).batch
        words = texts(batch, spec.kind).to_pylist()
        for record, text in zip(batch["record"].to_pylist(), words, strict=True):
            if record in wanted:
                found[record] = visible(text.replace(FIELD_SEPARATOR, "\n").replace("\x1f", "\n"))
    return found
