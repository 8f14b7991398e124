"""The borders of the elements of a JSON array (or of objects one after another), found as a stream.

Two ways share the work. Nearly every element is matched whole by one regular expression (brackets to eight levels,
strings, everything possessive, so linear), at the speed of C. What that cannot match (an element that runs over
the end of the block, deeper nesting, broken brackets or quotes) is walked token by token by ``_Border``, which keeps its
state across blocks and so never looks at a byte twice. A raw newline inside a string is never JSON: the walk takes it as
the string's end, which is how the border is found again behind a missing quote. Behind a missing bracket it is found by the
indentation of the elements. Memory: a few blocks, or one element of at most ``MAX_RECORD_BYTES``.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import NamedTuple

from datamix.core.contracts import Reject, Rows, Slice
from datamix.read.byte_blocks import stored_bytes, utf8_blocks
from datamix.read.json_lines import parsed_rows, restored
from datamix.read.json_values import parse_clean, parse_one
from datamix.read.lines import KEPT_BYTES, MAX_RECORD_BYTES, LongLine, Overflow

_LEVELS = 8
_BLANK = b" \t\r\n"
_PATIENCE_BYTES = 1 << 20  # how far an element is followed before its brackets are doubted
_KEPT_BEHIND = 256  # bytes
_STRING = rb'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"'
_FLAT = rb'[^"\[\]{}]++'


def _nested(levels: int) -> bytes:
    inner = rb"|" + _nested(levels - 1) if levels else b""
    return rb"[\[{](?:" + _FLAT + rb"|" + _STRING + inner + rb")*+[\]}]"


_SPACE = rb"[ \t\r\n]*+"
_ELEMENT = re.compile(
    _SPACE + rb"(" + _nested(_LEVELS) + rb"|" + _STRING + rb'|[^ \t\r\n,"\[\]{}]++)' + _SPACE + rb"([,\]])"
)
_LEADING = re.compile(_SPACE)
_OUTSIDE = re.compile(rb'"|[\[{]++|[\]}]++|,')  # brackets in runs: nesting may be a gigabyte deep
# up to the end of a string, or what interrupts it
_INSIDE = re.compile(rb'[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+')


class Element(NamedTuple):
    """One element's bytes, the 1-based line it begins on, and what is already known to be wrong with it."""

    raw: bytes
    line: int
    problem: tuple[str, str] | None = None


class _Border:
    """Walks tokens to the end of an element: to the comma or bracket that ends it, in an array or out of one."""

    def __init__(self, in_array: bool) -> None:
        self.depth = 0
        self._in_array = in_array
        self._in_string = False

    @property
    def is_inside(self) -> bool:
        """Whether a bracket or a quote is open."""
        return self.depth > 0 or self._in_string

    def walk(self, text: bytes, position: int, stop: int) -> tuple[int, bool]:
        """Go on from ``position``: (where the element ends, True), or (where to go on behind ``stop``, False)."""
        while True:
            if self._in_string:
                end = _INSIDE.match(text, position, stop).end()  # type: ignore[union-attr]
                if end >= stop - 1 and text[end:stop] in (b"", b"\\"):
                    return end, False
                self._in_string = False
                position = end + (text[end : end + 1] == b'"')
                continue
            found = _OUTSIDE.search(text, position, stop)
            if found is None:
                return stop, False
            position = found.end()
            token = found[0]
            if token == b'"':
                self._in_string = True
            elif token[0] in b"[{":
                self.depth += len(token)
            elif token != b"," and self.depth > len(token):
                self.depth -= len(token)
            else:  # a comma, or brackets of which one may end the element: one at a time
                position = found.start() + 1
                if self._ends(token[:1]):
                    return position - self._in_array, True

    def _ends(self, token: bytes) -> bool:
        """Take in a comma or a closing bracket; whether the element ends there."""
        if self.depth == 0:
            return self._in_array and token != b"}"
        self.depth -= token != b","
        return self.depth == 0 and not self._in_array


class _Reader:
    """Bytes with a position in them, refilled from blocks; counts lines as it goes."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self.text = b""
        self.position = 0
        self.line = 1

    def refill(self) -> bool:
        """Drop what was passed, but for the line's indentation, and append a block; False at the end."""
        block = next(self._blocks, None)
        if block is None:
            return False
        dropped = max(self.position - _KEPT_BEHIND, 0)
        self.text = self.text[dropped:] + block
        self.position -= dropped
        return True

    def go(self, position: int) -> None:
        """Move on to ``position``."""
        self.line += self.text.count(b"\n", self.position, position)
        self.position = position

    def peek(self) -> bytes:
        """The next byte that is not white space, b"" at the end; moves up to it."""
        while True:
            self.go(_LEADING.match(self.text, self.position).end())  # type: ignore[union-attr]
            if self.position < len(self.text) or not self.refill():
                return self.text[self.position : self.position + 1]


def split_elements(blocks: Iterator[bytes], max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Element]:
    """The elements of a top-level array, or a top-level value itself.

    Objects one after another (as ``jq`` writes them) are all read. Anything else behind the first value is told as an
    element with a problem, and read as far as it can be.
    """
    reader = _Reader(blocks)
    first = True
    seen_object = False
    while start := reader.peek():
        if start == b"[":
            if not first:
                yield Element(
                    b"", reader.line, ("json_syntax", "a second array begins behind the first value")
                )
            yield from _array(reader, max_bytes)
        elif start == b"{" and (first or seen_object):
            seen_object = True
            yield _walked(reader, False, max_bytes)
        else:
            yield _scalar(reader, first, max_bytes)
        first = False
    if first:
        yield Element(b"", reader.line, ("json_syntax", "the file holds no JSON value"))


def _array(reader: _Reader, max_bytes: int) -> Iterator[Element]:
    reader.position += 1
    ended_by, cut_short = b"", False
    while True:
        ended_by = yield from _matched(reader, ended_by)
        if ended_by == b"]":
            return
        if following := reader.peek():
            if following == b"]" and ended_by == b",":
                yield Element(
                    b"", reader.line, ("json_syntax", "a comma with nothing behind it ends the array")
                )
            elif following != b"]":
                element = _walked(reader, True, max_bytes)
                cut_short = element.problem is not None and element.problem[0] == "truncated"
                yield element
            ended_by = reader.text[reader.position : reader.position + 1]
            reader.position += ended_by in (b",", b"]")
        else:
            if not cut_short:
                yield Element(b"", reader.line, ("truncated", "the file ends inside its array"))
            return
        if ended_by == b"]":
            return


def _matched(reader: _Reader, ended_by: bytes) -> Generator[Element, None, bytes]:
    """The elements that the expression matches one after another; returns what ended the last of them."""
    text, position, line = reader.text, reader.position, reader.line
    match_element = _ELEMENT.match
    while match := match_element(text, position):
        start = match.start(1)
        line += text.count(b"\n", position, start)
        yield Element(match[1], line)
        position = match.end()
        line += text.count(b"\n", start, position)
        ended_by = match[2]
        if ended_by == b"]":
            break
    reader.position, reader.line = position, line
    return ended_by


def _walked(reader: _Reader, in_array: bool, max_bytes: int) -> Element:
    """One element, token by token; the reader then stands on what ended it."""
    line = reader.line
    border = _Border(in_array)
    overflow: Overflow | None = None
    stop = min(len(reader.text), reader.position + _PATIENCE_BYTES)
    position, found = border.walk(reader.text, reader.position, stop)
    resumed = 0
    while not found:
        if overflow is None and position - reader.position > min(_PATIENCE_BYTES, max_bytes) - 2:
            if resumed := _resumption(reader, in_array):
                break
            if position - reader.position > max_bytes:
                overflow = Overflow()
        if overflow is not None:
            overflow.add(reader.text[reader.position : position])
            reader.go(position)
        passed = position - reader.position
        if stop == len(reader.text) and not reader.refill():
            resumed = _resumption(reader, in_array)
            break
        stop = len(reader.text)
        position, found = border.walk(reader.text, reader.position + passed, stop)
    if resumed and overflow is None:
        raw = reader.text[reader.position : resumed].rstrip(_BLANK)
        reader.go(resumed)
        return Element(
            raw.removesuffix(b","), line, ("json_syntax", "a bracket or quote in it is never closed")
        )
    if not found:
        position = len(reader.text)
    if overflow is not None or position - reader.position > max_bytes:
        return _too_long(reader, position, overflow or Overflow(), line)
    raw = reader.text[reader.position : position].rstrip(_BLANK)
    reader.go(position)
    return Element(raw, line, ("truncated", "the file ends inside it") if border.is_inside else None)


def _too_long(reader: _Reader, position: int, overflow: Overflow, line: int) -> Element:
    overflow.add(reader.text[reader.position : position])
    reader.go(position)
    long: LongLine = overflow.close()
    return Element(long.head, line, ("too_long", long.detail))


def _resumption(reader: _Reader, in_array: bool) -> int:
    """Where the next element begins behind one that seems never to end; 0 where nothing tells.

    It begins at the same indentation on a later line. Where elements are not indented, nested objects might not
    be either, unless each element has its line for itself.
    """
    text, start = reader.text, reader.position
    indent = text[text.rfind(b"\n", 0, start) + 1 : start]
    if not in_array or text[start : start + 1] != b"{" or indent.strip(b" \t"):
        return 0
    alone = text[start + 1 : start + 3].lstrip(b"\r").startswith(b"\n")
    return 0 if alone and not indent else text.find(b"\n" + indent + b"{", start) + 1


def _scalar(reader: _Reader, first: bool, max_bytes: int) -> Element:
    """A top-level value that is neither array nor object, or stray bytes behind the first value: to the line's end."""
    line = reader.line
    end = reader.text.find(b"\n", reader.position)
    while end < 0 and len(reader.text) - reader.position <= max_bytes and reader.refill():
        end = reader.text.find(b"\n", reader.position)
    end = len(reader.text) if end < 0 else end
    raw = reader.text[reader.position : end].rstrip(b" \t\r")
    reader.go(end)
    if first:
        return Element(raw, line)
    return Element(raw, line, ("json_syntax", "stray bytes behind the first value"))


_CHUNK_BYTES = 8 << 20


def read_json(piece: Slice, chunk_records: int) -> Iterator[Rows]:
    """Each element's object, as it was found."""
    restore = stored_bytes(piece.encoding)
    record = 0
    for chunk in _chunks(split_elements(utf8_blocks(piece)), chunk_records):
        rows = _rows(chunk, record)
        record += len(chunk)
        yield rows if restore is None else restored(rows, restore)


def _chunks(elements: Iterator[Element], chunk_records: int) -> Iterator[list[Element]]:
    chunk: list[Element] = []
    num_bytes = 0
    for element in elements:
        chunk.append(element)
        num_bytes += len(element.raw)
        if len(chunk) >= chunk_records or num_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _rows(chunk: list[Element], record: int) -> Rows:
    sound = [element for element in chunk if element.problem is None]
    rows = parsed_rows([e.raw for e in sound], [e.line for e in sound], record, parse_clean, parse_one)
    if len(sound) == len(chunk):
        return rows
    ordinals = [record + i for i, element in enumerate(chunk) if element.problem is None]
    rejects = [
        Reject(ordinals[r.record - record], r.line, r.reason, r.detail, r.raw) for r in rows.rejects
    ] + [
        Reject(record + i, e.line, *e.problem, e.raw[:KEPT_BYTES] if e.problem[0] == "too_long" else e.raw)
        for i, e in enumerate(chunk)
        if e.problem is not None
    ]
    rejects.sort(key=lambda reject: reject.record)
    return Rows(rows.values, [ordinals[r - record] for r in rows.records], rows.lines, rows.raws, rejects)
