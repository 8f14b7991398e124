"""Emitted rows as a person reads them: tokens decoded back to text, trained and untrained parts apart.

A row becomes documents, a document becomes spans. Text is cut only where the mask changes, and each span is what the
longer prefix adds to the shorter one, so that decoders which join tokens (byte-level, SentencePiece) show what they mean.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from datamix.audit.listed_files import check_manifest
from datamix.core.arrays import IGNORE_INDEX
from datamix.core.errors import DataError, RecipeError, shown_name, visible
from datamix.core.set_files import check_listed
from datamix.pipeline.built_sets import refuse_newer
from datamix.reporting.words import Words

# Styles in a terminal.
TRAINED, ADDED, REMOVED, HEAD, SOFT = "green", "green", "red", "bold", "dim"
_WIDTH = 112  # columns where there is no terminal, and the least that tables take


@dataclass(frozen=True)
class TextSpan:
    """Consecutive tokens of the same mask."""

    text: str
    trained: bool
    num_tokens: int


@dataclass(frozen=True)
class DecodedDocument:
    """One record of a row, or one side of a pair."""

    title: str  # "data/a.jsonl, record 12", with the first token of a later part; or "chosen"
    start: int  # tokens; where it begins in its row
    length: int  # tokens
    spans: tuple[TextSpan, ...]


class Decoder:
    """The tokenizer of a finished set, for reading only."""

    def __init__(self, out: Path) -> None:
        """Raises DataError where OUT has no tokenizer."""
        from datamix.tokenize import decoder

        path = out / "tokenizer" / "tokenizer.json"
        if not path.is_file():
            raise DataError(f"{path} is missing, so that no row can be decoded. Build the set again.")
        self._tokenizer = decoder(path)

    def text(self, ids: Sequence[int]) -> str:
        """The text of some ids, control tokens as they are written."""
        return visible(str(self._tokenizer.decode(list(ids), skip_special_tokens=False)))

    def spans(self, ids: Sequence[int], trained: Sequence[bool]) -> Iterator[TextSpan]:
        """``ids`` cut where ``trained`` changes."""
        end, before = 0, ""
        for mask, run in groupby(trained):
            start, end = end, end + len(list(run))
            whole = self.text(ids[:end])
            added = whole[len(before) :] if whole.startswith(before) else self.text(ids[start:end])
            before = whole
            yield TextSpan(added, mask, end - start)


def render(*parts: Any) -> str:
    """Rich renderables as text with ANSI codes: tables as wide as the terminal, text left for it to wrap."""
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.segment import Segment
    from rich.text import Text

    class Visible:  # names of files and fields may stand anywhere, and must not control the terminal
        def __init__(self, part: Any) -> None:
            self.part = Text(part) if isinstance(part, str) else part

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for segment in console.render(self.part, options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    width, sink = max(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH), io.StringIO()
    console = Console(
        file=sink, force_terminal=True, color_system="standard", width=width, highlight=False, emoji=False
    )
    for part in parts:
        console.print(Visible(part), markup=False, soft_wrap=isinstance(part, Text))
    return sink.getvalue().rstrip("\n")


def documents(
    row: dict[str, Any], inputs: Sequence[Any], decoder: Decoder, say: Words | None = None
) -> Iterator[DecodedDocument]:
    """The documents of one emitted row, in order; their titles in the language of ``say``, by default English."""
    start = 0
    if "input_ids" in row:
        for piece in row["records"]:
            end = start + piece["length"]
            trained = [label != IGNORE_INDEX for label in row["labels"][start:end]]
            spans = tuple(decoder.spans(row["input_ids"][start:end], trained))
            title = record_title(inputs, piece["file"], piece["record"], piece["start"], say)
            yield DecodedDocument(title, start, end - start, spans)
            start = end
        return
    first = row["records"][0]
    for name, ids in ((n.removesuffix("_ids"), v) for n, v in row.items() if n.endswith("_ids")):
        is_prompt = name == "prompt"
        title = (
            record_title(inputs, first["file"], first["record"], say=say)
            if is_prompt
            else name.removesuffix("_completion")
        )
        spans = tuple(decoder.spans(ids, [not is_prompt] * len(ids)))
        yield DecodedDocument(title, 0 if is_prompt else len(row["prompt_ids"]), len(ids), spans)


def record_title(
    inputs: Sequence[Any], file: int, record: int, start: int = 0, say: Words | None = None
) -> str:
    """A record by its file and ordinal: ``data/a.jsonl, record 12``."""
    words = say or Words()
    text = words("{file}, record {n}, from token {start}" if start else "{file}, record {n}")
    return text.format(file=shown_name(inputs[file]["path"]), n=f"{record:,}", start=f"{start:,}")


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of a finished set. Raises RecipeError where there is none, DataError where it cannot be read."""
    path = out / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RecipeError(
            f"{out} holds no manifest.json, so it is not a finished set. Name the OUT folder of a build."
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). Build the set again with --overwrite.") from None
    if isinstance(manifest, dict):
        refuse_newer(out, manifest)
    schema = check_manifest(manifest)
    if not schema.ok:
        raise DataError(
            f"{path} is damaged, or was not written by datamix: {schema.detail}. Build the set again."
        )
    check_listed(out, manifest)
    return manifest


def split_shards(out: Path, manifest: dict[str, Any], split: str = "train") -> list[Path]:
    """The Parquet files of one split (or of ``removed``), in order; files that are missing are left out."""
    paths = sorted(e["path"] for e in manifest["outputs"])
    shards = [out / p for p in paths if p.startswith(f"{split}/") and p.endswith(".parquet")]
    return [path for path in shards if path.is_file()]


def read_row(shards: Sequence[Path], number: int) -> dict[str, Any] | None:
    """Row ``number`` over all ``shards``, reading its row group alone; None where there are fewer rows."""
    for shard in shards:
        file = pq.ParquetFile(shard)
        for group in range(file.metadata.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if number < num_rows:
                row: dict[str, Any] = file.read_row_group(group).slice(number, 1).to_pylist()[0]
                return row
            number -= num_rows
    return None
