"""Emitted rows as a person reads them: tokens decoded back to text, trained and untrained parts told apart.

A row becomes documents, a document becomes spans. Text is cut only where the mask changes, and each span is what the
longer prefix adds to the shorter one, so that decoders which join tokens (byte-level, SentencePiece) show what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from datamix.core.arrays import IGNORE_INDEX
from datamix.core.errors import DataError, RecipeError
from datamix.pipeline.opening import refuse_newer


@dataclass(frozen=True)
class TextSpan:
    """Some tokens in a row of the same mask."""

    text: str
    trained: bool
    num_tokens: int


@dataclass(frozen=True)
class DecodedDocument:
    """One record of a row, or one side of a pair."""

    title: str  # "data/a.jsonl, record 12", with the tokens where only a part stands here; or "chosen"
    start: int  # tokens; where it begins in its row
    length: int  # tokens
    spans: tuple[TextSpan, ...]


class Decoder:
    """The tokenizer of a finished set, for reading only."""

    def __init__(self, out: Path) -> None:
        """Raises DataError where OUT keeps no tokenizer."""
        from datamix.tokenize import decoder

        path = out / "tokenizer" / "tokenizer.json"
        if not path.is_file():
            raise DataError(f"{path} is missing, so that no row can be decoded. Build the set again.")
        self._tokenizer = decoder(path)

    def text(self, ids: Sequence[int]) -> str:
        """The text of some ids, control tokens shown as they are written."""
        return visible(str(self._tokenizer.decode(list(ids), skip_special_tokens=False)))

    def spans(self, ids: Sequence[int], trained: Sequence[bool]) -> Iterator[TextSpan]:
        """``ids`` cut where ``trained`` changes."""
        end = 0
        before = ""
        for mask, run in groupby(trained):
            start, end = end, end + len(list(run))
            whole = self.text(ids[:end])
            added = whole[len(before) :] if whole.startswith(before) else self.text(ids[start:end])
            before = whole
            yield TextSpan(added, mask, end - start)


_SHOWN = {
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys(range(128, 160), "�"),
    **{code: f"<U+{code:04X}>" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}


def visible(text: str) -> str:
    """Text that cannot steer a terminal or a page: control and direction characters shown as signs."""
    return text.translate(_SHOWN)


def documents(
    row: dict[str, Any], inputs: Sequence[dict[str, Any]], decoder: Decoder
) -> list[DecodedDocument]:
    """The documents of one emitted row, in order."""
    if "input_ids" in row:
        return list(_records(row, inputs, decoder))
    parts = {
        n.removesuffix("_ids").removesuffix("_completion"): v for n, v in row.items() if n.endswith("_ids")
    }
    found: list[DecodedDocument] = []
    for name, ids in parts.items():
        title = title_of(row["records"][0], inputs) if name == "prompt" else name
        spans = tuple(decoder.spans(ids, [name != "prompt"] * len(ids)))
        found.append(DecodedDocument(title, 0 if name == "prompt" else len(parts["prompt"]), len(ids), spans))
    return found


def _records(
    row: dict[str, Any], inputs: Sequence[dict[str, Any]], decoder: Decoder
) -> Iterator[DecodedDocument]:
    start = 0
    for piece in row["records"]:
        end = start + piece["length"]
        trained = [label != IGNORE_INDEX for label in row["labels"][start:end]]
        spans = tuple(decoder.spans(row["input_ids"][start:end], trained))
        yield DecodedDocument(title_of(piece, inputs), start, end - start, spans)
        start = end


def title_of(piece: dict[str, Any], inputs: Sequence[dict[str, Any]]) -> str:
    """A record by its file and ordinal: ``data/a.jsonl, record 12``."""
    path = inputs[piece["file"]]["path"]
    part = f", from token {piece['start']:,}" if piece["start"] else ""
    return f"{path}, record {piece['record']:,}{part}"


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of a finished set. Raises RecipeError where there is none."""
    path = out / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RecipeError(
            f"{out} holds no manifest.json, so it is not a finished set. Name the OUT folder of a build."
        ) from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). Build the set again with --overwrite.") from None
    refuse_newer(out, manifest)
    return manifest


def train_shards(out: Path, manifest: dict[str, Any], split: str = "train") -> list[Path]:
    """The Parquet files of one split, in the order of training."""
    paths = sorted(e["path"] for e in manifest["outputs"])
    return [out / p for p in paths if p.startswith(f"{split}/") and p.endswith(".parquet")]


def read_row(shards: Sequence[Path], number: int) -> dict[str, Any] | None:
    """Row ``number`` over all ``shards``, reading its row group alone; None where there are fewer rows."""
    for shard in shards:
        file = pq.ParquetFile(shard)
        if number >= file.metadata.num_rows:
            number -= file.metadata.num_rows
            continue
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if number < rows:
                found: dict[str, Any] = file.read_row_group(group).slice(number, 1).to_pylist()[0]
                return found
            number -= rows
    return None
