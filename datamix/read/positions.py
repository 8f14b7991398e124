"""Where a record stands in its file: its bytes in the decompressed stream, or its row group.

Records are counted as ``read`` counts them, rejected ones included. Line formats are counted without parsing; of arrays the reader's
own positions are used; of files in another encoding than UTF-8 the bytes before a record are encoded back and counted. Cost: one
pass over the file up to the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

from datamix.core.contracts import Slice
from datamix.read.columnar import opened, record_batches
from datamix.read.decompress import full_blocks, open_stream
from datamix.read.documents import page_ranges
from datamix.read.json_array import split_elements
from datamix.read.lines import (
    BYTE_ORDER_MARKS,
    LongLine,
    Tail,
    codec_of,
    split_lines,
    stored_bytes,
    utf8_blocks,
)
from datamix.read.storage import explained
from datamix.read.tables import table_records

_BLANK = b" \t\r"


@dataclass(frozen=True)
class Place:
    """Bytes ``[start, stop)`` of the decompressed stream and the first line, or a row of a row group (of Arrow files: a batch)."""

    start: int = 0
    stop: int = 0
    line: int | None = None
    row_group: int | None = None
    row: int = 0


def locate(piece: Slice, record: int) -> Place | None:
    """Where record ``record`` of a whole file stands; None where the file has fewer. Raises DataError where it cannot be read."""
    with explained(piece.path):
        if piece.container in ("parquet", "arrow", "arrow_stream"):
            return _group(piece, record)
        if piece.container == "warc":
            start, stop = next((r for n, r in enumerate(page_ranges(piece)) if n == record), (0, 0))
            return Place(start, stop) if stop else None
        is_whole = ("whole", "events") in piece.options
        if piece.container in ("text", "html", "pdf", "docx", "epub") or is_whole:
            with open_stream(piece.path, piece.compression, piece.state) as stream:
                size = sum(map(len, full_blocks(stream)))
            has_lines = is_whole or piece.container == "text"
            return Place(0, size, 1 if has_lines else None) if record == 0 else None
        places = {"json": _elements, "csv": _table}.get(piece.container, _lines)(piece)
        found = next((place for n, place in enumerate(places) if n == record), None)
        return None if found is None else _stored(piece, found)


def _group(piece: Slice, record: int) -> Place | None:
    if piece.container == "parquet":
        with opened(piece.path, piece.compression, piece.state) as source:
            metadata = pq.ParquetFile(source).metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    else:
        sizes = [batch.num_rows for batch in record_batches(piece)]
    for group, size in enumerate(sizes):
        if record < size:
            return Place(row_group=group, row=record)
        record -= size
    return None


def _lines(piece: Slice) -> Iterator[Place]:
    """Lines that are records, as places in the stream of UTF-8."""
    start, line = 0, 1
    for item in split_lines(utf8_blocks(piece)):
        if isinstance(item, LongLine):
            yield Place(start, start + item.num_bytes, line)
            start, line = start + item.num_bytes + 1, line + 1
            continue
        for raw in [item.line] if isinstance(item, Tail) else item:
            if raw.strip(_BLANK):
                yield Place(start, start + len(raw), line)
            start, line = start + len(raw) + 1, line + 1


def _elements(piece: Slice) -> Iterator[Place]:
    field = dict(piece.options).get("array")
    for element in split_elements(utf8_blocks(piece), field=field.encode() if field else None):
        yield Place(element.start, element.start + len(element.raw), element.line)


def _table(piece: Slice) -> Iterator[Place]:
    """Records of a table behind its header: each begins where its first line does."""
    newline = dict(piece.options).get("newline", "\n").encode()
    line_of, lines = 1, _line_starts(piece, newline)
    start = next(lines)
    is_header = True
    for _, raw, line, _ in table_records(piece):
        for _ in range(line - line_of):
            start = next(lines)
        line_of = line
        if not is_header:
            yield Place(start, start + len(raw), line)
        is_header = False


def _line_starts(piece: Slice, newline: bytes) -> Iterator[int]:
    """Where each line begins."""
    yield 0
    before = 0
    for block in utf8_blocks(piece):
        at = block.find(newline)
        while at >= 0:
            yield before + at + 1
            at = block.find(newline, at + 1)
        before += len(block)


def _stored(piece: Slice, place: Place) -> Place:
    """A place in the stream of UTF-8 as one of the bytes as they are stored."""
    codec = codec_of(piece.encoding)
    mark = _mark_bytes(piece, codec)
    if codec == "utf-8":
        return Place(place.start + mark, place.stop + mark, place.line)
    stored, before, ends = mark, 0, [0, 0]
    for block in utf8_blocks(piece):
        for which, end in enumerate((place.start, place.stop)):
            if before <= end <= before + len(block):
                ends[which] = stored + len(stored_bytes(block[: end - before], codec))
        before, stored = before + len(block), stored + len(stored_bytes(block, codec))
        if before > place.stop:
            break
    return Place(ends[0], ends[1], place.line)


def _mark_bytes(piece: Slice, codec: str) -> int:
    """Bytes of the byte order mark that the file begins with."""
    with open_stream(piece.path, piece.compression, piece.state) as stream:
        first = stream.read(4)
    mark = BYTE_ORDER_MARKS.get(codec, b"")
    return len(mark) if first.startswith(mark) else 0
