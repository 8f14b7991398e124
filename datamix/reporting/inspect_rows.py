"""Rows of a finished set, decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.text import Text

from datamix.core.errors import RecipeError
from datamix.reporting.decode import DecodedDocument, Decoder, documents, read_row
from datamix.reporting.terminal import HEAD, SOFT, TRAINED, render

_FIRST = 3  # rows shown where none is asked for


def show_rows(out: Path, manifest: dict[str, Any], shards: Sequence[Path], row: int | None) -> str:
    """Row ``row`` over ``shards``, or the first few. Raises RecipeError where there is no such row."""
    total = sum(pq.read_metadata(path).num_rows for path in shards)
    if row is not None and not 0 <= row < total:
        raise RecipeError(f"--row {row}: there are {total:,} rows, numbered from 0 to {total - 1:,}.")
    decoder = Decoder(out)
    parts: list[Text] = []
    for number in [row] if row is not None else range(min(_FIRST, total)):
        found = read_row(shards, number)
        if found is not None:
            parts += _row(number, total, found, documents(found, manifest["inputs"], decoder))
    if row is None and total > _FIRST:
        parts.append(Text(f"{total - _FIRST:,} more rows: choose one with --row N.", SOFT))
    return render(*parts)


def _row(number: int, total: int, row: dict[str, Any], held: Sequence[DecodedDocument]) -> list[Text]:
    tokens = sum(d.length for d in held)
    trained = sum(s.num_tokens for d in held for s in d.spans if s.trained)
    head = f"Row {number:,} of {total:,}   source {row['source']}   stage {row['stage']}   {tokens:,} tokens, {trained:,} trained"
    parts = [Text(head, HEAD)]
    for name in ("margin", "label", "reference", "meta"):
        if row.get(name) is not None:
            parts.append(Text(f"{name}: {row[name]}", SOFT))
    for document in held:
        parts += [_title(document, "position_ids" in row), _body(document), Text("")]
    return parts


def _title(document: DecodedDocument, packed: bool) -> Text:
    end = document.start + document.length
    place = f"tokens {document.start:,} to {end - 1:,}"
    positions = f", positions 0 to {document.length - 1:,}" if packed else ""
    return Text(f"-- {document.title}   {place}{positions}", SOFT)


def _body(document: DecodedDocument) -> Text:
    text = Text()
    for span in document.spans:
        text.append(span.text, TRAINED if span.trained else None)
    return text
