"""Text and Markdown files to rows: each file is one document, ``{"text": ..., "path": ...}``.

The path is the ``name`` option where the caller gives one (a path relative to what was asked for), else the file's own
name: never where the file lies on this machine. Memory: the document, at most ``MAX_RECORD_BYTES``.
"""

from __future__ import annotations

from collections.abc import Iterator

from datamix.contracts import Reject, Rows, Slice
from datamix.read.blocks import stored_bytes, utf8_blocks
from datamix.read.jsonl import restored
from datamix.read.lines import MAX_RECORD_BYTES, LongLine, Overflow


def read_document(piece: Slice) -> Iterator[Rows]:
    """The whole file as one row; a file of nothing but white space has none."""
    raw = whole_file(piece)
    if isinstance(raw, LongLine):
        advice = f"{raw.detail}; `format: lines` reads each line as a document"
        yield Rows([], [], [], [], [Reject(0, 1, "too_long", advice, raw.head)])
        return
    if not raw.strip():
        return
    restore = stored_bytes(piece.encoding)
    rows = _document(raw, name_of(piece))
    yield rows if restore is None else restored(rows, restore)


def whole_file(piece: Slice) -> bytes | LongLine:
    """The file's bytes, text as UTF-8; of a file above the bound what is known of it."""
    parts: list[bytes] = []
    num_bytes = 0
    overflow: Overflow | None = None
    for block in utf8_blocks(piece):
        num_bytes += len(block)
        if overflow is None and num_bytes > MAX_RECORD_BYTES:
            overflow, parts = Overflow(parts), []
        if overflow is None:
            parts.append(block)
        else:
            overflow.add(block)
    return b"".join(parts) if overflow is None else overflow.close()


def name_of(piece: Slice) -> str:
    """The document's name: relative where the caller gives one."""
    return dict(piece.options).get("name", piece.path.rsplit("/", 1)[-1])


def _document(raw: bytes, name: str) -> Rows:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        detail = f"byte 0x{raw[error.start]:02x} at offset {error.start} is not valid UTF-8"
        return Rows([], [], [], [], [Reject(0, 1, "utf8", detail, raw)])
    if "\x00" in text:
        return Rows([], [], [], [], [Reject(0, 1, "nul", f"a NUL byte at offset {raw.index(0)}", raw)])
    return Rows([{"text": text, "path": name}], [0], [1], [raw])
