"""Bytes to rows in a fixed order: find files, tell what they hold, cut them, read them.

``find`` gives paths, ``sniff`` what a path holds, ``cut`` its slices, ``read`` the rows of a slice and what could not be
read among them. Nothing is guessed at and nothing is lost: every record is a value or a reject with its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from datamix.core.contracts import Rows, Slice
from datamix.read.byte_blocks import stored_bytes
from datamix.read.columnar import read_arrow, read_parquet
from datamix.read.documents import read_document, read_extracted, read_warc
from datamix.read.json_array import read_json
from datamix.read.json_lines import Take, read_jsonl, read_lines
from datamix.read.listing import find
from datamix.read.sniffing import Sniff, cut, sniff
from datamix.read.storage import changed_while_read, explained, file_state, is_remote, sha256_of
from datamix.read.tables import read_csv

__all__ = ["DOCUMENTS", "Sniff", "cut", "file_state", "find", "read", "sha256_of", "sniff"]

DOCUMENTS = ("text", "html", "pdf", "docx", "epub")  # containers whose files are one document each
_READERS = {
    "jsonl": read_jsonl,
    "lines": read_lines,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "arrow_stream": read_arrow,
    "warc": read_warc,
}


def read(
    piece: Slice, chunk_records: int = 1024, limit: int | None = None, take: Take | None = None
) -> Iterator[Rows]:
    """The slice's records in order, in chunks of at most ``chunk_records`` records and about 8 MiB.

    ``limit``: at most that many records, rejects counted. Records are counted from 0, lines from 1, both
    inside the slice. ``take`` is offered the lines of JSON Lines in UTF-8 before they are parsed; what it makes of
    them stands in ``Rows.taken``.

    Raises: DataError where the file is missing, truncated or damaged.
    """
    if limit is not None:
        chunk_records = max(min(chunk_records, limit), 1)
    with explained(piece.path), _remote_unchanged(piece):
        if piece.container == "text":
            chunks = read_document(piece)
        elif piece.container in DOCUMENTS:
            chunks = read_extracted(piece)
        elif piece.container == "jsonl" and limit is None and stored_bytes(piece.encoding) is None:
            chunks = read_jsonl(piece, chunk_records, take)
        else:
            chunks = _READERS[piece.container](piece, chunk_records)
        for rows in chunks:
            if limit is None:
                yield rows
                continue
            rows = _first(rows, limit)
            if rows.values or rows.rejects:
                yield rows
            last = max([*rows.records[-1:], *(r.record for r in rows.rejects[-1:])], default=limit)
            if last + 1 >= limit:
                return


@contextmanager
def _remote_unchanged(piece: Slice) -> Iterator[None]:
    """A URL has no descriptor to compare: its state is asked for before and after it is read."""
    watched = bool(piece.state) and is_remote(piece.path)
    if watched and file_state(piece.path) != tuple(piece.state):
        raise changed_while_read(piece.path)
    yield
    if watched and file_state(piece.path) != tuple(piece.state):
        raise changed_while_read(piece.path)


def _first(rows: Rows, limit: int) -> Rows:
    """What of a chunk stands before record ``limit``."""
    count = sum(1 for record in rows.records if record < limit)
    return Rows(
        rows.values[:count],
        rows.records[:count],
        rows.lines[:count],
        rows.raws[:count],
        [reject for reject in rows.rejects if reject.record < limit],
    )
