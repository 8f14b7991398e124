"""The bytes of a slice as UTF-8 blocks and as lines, at the speed of ``bytes.split``.

A byte range holds the lines that *begin* in it: reading starts one byte early and drops everything through
the first newline, and runs on past the end through the newline that closes the last line. So any cut of a
file gives the same lines. Encodings other than UTF-8 are transcoded block by block; what cannot be decoded
becomes a surrogate, which is not valid UTF-8, so that exactly the records that hold it are rejected and
``as_stored`` gives their bytes back.

Only ``\\n`` ends a line: U+2028, U+2029, U+0085 and form feeds occur inside JSON strings and texts, and
splitting on them (as ``str.splitlines`` does) tears records. Memory: one block and one line of at most
``MAX_RECORD_BYTES``.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from datamix.core.contracts import Reject, Rows, Slice
from datamix.read.charset import other_encoding
from datamix.read.decompress import full_blocks, open_stream

MAX_RECORD_BYTES = 64 << 20  # a longer line or element is rejected as ``too_long``
LONG_HEAD_BYTES = 64 << 10  # how much of it goes to ``rejects/``
BYTE_ORDER_MARKS = {
    "utf-8": b"\xef\xbb\xbf",
    "utf-16-le": b"\xff\xfe",
    "utf-16-be": b"\xfe\xff",
    "gb18030": b"\x841\x953",
}
_ESCAPED_EURO = "\udc80".encode("utf-8", "surrogatepass")
_WIDE = ("utf-16-le", "utf-16-be")


def codec_of(encoding: str) -> str:
    """The codec that reads an encoding: without a byte order mark, and GB18030 for GBK, which is a part of it."""
    return {"utf-8-sig": "utf-8", "gbk": "gb18030", "cp936": "gb18030"}.get(encoding.lower(), encoding)


def is_wide(encoding: str) -> bool:
    """Whether a newline is more than one byte, so that a file may not be cut at bytes."""
    return codec_of(encoding) in _WIDE


def utf8_blocks(piece: Slice) -> Iterator[bytes]:
    """Non-empty blocks that join to the slice's bytes in UTF-8, without a byte order mark."""
    encoding = codec_of(piece.encoding)
    errors = "surrogatepass" if encoding in _WIDE else "surrogateescape"
    decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)(errors)
    mark = BYTE_ORDER_MARKS.get(encoding, b"") if piece.start == 0 else b""
    for block in _blocks_of_lines(piece):
        block, mark = block.removeprefix(mark), b""
        if decoder is not None:
            block = decoder.decode(block).encode("utf-8", "surrogatepass")
        if block:
            yield block
    if decoder is not None:
        try:
            rest = decoder.decode(b"", final=True)
        except UnicodeDecodeError:  # half a UTF-16 unit at the end of the file
            rest = "\udcff"
        if rest:
            yield rest.encode("utf-8", "surrogatepass")


def with_euro(raw: bytes, encoding: str) -> bytes:
    """A transcoded record with its euro signs: in GBK Windows writes the byte 0x80, which no codec knows."""
    return raw.replace(_ESCAPED_EURO, "€".encode()) if codec_of(encoding) == "gb18030" else raw


def stored_bytes(raw: bytes, encoding: str) -> bytes:
    """The way back from ``utf8_blocks`` to the bytes as stored."""
    codec = codec_of(encoding)
    errors = "surrogatepass" if codec in _WIDE else "surrogateescape"
    return raw if codec == "utf-8" else raw.decode("utf-8", "surrogatepass").encode(codec, errors)


def encoding_problem(raw: bytes, encoding: str) -> str | None:
    """Why a record as ``utf8_blocks`` gives it is not text in its file's encoding: it is in another, or a byte is bad."""
    codec = codec_of(encoding)
    stored = stored_bytes(raw, codec)
    other = other_encoding(stored, codec) if codec not in _WIDE else None
    if other is not None:
        return (
            f"is {other.upper()} in a file that is {codec.upper()}: the file mixes encodings. Write it in one"
        )
    if codec == "utf-8":
        return None
    text = raw.decode("utf-8", "surrogatepass")
    euro = "\udc80" if codec == "gb18030" else ""
    bad = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff" and c != euro), None)
    if bad is None:
        return None
    offset = len(stored_bytes(text[:bad].encode("utf-8", "surrogatepass"), codec))
    return f"byte 0x{stored[offset]:02x} at offset {offset} is not valid {codec.upper()}"


def as_stored(rows: Rows, encoding: str) -> Rows:
    """The same rows with their bytes as stored, where a file was transcoded to be read.

    What is in another encoding than its file is rejected: GBK reads UTF-8 as other characters. The head of a
    record above the bound may end inside a character and stays as it is.
    """
    codec = codec_of(encoding)
    rejects = [_stored_reject(reject, codec) for reject in rows.rejects]
    if codec == "utf-8":
        return replace(rows, rejects=rejects) if rejects else rows
    raws = [stored_bytes(raw, codec) for raw in rows.raws]
    sound = [i for i, raw in enumerate(raws) if codec in _WIDE or other_encoding(raw, codec) is None]
    for i in sorted(set(range(len(raws))) - set(sound)):
        rejects.append(
            _stored_reject(Reject(rows.records[i], rows.lines[i], "utf8", "", rows.raws[i]), codec)
        )
    return replace(
        rows,
        values=[rows.values[i] for i in sound],
        records=[rows.records[i] for i in sound],
        lines=[rows.lines[i] for i in sound],
        raws=[raws[i] for i in sound],
        rejects=sorted(rejects, key=lambda reject: reject.record),
    )


def _stored_reject(reject: Reject, codec: str) -> Reject:
    """A reject with the bytes as stored and, where the encoding is the reason, the reason in its words."""
    if reject.reason == "too_long" or (codec == "utf-8" and reject.reason != "utf8"):
        return reject
    problem = encoding_problem(reject.raw, codec)
    reason = "encoding" if codec != "utf-8" and problem is not None else reject.reason
    return replace(
        reject, reason=reason, detail=problem or reject.detail, raw=stored_bytes(reject.raw, codec)
    )


def _blocks_of_lines(piece: Slice) -> Iterator[bytes]:
    """The bytes of the lines that begin in the slice; the first block holds at least the first line."""
    with open_stream(piece.path, piece.compression, piece.state) as stream:
        if piece.start == 0 and piece.stop is None:
            yield from full_blocks(stream)
            return
        end = max(piece.start - 1, 0)
        stream.seek(end)  # type: ignore[attr-defined]  # only uncompressed files are cut
        is_inside = piece.start == 0
        for block in full_blocks(stream):
            start, end = end, end + len(block)
            if not is_inside:
                newline = block.find(b"\n")
                if newline < 0:
                    continue
                start += newline + 1
                if piece.stop is not None and start >= piece.stop:
                    return
                block, is_inside = block[newline + 1 :], True
            if piece.stop is not None and end >= piece.stop:
                last = block.find(b"\n", max(piece.stop - 1 - start, 0))
                if last >= 0:
                    yield block[: last + 1]
                    return
            if block:
                yield block


@dataclass(frozen=True)
class LongLine:
    """A line above the bound: its head, its length in bytes and the sha256 of all of it."""

    head: bytes
    num_bytes: int
    sha256: str

    @property
    def detail(self) -> str:
        return f"{self.num_bytes} bytes, more than {MAX_RECORD_BYTES >> 20} MiB; sha256 {self.sha256}"


@dataclass(frozen=True)
class Tail:
    """The last line, where no newline ends it."""

    line: bytes


class Overflow:
    """Takes in a record above the bound, part by part; stores only what ``LongLine`` holds."""

    def __init__(self, parts: Iterable[bytes] = ()) -> None:
        self._head = b""
        self._num_bytes = 0
        self._state = hashlib.sha256()
        for part in parts:
            self.add(part)

    def add(self, part: bytes) -> None:
        self._head += part[: LONG_HEAD_BYTES - len(self._head)]
        self._num_bytes += len(part)
        self._state.update(part)

    def close(self) -> LongLine:
        return LongLine(self._head, self._num_bytes, self._state.hexdigest())


def split_lines(
    blocks: Iterable[bytes], newline: bytes = b"\n", max_bytes: int = MAX_RECORD_BYTES
) -> Iterator[list[bytes] | LongLine | Tail]:
    """Lines without their newline, in order: lists of them, and those that need care one by one."""
    open_parts: list[bytes] = []  # of the line that no newline has ended yet
    open_bytes = 0
    overflow: Overflow | None = None
    for block in blocks:
        lines = block.split(newline)
        rest = lines.pop()
        if lines and overflow is not None:
            overflow.add(lines.pop(0))
            yield overflow.close()
            overflow = None
        elif lines and open_parts:
            open_bytes += len(lines[0])
            open_parts.append(lines.pop(0))
            if open_bytes > max_bytes:
                yield Overflow(open_parts).close()
            else:
                lines.insert(0, b"".join(open_parts))
        if len(block) != len(rest):  # a newline was met: what follows it is a new line
            open_parts, open_bytes = [], 0
        if lines:
            yield lines
        if overflow is not None:
            overflow.add(rest)
        elif rest:
            open_parts.append(rest)
            open_bytes += len(rest)
            if open_bytes > max_bytes:
                overflow = Overflow(open_parts)
                open_parts, open_bytes = [], 0
    if overflow is not None:
        yield overflow.close()
    elif open_parts:
        yield Tail(b"".join(open_parts))
