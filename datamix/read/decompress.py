"""Decompress as a stream; a truncated file is an error, never a shorter one.

gzip, zstd and lz4 go through Arrow's codecs: they bound what one read can return (a bomb stays a stream),
read files of several members or frames, and raise at an end that comes too early. ``zstandard``'s
reader does not: a file cut at a block border ends there in silence. xz and bz2 go through the standard
library's decoders with the same care (Arrow's bz2 fails on an empty member).
"""

from __future__ import annotations

import bz2
import lzma
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self, cast

import pyarrow as pa

from datamix.core.errors import DataError, shown_name
from datamix.read.storage import BLOCK_BYTES, State, check_unchanged, is_remote, open_file

_FED_BYTES = 256 << 10
_MEASURED_BYTES = 8 << 20
_COUNTED_BYTES = 16 << 10  # the part in which the end is met is lost
_XZ_MEMORY_BYTES = 512 << 20  # xz -9 needs 65 MiB

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
)


class ByteStream(Protocol):
    """Bytes in order; ``read`` returns b"" at the end and only there."""

    def read(self, num_bytes: int) -> bytes: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def compression_of(head: bytes) -> str | None:
    """The compression a file's first bytes announce: gzip, zstd, xz, bz2, lz4 or None."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bz2"
    if head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:  # a skippable frame comes first
        return "zstd"
    return None


def open_stream(path: str, compression: str | None, state: State = ()) -> ByteStream:
    """Open a file as a stream of decompressed bytes; ``state`` as in ``open_file``.

    Raises DataError (at the read that meets it) where the file is truncated or damaged.
    """
    if compression is None:
        return open_file(path, state)
    if compression in ("xz", "bz2"):
        return _Checked(path, _Members(open_file(path, state), compression))
    if is_remote(path):
        stored = pa.PythonFile(open_file(path), "r")
        return _Checked(path, pa.CompressedInputStream(stored, compression))
    local = pa.OSFile(path, "rb")
    check_unchanged(path, state, os.fstat(local.fileno()))
    return _Checked(
        path,
        pa.CompressedInputStream(local, compression),
        lambda: check_unchanged(path, state, os.fstat(local.fileno())),
    )


def expansion(path: str, compression: str | None) -> float:
    """Bytes that a stored byte unpacks to, measured on the first 8 MiB of a file."""
    if compression is None:
        return 1.0
    with open_file(path) as stored:
        head = stored.read(_MEASURED_BYTES)
    stream: Any = (
        _Members(cast(BinaryIO, BytesIO(head)), compression)
        if compression in ("xz", "bz2")
        else pa.CompressedInputStream(pa.BufferReader(head), compression)
    )
    total = 0
    with suppress(OSError, EOFError, lzma.LZMAError, pa.ArrowException):  # the head ends inside the stream
        while block := stream.read(_COUNTED_BYTES):
            total += len(block)
    return max(1.0, total / max(1, len(head)))


def full_blocks(stream: ByteStream) -> Iterator[bytes]:
    """The rest of a stream in blocks of exactly ``BLOCK_BYTES`` but for the last."""
    while block := stream.read(BLOCK_BYTES):
        while len(block) < BLOCK_BYTES and (more := stream.read(BLOCK_BYTES - len(block))):
            block += more
        yield block


class _Checked:
    """A decompressing stream whose errors name the file and what to do."""

    def __init__(self, path: str, stream: Any, check: Callable[[], None] | None = None) -> None:
        self._path = path
        self._stream = stream
        self._check = check  # of the stored file, before it is closed

    def read(self, num_bytes: int) -> bytes:
        try:
            block: bytes = self._stream.read(num_bytes)
        except (OSError, EOFError, lzma.LZMAError, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise DataError(
                f"{shown_name(self._path)}: damaged or truncated: {str(error).rstrip('.')}. Nothing of it was "
                "used: download or copy it again. If it needs more memory than is safe (a zstd window above 128 "
                "MiB, an xz dictionary above 512 MiB), compress it again at an ordinary level."
            ) from error
        return block

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._check is not None:
                self._check()
        finally:
            self._stream.close()


class _Members:
    """xz streams or bz2 members one after another; zeros between and after them are padding."""

    def __init__(self, stored: BinaryIO, compression: str) -> None:
        self._stored = stored
        self._compression = compression
        self._pending = b""
        self._begin_member()

    def _begin_member(self) -> None:
        self._decoder: bz2.BZ2Decompressor | lzma.LZMADecompressor = (
            bz2.BZ2Decompressor()
            if self._compression == "bz2"
            else lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
        )

    def read(self, num_bytes: int) -> bytes:
        while True:
            if self._decoder.eof:
                rest = self._decoder.unused_data.lstrip(b"\x00")
                while not rest:
                    block = self._stored.read(_FED_BYTES)
                    if not block:
                        return b""
                    rest = block.lstrip(b"\x00")
                self._begin_member()
                self._pending = rest
            fed, self._pending = self._pending, b""
            if not fed and self._decoder.needs_input:
                fed = self._stored.read(_FED_BYTES)
                if not fed:
                    raise EOFError("the compressed file ends before its contents do")
            if block := self._decoder.decompress(fed, num_bytes):
                return block

    def close(self) -> None:
        self._stored.close()
