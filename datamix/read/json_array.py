"""The elements of a JSON array (or objects one after another, or an array in an object) as a stream.

Two ways share the work. Nearly every element is matched whole by one regular expression (brackets to eight
levels, strings, everything possessive, so linear), at the speed of C. What that cannot match (an element
that runs over the end of the block, deeper nesting, broken brackets or quotes) is walked token by token by
``_Border``, which keeps its state across blocks and so never reads a byte twice. A raw newline inside a
string is never JSON: the walk takes it as the string's end, so that a missing quote costs one element.
Behind a missing bracket no border is certain: reading stops with an error that names the line. Memory: a few
blocks, or one element of at most ``MAX_RECORD_BYTES``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from datamix.core.contracts import Reject, Rows, Slice
from datamix.core.errors import DataError, shown_name
from datamix.read.json_lines import JsonProblem, ends_early, parse_clean, parse_one, parsed_rows
from datamix.read.lines import MAX_RECORD_BYTES, Overflow, utf8_blocks, with_euro

_LEVELS = 8
_CHUNK_BYTES = 8 << 20
_STRING = rb'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"'
_NESTED = b""  # an object or array with brackets to ``_LEVELS`` levels
for _ in range(_LEVELS + 1):
    _NESTED = rb'[\[{](?:[^"\[\]{}]++|' + _STRING + (_NESTED and b"|" + _NESTED) + rb")*+[\]}]"
_SPACE = rb"[ \t\r\n]*+"
_ELEMENT = re.compile(
    _SPACE + rb"(" + _NESTED + rb"|" + _STRING + rb'|[^ \t\r\n,"\[\]{}]++)' + _SPACE + rb"([,\]])"
)
_LEADING = re.compile(_SPACE)
_RECORDS = re.compile(rb"(" + _STRING + rb")" + _SPACE + rb":" + _SPACE + rb"\[" + _SPACE + rb"\{")
_FIELD_BYTES = 1 << 10  # a field's name and the white space behind it are shorter
_OUTSIDE = re.compile(rb'"|[\[{]++|[\]}]++|,')  # brackets in runs: nesting may be a gigabyte deep
# up to the end of a string, or what interrupts it
_INSIDE = re.compile(rb'[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+')


class Element(NamedTuple):
    """One element's bytes, the 1-based line it begins on, what is already known to be wrong with it, and where it begins."""

    raw: bytes
    line: int
    problem: tuple[str, str] | None = None
    start: int = 0  # bytes of the blocks before it


class _Border:
    """Walks tokens to the end of an element: the comma or ``closer`` behind it, without one its last bracket."""

    def __init__(self, closer: bytes) -> None:
        self.depth = 0
        self.in_string = False
        self._closer = closer

    def walk(self, text: bytes, position: int) -> tuple[int, bool]:
        """(where the element ends, True), or (where to go on with more text, False)."""
        while True:
            if self.in_string:
                end = _INSIDE.match(text, position).end()  # type: ignore[union-attr]
                if text[end : end + 2] in (b"", b"\\"):
                    return end, False
                self.in_string = False
                position = end + (text[end : end + 1] == b'"')
                continue
            match = _OUTSIDE.search(text, position)
            if match is None:
                return len(text), False
            start, position = match.span()
            token = match[0]
            if token == b'"':
                self.in_string = True
            elif token == b",":
                if self._closer and self.depth == 0:
                    return start, True
            elif token[0] in b"[{":
                self.depth += len(token)
            elif self._closer:
                # any bracket of the other kind without its partner is passed over
                end = text.find(self._closer, start + self.depth, position)
                if end >= 0:
                    return end, True
                self.depth = max(self.depth - len(token), 0)
            elif len(token) >= self.depth:
                return start + self.depth, True
            else:
                self.depth -= len(token)


class _Reader:
    """Bytes with a position in them, refilled from blocks; counts lines as it goes."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self.text = b""
        self.position = 0
        self.base = 0  # bytes that were dropped
        self.line = 1

    def refill(self) -> bool:
        """Drop what was passed and append a block; False at the end."""
        block = next(self._blocks, None)
        if block is None:
            return False
        self.base += self.position
        self.text, self.position = self.text[self.position :] + block, 0
        return True

    def go(self, position: int) -> bytes:
        """Move on to ``position``; return what was passed."""
        passed = self.text[self.position : position]
        self.line += passed.count(b"\n")
        self.position = position
        return passed

    def peek(self) -> bytes:
        """The next byte that is not white space, b"" at the end; moves up to it."""
        while True:
            self.go(_LEADING.match(self.text, self.position).end())  # type: ignore[union-attr]
            if self.position < len(self.text) or not self.refill():
                return self.text[self.position : self.position + 1]


def split_elements(
    blocks: Iterator[bytes], max_bytes: int = MAX_RECORD_BYTES, field: bytes | None = None
) -> Iterator[Element]:
    """The elements of a top-level array, or a top-level value itself; with a ``field``: those of the array there.

    Objects one after another (as ``jq`` writes them) are all read. Anything else behind the first value
    becomes an element with a problem, to the end of its line, and is read as far as it can be.
    """
    reader = _Reader(blocks)
    first = True
    seen_object = False
    while start := reader.peek():
        line = reader.line
        if start == b"[":
            if not first:
                yield Element(b"", line, ("json_syntax", "a second array begins behind the first value"))
            yield from _array(reader, max_bytes)
        elif start == b"{" and (first or seen_object):
            seen_object = True
            if field is None:
                yield _walked(reader, b"", max_bytes)
            else:
                yield from _field(reader, field, max_bytes)
        else:
            end = reader.text.find(b"\n", reader.position)
            while end < 0 and len(reader.text) - reader.position <= max_bytes and reader.refill():
                end = reader.text.find(b"\n", reader.position)
            raw = reader.go(end if end >= 0 else len(reader.text)).rstrip(b" \t\r")
            stray = ("json_syntax", "stray bytes behind the first value")
            yield Element(raw, line, None if first else stray)
        first = False
    if first:
        yield Element(b"", reader.line, ("json_syntax", "the file holds no JSON value"))


def _array(reader: _Reader, max_bytes: int) -> Iterator[Element]:
    reader.position += 1
    ended_by = b""  # the comma or bracket behind the last element
    while ended_by != b"]":
        text, position, line = reader.text, reader.position, reader.line
        while ended_by != b"]" and (match := _ELEMENT.match(text, position)):
            start = match.start(1)
            line += text.count(b"\n", position, start)
            yield Element(match[1], line, None, reader.base + start)
            position = match.end()
            line += text.count(b"\n", start, position)
            ended_by = match[2]
        reader.position, reader.line = position, line
        if ended_by == b"]":
            return
        following = reader.peek()
        if not following:
            yield Element(b"", reader.line, ("truncated", "the file ends inside its array"))
            return
        if following != b"]":
            element = _walked(reader, b"]", max_bytes)
            yield element
            if element.problem is not None and element.problem[0] in ("truncated", "unclosed"):
                return
        elif ended_by == b",":
            yield Element(b"", reader.line, ("json_syntax", "a comma with nothing behind it ends the array"))
        ended_by = reader.text[reader.position : reader.position + 1]
        reader.position += len(ended_by)


def _field(reader: _Reader, field: bytes, max_bytes: int) -> Iterator[Element]:
    """The elements of the array in a field of an object; other fields are passed over, but for a second array."""
    is_field = re.compile(rb'"' + re.escape(field) + rb'"' + _SPACE + rb":" + _SPACE + rb"\[")
    while True:
        reader.position += 1
        reader.peek()
        while len(reader.text) - reader.position < _FIELD_BYTES and reader.refill():
            pass
        if match := is_field.match(reader.text, reader.position):
            reader.go(match.end() - 1)
            yield from _array(reader, max_bytes)
        else:
            other = _walked(reader, b"}", max_bytes)
            if match := _RECORDS.match(other.raw):
                yield Element(b"", other.line, ("second_array", match[1].decode("utf-8", "replace")))
            if other.problem is not None and other.problem[0] != "too_long":
                yield other
                return
        if reader.peek() != b",":
            break
    reader.position += reader.peek() == b"}"


def _walked(reader: _Reader, closer: bytes, max_bytes: int) -> Element:
    """One element, token by token; the reader's position is then behind it."""
    line, begin = reader.line, reader.base + reader.position
    border = _Border(closer)
    overflow: Overflow | None = None
    position, has_ended = border.walk(reader.text, reader.position)
    while not has_ended:
        if overflow is None and position - reader.position > max_bytes:
            overflow = Overflow()
        if overflow is not None:
            overflow.add(reader.go(position))
        passed = position - reader.position
        if not reader.refill():
            position = len(reader.text)
            break
        position, has_ended = border.walk(reader.text, reader.position + passed)
    raw = reader.go(position)
    is_open = not has_ended and (border.in_string or border.depth > 0)
    if overflow is not None or len(raw) > max_bytes:
        overflow = overflow or Overflow()
        overflow.add(raw)
        long = overflow.close()
        if is_open:
            return Element(long.head, line, ("unclosed", f"{long.num_bytes} bytes follow"))
        return Element(long.head, line, ("too_long", long.detail))
    raw = raw.rstrip(b" \t\r\n")
    if has_ended:
        return Element(raw, line, None, begin)
    if is_open and ends_early(raw) and not raw.endswith(b"]"):
        return Element(raw, line, ("truncated", "the file ends inside it"))
    _, problem = parse_one(raw)
    if problem is not None and (is_open or (raw[:1] in b"[{" and problem[0] == "json_syntax")):
        return Element(raw, line, ("unclosed", problem[1]))  # the array's last bracket may be its last byte
    return Element(raw, line, None, begin)


def read_json(piece: Slice, chunk_records: int) -> Iterator[Rows]:
    """Each element's object as it is.

    Raises DataError where an element is never closed, unless the file just ends inside it, and where an object
    holds two arrays of records.
    """
    if ("whole", "events") in piece.options:
        yield from _read_events(piece)
        return
    record, chunk, num_bytes = 0, list[Element](), 0
    field = dict(piece.options).get("array")
    for element in split_elements(utf8_blocks(piece), field=field.encode() if field else None):
        if element.problem is not None and element.problem[0] == "second_array":
            raise DataError(
                f"{shown_name(piece.path)}: is an object with two arrays of records, {field!r} and "
                f"{element.problem[1]} (line {element.line}). Which of them is meant is not guessed: write each to a "
                "file."
            )
        if element.problem is not None and element.problem[0] == "unclosed":
            raise DataError(
                f"{shown_name(piece.path)}: the value that begins in line {element.line} is never closed: a "
                f"bracket or quote is missing in it ({element.problem[1]}), so that no record behind it can be "
                "read. Fix it there, or write the file again."
            )
        chunk.append(element)
        num_bytes += len(element.raw)
        if len(chunk) >= chunk_records or num_bytes >= _CHUNK_BYTES:
            yield _rows(chunk, record, piece.encoding)
            record, chunk, num_bytes = record + len(chunk), [], 0
    if chunk:
        yield _rows(chunk, record, piece.encoding)


def _read_events(piece: Slice) -> Iterator[Rows]:
    """A stream of events, as an array or one a line, is one record: ``{"events": [...]}``."""
    content = b""
    for block in utf8_blocks(piece):
        content += block
        if len(content) > MAX_RECORD_BYTES:
            overflow = Overflow()
            overflow.add(content)
            long = overflow.close()
            yield Rows([], [], [], [], [Reject(0, 1, "too_long", long.detail, long.head)])
            return
    events = content.strip(b" \t\r\n")
    if not events.startswith(b"["):
        events = b"[" + b",".join(line for line in events.split(b"\n") if line.strip()) + b"]"
    rows = parsed_rows([b'{"events":' + events + b"}"], [0], [1], parse_clean, parse_one)
    rows.raws[:] = [content for _ in rows.raws]
    rows.rejects[:] = [replace(reject, raw=content) for reject in rows.rejects]
    yield rows


def _rows(chunk: list[Element], record: int, encoding: str) -> Rows:
    def parse(raw: bytes) -> tuple[Any, JsonProblem | None]:
        return parse_one(with_euro(raw, encoding))

    sound = [(i, element) for i, element in enumerate(chunk, record) if element.problem is None]
    rows = parsed_rows(
        [e.raw for _, e in sound], [i for i, _ in sound], [e.line for _, e in sound], parse_clean, parse
    )
    broken = [
        Reject(i, e.line, *e.problem, e.raw) for i, e in enumerate(chunk, record) if e.problem is not None
    ]
    rows.rejects[:] = sorted(rows.rejects + broken, key=lambda reject: reject.record)
    return rows
