"""Records of input files: the first of a file, or removed records beside those that stayed, the difference marked.

The text of removed records is read again from the input files where these are available (by size and sha256); else only
ids are shown.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from datamix.core.errors import DataError, RecipeError, visible
from datamix.core.hashing import file_sha256
from datamix.core.records import FIELD_SEPARATOR, texts
from datamix.formats import ShapeSpec, shape
from datamix.pipeline.scan import recognise
from datamix.read import read
from datamix.reporting.decode import (
    ADDED,
    HEAD,
    REMOVED,
    SOFT,
    TRAINED,
    record_title,
    render,
    split_shards,
)

_FIRST, _FIRST_PAIRS = 3, 10  # shown where no number is given
_SAME = 400  # characters shown of text that both have
_WORDS = 1500  # compared of each side: the work grows with the square
_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|\w+|\s+|.", re.DOTALL)

Texts = dict[tuple[int, int], str]  # (file, record) -> text
Pair = tuple[int, dict[str, Any]]  # number, line of removed/


def show_records(path: Path, row: int | None) -> str:
    """Record ``row`` of a file, or the first few, as datamix reads them. Raises RecipeError where there is no such record."""
    seen = recognise(str(path))
    if seen.detection is None:
        raise DataError(
            f"{path}: its records are in no known format: {seen.fields()}. `columns` in a recipe can name them."
        )
    format_, kind = seen.detection.format, seen.detection.kind
    numbers = range(_FIRST) if row is None else range(row, row + 1)
    head = f"{path}   {seen.piece.container}, {seen.piece.encoding}   format {format_} ({kind})"
    parts = [Text(head, HEAD)]
    for rows in read(seen.piece, limit=numbers.stop):
        shaped = shape(rows, 0, ShapeSpec(format_, kind, seen.detection.columns))
        bodies = {
            record: _body(shaped.batch.slice(i, 1), kind)
            for i, record in enumerate(shaped.batch["record"].to_pylist())
            if record in numbers
        }
        for reject in (*rows.rejects, *shaped.rejects):
            if reject.record in numbers:
                bodies[reject.record] = Text(f"{reject.reason}: {visible(reject.detail)}", REMOVED)
        for number, body in sorted(bodies.items(), key=lambda item: item[0]):
            parts += [Text(f"-- record {number:,}", SOFT), body, Text("")]
    if row is not None and len(parts) == 1:
        raise RecipeError(f"--row {row}: {path} has no record of that number; they are numbered from 0.")
    return render(*parts)


def _body(record: pa.RecordBatch, kind: str) -> Text:
    """One record: turns by role, those of the assistant coloured."""
    row: dict[str, Any] = record.to_pylist()[0]
    if kind == "text":
        return Text(visible(row["text"]))
    text = Text()
    if row.get("tools"):
        text.append(f"tools: {visible(row['tools'])}\n", SOFT)
    for part in ("messages", "chosen", "rejected"):
        if row.get(part) and part != "messages":
            text.append(f"[{part}]\n", SOFT)
        for turn in row.get(part) or []:
            style = TRAINED if turn["role"] == "assistant" and turn["train"] != 0 else ""
            text.append(f"{turn['role']}: ", SOFT)
            for name, label in (
                ("reasoning", "(reasoning) "),
                ("content", ""),
                ("tool_calls", "(tool_calls) "),
            ):
                if turn.get(name):
                    text.append(f"{label}{visible(turn[name])}\n", style)
    for name in ("reference", "label", "margin", "meta"):
        if row.get(name) is not None:
            text.append(f"{name}: {visible(str(row[name]))}\n", SOFT)
    text.rstrip()
    return text


def find_input(entry: dict[str, Any], out: Path) -> Path | None:
    """The input file that a manifest lists, by its bytes: searched here, beside OUT, and one folder below either."""
    for place in dict.fromkeys((Path.cwd(), out.absolute().parent)):
        entries = sorted(place.iterdir()) if place.is_dir() else []
        below = [p for p in entries if p.is_dir() and not p.name.startswith(".")]
        paths: list[Path] = [folder / entry["path"] for folder in (place, *below)]
        for path in paths:
            same_size = path.is_file() and path.stat().st_size == entry["bytes"]
            if same_size and file_sha256(path) == entry["sha256"]:
                return path
    return None


def read_texts(path: Path, columns: tuple[tuple[str, str], ...], numbers: set[int]) -> dict[int, str]:
    """The text of some records of a file, turns on separate lines; records that do not fit are left out."""
    seen = recognise(str(path), columns)
    if seen.detection is None:
        return {}
    spec = ShapeSpec(seen.detection.format, seen.detection.kind, seen.detection.columns)
    by_number: dict[int, str] = {}
    for rows in read(seen.piece, limit=max(numbers) + 1):
        if numbers.isdisjoint(rows.records):
            continue
        batch = shape(rows, 0, spec).batch
        words = texts(batch, spec.kind).to_pylist()
        for record, text in zip(batch["record"].to_pylist(), words, strict=True):
            if record in numbers:
                by_number[record] = visible(text.replace(FIELD_SEPARATOR, "\n").replace("\x1f", "\n"))
    return by_number


def show_pairs(out: Path, manifest: dict[str, Any], row: int | None) -> str:
    """Pair ``row`` of all that deduplication removed, or the first few. Raises RecipeError where there is no such pair."""
    pairs, total = _select_pairs(out, manifest, row)
    if row is not None and not pairs:
        raise RecipeError(f"--row {row}: {total:,} records were removed, numbered from 0.")
    numbers: defaultdict[int, set[int]] = defaultdict(set)
    for _, pair in pairs:
        numbers[pair["file"]].add(pair["record"])
        if pair["kept_file"] is not None:
            numbers[pair["kept_file"]].add(pair["kept_record"])
    texts: Texts = {}
    for file, records in sorted(numbers.items()):
        entry = manifest["inputs"][file]
        columns = manifest["recipe"]["sources"].get(entry["source"], {}).get("columns") or {}
        if (path := find_input(entry, out)) is not None:
            by_record = read_texts(path, tuple(sorted(columns.items())), records)
            texts |= {(file, record): text for record, text in by_record.items()}
    parts: list[Any] = [Text(f"{total:,} records removed", HEAD)]
    for number, pair in pairs:
        similarity = "" if pair["similarity"] is None else f"   similarity {pair['similarity']:.3f}"
        detail = f"   {pair['detail']}" if pair["detail"] else ""
        parts += [Text(""), Text(f"{number:,}   {pair['reason']}{similarity}{detail}", HEAD)]
        parts += _side_by_side(pair, manifest, texts)
    if row is None and total > len(pairs):
        parts += [Text(""), Text(f"{total - len(pairs):,} more: choose one with --row N.", SOFT)]
    return render(*parts)


def _select_pairs(out: Path, manifest: dict[str, Any], row: int | None) -> tuple[list[Pair], int]:
    """The removals to show with their numbers, those that differ before exact ones; and how many there are in all."""
    differing: list[Pair] = []
    exact: list[Pair] = []
    total = 0
    for path in split_shards(out, manifest, "removed"):
        for batch in pq.ParquetFile(path).iter_batches():
            removed = batch.filter(pc.equal(batch.column("fate"), "removed"))
            same = np.array(pc.equal(removed.column("reason"), "exact"))
            for pairs, mask in ((differing, ~same), (exact, same)):
                places = np.flatnonzero(mask)
                places = places[: _FIRST_PAIRS - len(pairs)] if row is None else places[places + total == row]
                pairs += [(total + int(n), removed.slice(int(n), 1).to_pylist()[0]) for n in places]
            total += removed.num_rows
    return [*differing, *exact][:_FIRST_PAIRS], total


def _side_by_side(pair: dict[str, Any], manifest: dict[str, Any], texts: Texts) -> Iterator[Any]:
    title = record_title(manifest["inputs"], pair["file"], pair["record"])
    yield Text(f"removed  {pair['source']}, {title}", SOFT)
    removed, kept = texts.get((pair["file"], pair["record"])), None
    if pair["kept_file"] is None:
        record = "" if pair["kept_record"] is None else f", record {pair['kept_record']:,}"
        yield Text(f"kept     {pair['kept_source'] or 'nothing here'}{record}", SOFT)
    else:
        title = record_title(manifest["inputs"], pair["kept_file"], pair["kept_record"])
        yield Text(f"kept     {pair['kept_source']}, {title}", SOFT)
        kept = texts.get((pair["kept_file"], pair["kept_record"]))
    if removed is None:
        yield Text("(no text: its input file is not available from here, or has changed)", SOFT)
    elif kept is None or removed == kept:
        yield Text(removed[:_SAME] + (" ..." if len(removed) > _SAME else ""))
        yield Text(
            "(the same text)" if kept is not None else "(the other record's text is not available)", SOFT
        )
    else:
        left, right = (_WORD.findall(text)[:_WORDS] for text in (removed, kept))
        marked = (Text(), Text())
        for tag, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
            marked[0].append("".join(left[a:b]), None if tag == "equal" else f"bold {REMOVED}")
            marked[1].append("".join(right[c:d]), None if tag == "equal" else f"bold {ADDED}")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True, show_header=False)
        table.add_column(ratio=1)
        table.add_column(ratio=1)
        table.add_row(*marked)
        yield table
