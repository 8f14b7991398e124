"""Blocks of bytes into lines, at the speed of ``bytes.split``, with a bound on the longest.

Only ``\n`` ends a line: U+2028, U+2029, U+0085 and form feeds stand inside JSON strings and texts, and splitting on
them (as ``str.splitlines`` does) tears records. Memory: one block and one line of at most ``MAX_RECORD_BYTES``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_RECORD_BYTES = 64 << 20  # a longer line or element is rejected as ``too_long``
KEPT_BYTES = 64 << 10  # how much of it is kept


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
    """Takes a too long record in, piece by piece, and remembers only what ``LongLine`` says."""

    def __init__(self, pieces: Iterable[bytes] = ()) -> None:
        self._head = b""
        self._num_bytes = 0
        self._state = hashlib.sha256()
        for piece in pieces:
            self.add(piece)

    def add(self, piece: bytes) -> None:
        self._head += piece[: KEPT_BYTES - len(self._head)]
        self._num_bytes += len(piece)
        self._state.update(piece)

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
