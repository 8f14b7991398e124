"""Bytes to rows in a fixed order.

``find`` gives paths, ``sniff`` what a path holds, ``cut`` its slices, ``read`` the rows of a slice and what
could not be read among them. Nothing is guessed at and nothing is lost: every record is a value or a reject
with its bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import partial

from datamix.core.contracts import Rows, Slice
from datamix.read.columnar import read_arrow, read_parquet
from datamix.read.decompress import expansion
from datamix.read.documents import read_document, read_warc
from datamix.read.json_array import read_json
from datamix.read.json_lines import Take, read_jsonl, read_lines
from datamix.read.lines import as_stored, codec_of
from datamix.read.listing import find, local_path, name_files, published_path
from datamix.read.positions import Place, locate
from datamix.read.sniffing import Sniff, cut, sniff
from datamix.read.storage import check_unchanged, explained, file_state, is_remote, sha256_of
from datamix.read.tables import read_csv

__all__ = [
    "DOCUMENTS",
    "Place",
    "Sniff",
    "codec_of",
    "cut",
    "expansion",
    "file_state",
    "find",
    "local_path",
    "locate",
    "name_files",
    "published_path",
    "read",
    "sha256_of",
    "sniff",
]

DOCUMENTS = ("text", "html", "pdf", "docx", "epub")  # containers whose files are one document each
_READERS: dict[str, Callable[[Slice, int], Iterator[Rows]]] = {
    "jsonl": read_jsonl,
    "lines": read_lines,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "arrow_stream": read_arrow,
    "warc": read_warc,
    **dict.fromkeys(DOCUMENTS, read_document),
}


def read(
    piece: Slice, chunk_records: int = 1024, limit: int | None = None, take: Take | None = None
) -> Iterator[Rows]:
    """The slice's records in order, in chunks of at most ``chunk_records`` records and about 8 MiB.

    ``limit``: at most that many records, rejects counted. Records are counted from 0, lines from 1, both
    inside the slice. ``take`` is offered the lines of JSON Lines in UTF-8 before they are parsed; what it
    makes of them is in ``Rows.taken``.

    Raises DataError where the file is missing, truncated or damaged.
    """
    reader = _READERS[piece.container]
    if piece.container == "jsonl" and limit is None and codec_of(piece.encoding) == "utf-8":
        reader = partial(read_jsonl, take=take)
    if limit is not None:
        chunk_records = max(min(chunk_records, limit), 1)
    # a URL has no descriptor to compare: its state is asked for before and after it is read
    watched = piece.state if is_remote(piece.path) else ()
    with explained(piece.path):
        check_unchanged(piece.path, watched)
        for rows in reader(piece, chunk_records):
            rows = as_stored(rows, piece.encoding)
            if limit is None:
                yield rows
                continue
            count = bisect_left(rows.records, limit)
            part = (rows.values[:count], rows.records[:count], rows.lines[:count], rows.raws[:count])
            rejects = [reject for reject in rows.rejects if reject.record < limit]
            if count or rejects:
                yield Rows(*part, rejects)
            if max([*rows.records[-1:], *(r.record for r in rows.rejects[-1:])], default=limit) + 1 >= limit:
                break
        check_unchanged(piece.path, watched)
