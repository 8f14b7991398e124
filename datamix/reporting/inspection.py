"""``datamix inspect``: records of a file, or rows of a finished set, as a person reads them.

Rows are decoded from their ids with the tokenizer beside them, trained tokens coloured, documents apart. Removed records
are shown beside those that stayed, the difference marked. One row group is read for a row, one pass for counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.text import Text

from datamix.core.errors import RecipeError, shown_name
from datamix.reporting import inspect_cleaning, inspect_records, inspect_stats
from datamix.reporting.decode import (
    HEAD,
    SOFT,
    TRAINED,
    Decoder,
    documents,
    read_manifest,
    read_row,
    render,
    split_shards,
)
from datamix.reporting.page import render_rows

_HTML_ROWS = 100
_FIRST = 3  # rows shown where no number is given


def show(path: Path, row: int | None, stats: bool, removed: bool, html: bool = False) -> str:
    """What ``datamix inspect`` prints: text with ANSI colours, or with ``html`` a page of a hundred rows.

    ``path`` is a finished set, one of its Parquet files, or a file of records. Raises RecipeError where it is neither, or
    has no row ``row``; DataError where a file cannot be read.
    """
    if not path.exists():
        raise RecipeError(
            f"There is nothing at {shown_name(str(path))}. Name the OUT folder of a build, or a file of records."
        )
    parents = list(path.absolute().parents)[:3] if path.suffix == ".parquet" else []
    candidates = [path] if path.is_dir() else [f for f in parents if (f / "train").is_dir()]
    out = next((folder for folder in candidates if (folder / "manifest.json").is_file()), None)
    if out is None:
        if path.is_dir():
            raise RecipeError(
                f"{shown_name(str(path))} holds no manifest.json, so it is not a finished set. Name a set, or a file of records."
            )
        if removed or html:
            raise RecipeError(
                f"{shown_name(str(path))} is a file of records; --removed and --html are for finished sets."
            )
        return inspect_cleaning.show_cleaning(path) if stats else inspect_records.show_records(path, row)
    manifest = read_manifest(out)
    if html:
        return render_rows(out, manifest, row or 0, _HTML_ROWS)
    if stats:
        return inspect_stats.show_stats(out, manifest)
    if removed:
        return inspect_records.show_pairs(out, manifest, row)
    return _show_rows(out, manifest, split_shards(out, manifest) if path == out else [path], row)


def _show_rows(out: Path, manifest: dict[str, Any], shards: Sequence[Path], row: int | None) -> str:
    """Row ``row`` over ``shards``, or the first few. Raises RecipeError where there is no such row."""
    total = sum(pq.read_metadata(path).num_rows for path in shards)
    if row is not None and not 0 <= row < total:
        raise RecipeError(f"--row {row}: there are {total:,} rows, numbered from 0 to {total - 1:,}.")
    decoder = Decoder(out)
    parts: list[Text] = []
    for number in [row] if row is not None else range(min(_FIRST, total)):
        columns = read_row(shards, number) or {}
        decoded = list(documents(columns, manifest["inputs"], decoder))
        trained = sum(s.num_tokens for d in decoded for s in d.spans if s.trained)
        tokens = f"{sum(d.length for d in decoded):,} tokens, {trained:,} trained"
        place = f"source {columns['source']}   stage {columns['stage']}"
        parts.append(Text(f"Row {number:,} of {total:,}   {place}   {tokens}", HEAD))
        for name in ("margin", "label", "reference", "meta"):
            if columns.get(name) is not None:
                parts.append(Text(f"{name}: {columns[name]}", SOFT))
        for document in decoded:
            title = (
                f"-- {document.title}   tokens {document.start:,} to {document.start + document.length - 1:,}"
            )
            if "position_ids" in columns:
                title += f", positions 0 to {document.length - 1:,}"
            text = Text()
            for span in document.spans:
                text.append(span.text, TRAINED if span.trained else None)
            parts += [Text(title, SOFT), text, Text("")]
    if row is None and total > _FIRST:
        parts.append(Text(f"{total - _FIRST:,} more rows: choose one with --row N.", SOFT))
    return render(*parts)
