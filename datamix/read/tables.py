"""CSV and TSV of any dialect to rows, by the ``csv`` module in strict mode.

The first record names the columns; each further one becomes an object of strings. Strict, because the lenient parser
merges records behind a stray quote without a word: here the line that holds it is rejected and reading goes on with
the next. Values keep their spaces and line breaks. Memory: one record of at most ``MAX_RECORD_BYTES``.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from typing import Any

from datamix.core.contracts import Reject, Rows, Slice
from datamix.core.errors import DataError, mask_url
from datamix.read.byte_blocks import stored_bytes, utf8_blocks
from datamix.read.json_lines import restored
from datamix.read.lines import KEPT_BYTES, MAX_RECORD_BYTES, LongLine, Tail, split_lines

_CHUNK_BYTES = 8 << 20


class _TooLong(Exception):
    """A record, by way of a quote that never closes, has grown above the bound."""


class _Lines(Iterator[str]):
    """Physical lines for the csv reader, which remembers those of the record in hand and can take them back."""

    def __init__(self, piece: Slice) -> None:
        options = dict(piece.options)
        self._newline = options.get("newline", "\n").encode()
        self._items = split_lines(utf8_blocks(piece), self._newline)
        self._waiting: deque[bytes | LongLine] = deque()
        self.taken: list[bytes] = []  # raw lines of the record in hand, with their newline
        self.num_bytes = 0
        self.line = 1  # of the next line to be handed out
        self.problem: tuple[str, str] | None = None  # of the record in hand

    def __next__(self) -> str:
        while not self._waiting:
            self._fill()
        item = self._waiting.popleft()
        self.line += 1
        if isinstance(item, LongLine):
            self.problem = ("too_long", item.detail)
            self.taken.append(item.head)
            return "\n"
        self.taken.append(item)
        self.num_bytes += len(item)
        if self.num_bytes > MAX_RECORD_BYTES:
            raise _TooLong
        try:
            text = item.decode()
        except UnicodeDecodeError as error:
            detail = f"byte 0x{item[error.start]:02x} at offset {error.start} of the line is not valid"
            self.problem = self.problem or ("utf8", detail)
            text = item.decode("utf-8", "replace")
        return text if self._newline == b"\n" else text.replace("\r", "\n")

    def _fill(self) -> None:
        item = next(self._items)  # StopIteration ends this iterator too
        if isinstance(item, list):
            self._waiting.extend(line + self._newline for line in item)
        else:
            self._waiting.append(item.line if isinstance(item, Tail) else item)

    def begin(self) -> None:
        """Forget the last record."""
        self.taken = []
        self.num_bytes = 0
        self.problem = None

    def give_back(self) -> None:
        """Let the record in hand be its first line only, and hand the others out again."""
        again = self.taken[1:]
        self._waiting.extendleft(reversed(again))
        self.line -= len(again)
        self.taken = self.taken[:1]


def read_csv(piece: Slice, chunk_records: int) -> Iterator[Rows]:
    """Each record as ``{column: text}``.

    Raises: DataError where two columns have one name.
    """
    restore = stored_bytes(piece.encoding)
    rows, record, num_bytes = Rows([], [], [], []), 0, 0
    header: list[str] | None = None
    for values, raw, line, problem in _records(piece):
        if header is None:
            header = _header(piece.path, values, problem)
            continue
        if problem is None and len(values) != len(header):
            problem = ("csv_columns", f"{len(values)} columns where the header has {len(header)}")
        if problem is None:
            rows.values.append(dict(zip(header, values, strict=True)))
            rows.records.append(record)
            rows.lines.append(line)
            rows.raws.append(raw)
        else:
            rows.rejects.append(Reject(record, line, *problem, raw))
        record += 1
        num_bytes += len(raw)
        if len(rows.values) + len(rows.rejects) >= chunk_records or num_bytes >= _CHUNK_BYTES:
            yield rows if restore is None else restored(rows, restore)
            rows, num_bytes = Rows([], [], [], []), 0
    if rows.values or rows.rejects:
        yield rows if restore is None else restored(rows, restore)


def _records(piece: Slice) -> Iterator[tuple[list[str], bytes, int, tuple[str, str] | None]]:
    """(values, raw bytes, first line, problem) of each record that is not blank."""
    csv.field_size_limit(MAX_RECORD_BYTES)  # the module's own bound is 128 KiB, for the whole process
    dialect = _dialect(piece.options)
    lines = _Lines(piece)
    reader = csv.reader(lines, **dialect)
    while True:
        lines.begin()
        line = lines.line
        try:
            values = next(reader, None)
        except (csv.Error, _TooLong) as error:
            lines.give_back()
            reader = csv.reader(lines, **dialect)
            said = str(error) or "a quote in it is never closed"
            values, lines.problem = [""], lines.problem or ("csv_syntax", said)
        if values is None:
            return
        raw = b"".join(lines.taken)
        if lines.problem is not None and lines.problem[0] == "too_long":
            raw = raw[:KEPT_BYTES]
        if lines.problem is None and b"\x00" in raw:
            lines.problem = ("nul", "a NUL byte")
        if values or lines.problem:
            yield values, raw.rstrip(b"\r\n"), line, lines.problem


def _dialect(options: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    said = dict(options)
    return {
        "delimiter": said.get("delimiter", ","),
        "quotechar": said.get("quotechar", '"'),
        "escapechar": said.get("escapechar"),
        "doublequote": "escapechar" not in said,
        "skipinitialspace": said.get("skipinitialspace") == "true",
        "strict": True,
    }


def _header(path: str, names: list[str], problem: tuple[str, str] | None) -> list[str]:
    if problem is not None:
        raise DataError(
            f"{mask_url(path)}: the header line cannot be read: {problem[1]}. Fix the first line."
        )
    named = [name or f"column_{i}" for i, name in enumerate(names, 1)]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise DataError(
            f"{mask_url(path)}: two columns are named {twice[0]!r}. Rename one in the first line."
        )
    return named
