"""Removed records beside what was kept instead, the difference marked.

The words are read again from the input files where these are found (by size and sha256); else the ids stand alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from datamix.core.errors import RecipeError
from datamix.reporting.decode import title_of, train_shards
from datamix.reporting.inspect_records import find_input, read_texts
from datamix.reporting.terminal import GONE, HEAD, NEW, SOFT, render

_FIRST = 10  # pairs shown where none is asked for
_SAME = 400  # characters shown of words that both have
_WORDS = 1500  # compared of each side: the work grows with the square
_PIECE = re.compile(r"[㐀-鿿豈-﫿]|\w+|\s+|.", re.DOTALL)

Words = dict[tuple[int, int], str]  # (file, record) -> text
Pair = tuple[int, dict[str, Any]]  # number, line of removed/


def show_pairs(out: Path, manifest: dict[str, Any], row: int | None) -> str:
    """Pair ``row`` of all that deduplication removed, or the first few. Raises RecipeError where there is no such pair."""
    pairs, total = _pairs(out, manifest, row)
    if row is not None and not pairs:
        raise RecipeError(f"--row {row}: {total:,} records were removed, numbered from 0.")
    words = _read_words(out, manifest, pairs)
    parts: list[Any] = [Text(f"{total:,} records removed", HEAD)]
    for number, pair in pairs:
        parts += [Text(""), _headline(number, pair), *_side_by_side(pair, manifest, words)]
    if row is None and total > len(pairs):
        parts += [Text(""), Text(f"{total - len(pairs):,} more: choose one with --row N.", SOFT)]
    return render(*parts)


def _pairs(out: Path, manifest: dict[str, Any], row: int | None) -> tuple[list[Pair], int]:
    """The wanted removals with their numbers, and how many there are in all; those that differ come before exact ones."""
    differing: list[Pair] = []
    exact: list[Pair] = []
    total = 0
    for path in train_shards(out, manifest, "removed"):
        for batch in pq.ParquetFile(path).iter_batches():
            removed = batch.filter(pc.equal(batch.column("fate"), "removed"))
            same = np.array(pc.equal(removed.column("reason"), "exact"))
            for group, chosen in ((differing, ~same), (exact, same)):
                places = np.flatnonzero(chosen)
                wanted = places[: _FIRST - len(group)] if row is None else places[places + total == row]
                group += [(total + int(n), removed.slice(int(n), 1).to_pylist()[0]) for n in wanted]
            total += removed.num_rows
    return [*differing, *exact][:_FIRST], total


def _headline(number: int, pair: dict[str, Any]) -> Text:
    similarity = "" if pair["similarity"] is None else f"   similarity {pair['similarity']:.3f}"
    detail = f"   {pair['detail']}" if pair["detail"] else ""
    return Text(f"{number:,}   {pair['reason']}{similarity}{detail}", HEAD)


def _read_words(out: Path, manifest: dict[str, Any], pairs: list[Pair]) -> Words:
    wanted: defaultdict[int, set[int]] = defaultdict(set)
    for _, pair in pairs:
        wanted[pair["file"]].add(pair["record"])
        if pair["kept_file"] is not None:
            wanted[pair["kept_file"]].add(pair["kept_record"])
    words: Words = {}
    for file, records in sorted(wanted.items()):
        entry = manifest["inputs"][file]
        path = find_input(entry, out)
        columns = manifest["recipe"]["sources"].get(entry["source"], {}).get("columns") or {}
        if path is not None:
            texts = read_texts(path, tuple(sorted(columns.items())), records)
            words |= {(file, record): text for record, text in texts.items()}
    return words


def _side_by_side(pair: dict[str, Any], manifest: dict[str, Any], words: Words) -> Iterator[Any]:
    yield Text(f"removed  {pair['source']}, {_title(pair['file'], pair['record'], manifest)}", SOFT)
    yield Text(f"kept     {_kept_title(pair, manifest)}", SOFT)
    gone = words.get((pair["file"], pair["record"]))
    kept = None if pair["kept_file"] is None else words.get((pair["kept_file"], pair["kept_record"]))
    if gone is None:
        yield Text("(the words are not shown: its input file was not found from here, or has changed)", SOFT)
    elif kept is None or gone == kept:
        yield Text(gone[:_SAME] + (" ..." if len(gone) > _SAME else ""))
        yield Text("(the same words)" if kept is not None else "(the other's words were not found)", SOFT)
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True, show_header=False)
        table.add_column(ratio=1)
        table.add_column(ratio=1)
        table.add_row(*_marked(gone, kept))
        yield table


def _title(file: int, record: int, manifest: dict[str, Any]) -> str:
    return title_of({"file": file, "record": record, "start": 0}, manifest["inputs"])


def _kept_title(pair: dict[str, Any], manifest: dict[str, Any]) -> str:
    if pair["kept_file"] is None:
        record = "" if pair["kept_record"] is None else f", record {pair['kept_record']:,}"
        return f"{pair['kept_source'] or 'nothing here'}{record}"
    return f"{pair['kept_source']}, {_title(pair['kept_file'], pair['kept_record'], manifest)}"


def _marked(gone: str, kept: str) -> tuple[Text, Text]:
    """Both texts, with the words that the other lacks coloured."""
    left, right = (_PIECE.findall(t)[:_WORDS] for t in (gone, kept))
    texts = (Text(), Text())
    for tag, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        same = tag == "equal"
        texts[0].append("".join(left[a:b]), None if same else f"bold {GONE}")
        texts[1].append("".join(right[c:d]), None if same else f"bold {NEW}")
    return texts
