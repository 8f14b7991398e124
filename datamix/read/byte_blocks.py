"""The bytes a slice owns, as UTF-8 blocks.

A byte range owns the lines that *begin* in it: reading starts one byte early and drops everything through the first
newline, and runs on past the end through the newline that closes the last line. So any cut of a file gives the same
lines. Encodings other than UTF-8 are transcoded block by block; what cannot be decoded becomes a surrogate, which is
not valid UTF-8, so that exactly the records that hold it are rejected and ``stored_bytes`` gives their bytes back.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator

from datamix.core.contracts import Slice
from datamix.read.decompress import full_blocks, open_stream

_BOMS = {
    "utf-8": b"\xef\xbb\xbf",
    "utf-16-le": b"\xff\xfe",
    "utf-16-be": b"\xfe\xff",
    "gb18030": b"\x841\x953",
}
_WIDE = ("utf-16-le", "utf-16-be")


def utf8_blocks(piece: Slice) -> Iterator[bytes]:
    """Non-empty blocks that join to the slice's bytes in UTF-8, without a byte order mark."""
    encoding = codec_of(piece.encoding)
    blocks = _without_bom(_owned(piece), _BOMS.get(encoding, b"")) if piece.start == 0 else _owned(piece)
    return blocks if encoding == "utf-8" else _transcoded(blocks, encoding)


def stored_bytes(encoding: str) -> Callable[[bytes], bytes] | None:
    """The way back from ``utf8_blocks`` to the bytes as stored; None where they are the same."""
    codec = codec_of(encoding)
    if codec == "utf-8":
        return None
    errors = "surrogatepass" if codec in _WIDE else "surrogateescape"
    return lambda raw: raw.decode("utf-8", "surrogatepass").encode(codec, errors)


def codec_of(encoding: str) -> str:
    """The codec without a byte order mark: ``utf-8-sig`` -> ``utf-8``."""
    return "utf-8" if encoding == "utf-8-sig" else encoding


def is_wide(encoding: str) -> bool:
    """Whether a newline is more than one byte, so that a file may not be cut at bytes."""
    return codec_of(encoding) in _WIDE


def _owned(piece: Slice) -> Iterator[bytes]:
    with open_stream(piece.path, piece.compression, piece.state) as stream:
        if piece.start == 0 and piece.stop is None:
            yield from full_blocks(stream)
            return
        position = max(piece.start - 1, 0)
        stream.seek(position)  # type: ignore[attr-defined]  # only uncompressed files are cut
        beginning = piece.start == 0
        for block in full_blocks(stream):
            position += len(block)
            if not beginning:
                newline = block.find(b"\n")
                if newline < 0:
                    continue
                if piece.stop is not None and position - len(block) + newline + 1 >= piece.stop:
                    return
                block = block[newline + 1 :]
                beginning = True
            if piece.stop is not None and position >= piece.stop:
                last = block.find(b"\n", max(piece.stop - 1 - (position - len(block)), 0))
                if last >= 0:
                    yield block[: last + 1]
                    return
            if block:
                yield block


def _without_bom(blocks: Iterator[bytes], bom: bytes) -> Iterator[bytes]:
    head = b""
    for block in blocks:
        head += block
        if len(head) >= len(bom):
            break
    if rest := head.removeprefix(bom):
        yield rest
    yield from blocks


def _transcoded(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    errors = "surrogatepass" if encoding in _WIDE else "surrogateescape"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for block in blocks:
        if text := decoder.decode(block):
            yield text.encode("utf-8", "surrogatepass")
    try:
        rest = decoder.decode(b"", final=True)
    except UnicodeDecodeError:  # half a UTF-16 unit at the end of the file
        rest = "\udcff"
    if rest:
        yield rest.encode("utf-8", "surrogatepass")
