"""CSV and TSV of any dialect to rows, by the ``csv`` module in strict mode.

The dialect: every combination of delimiter, quote and escape is tried on the head with the strict parser;
the one whose records agree most on their number of columns wins, and of equals the one with more columns. Where none fits every record, quotes may be plain characters.
``csv.Sniffer`` guesses from character statistics and is wrong on Chinese prose with commas.

The first record names the columns; each further one becomes an object of strings. Strict, because the
lenient parser merges records behind a stray quote silently: here the line that holds it is rejected and
reading goes on with the next. Values keep their spaces and line breaks. Memory: one record of at most
``MAX_RECORD_BYTES``.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from datamix.core.contracts import Reject, Rows, Slice
from datamix.core.errors import DataError, shown_name
from datamix.read.json_lines import not_utf8
from datamix.read.lines import (
    LONG_HEAD_BYTES,
    MAX_RECORD_BYTES,
    LongLine,
    Tail,
    encoding_problem,
    split_lines,
    utf8_blocks,
    with_euro,
)

_DELIMITERS = (",", "\t", ";", "|", "\x01")
_DIALECT_CHARS = 256 << 10  # of the head, on which dialects are tried
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Dialect:
    """A dialect, and how well the head agrees with it."""

    options: tuple[tuple[str, str], ...]
    num_columns: int
    agreement: float  # share of the records that have as many columns as most
    num_records: int
    header: tuple[str, ...]

    @property
    def is_table(self) -> bool:
        """Whether it is surely a table: two named columns or more, as many in every record."""
        names = [name.strip() for name in self.header]
        return (
            self.num_columns > 1
            and self.agreement == 1.0
            and self.num_records >= 3
            and len(names) == self.num_columns == len(set(names))
            and all(0 < len(name) <= 40 and not name.endswith((".", "。", "!", "?")) for name in names)
        )


def detect_dialect(text: str, is_whole: bool, prefer: str = ",") -> Dialect:
    """The dialect of a table that begins with ``text``; ``prefer``: the delimiter where none is evident."""
    options: dict[str, str] = {}
    if "\n" not in text and "\r" in text:
        options["newline"] = "\r"
        text = text.replace("\r", "\n")
    head = text[:_DIALECT_CHARS]
    is_whole = is_whole and len(text) <= _DIALECT_CHARS
    delimiters = sorted((d for d in _DELIMITERS if d in head), key=lambda d: d != prefer) or [prefer]
    quotes = [{"quotechar": '"'}]
    if '\\"' in head:
        quotes.append({"quotechar": '"', "escapechar": "\\"})
    if any(d + "'" in head or "\n'" in head for d in delimiters):
        quotes.append({"quotechar": "'"})
    dialects = [
        _dialect(head, is_whole, {**options, "delimiter": delimiter, **quote})
        for delimiter, quote in product(delimiters, quotes)
    ]
    best = max(dialects, key=lambda d: (d.num_columns > 1, round(d.agreement, 2), d.num_columns))
    if '"' not in head:
        return best
    # perhaps quotes are characters: every line is a record of as many columns then, and few cells are quoted
    plains = [_dialect(head, is_whole, {**options, "delimiter": d, "quoting": "none"}) for d in delimiters]
    plain = max(plains, key=lambda d: (d.num_columns > 1, d.agreement, d.num_columns))
    cells = [c for c in re.split(f"[{re.escape(dict(plain.options)['delimiter'])}\r\n]", head) if '"' in c]
    quoted = sum(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
    fits_better = best.agreement < 1.0 or plain.num_records > best.num_records
    is_plain = plain.num_columns > 1 and plain.agreement == 1.0 and 2 * quoted <= len(cells)
    return plain if is_plain and fits_better else best


def _dialect(text: str, is_whole: bool, options: dict[str, str]) -> Dialect:
    """How the head reads with some options; a line that does not parse counts as one column."""
    delimiter, quote = options["delimiter"], options.get("quotechar")
    if quote and f"{delimiter} {quote}" in text and f"{delimiter}{quote}" not in text:
        options["skipinitialspace"] = "true"
    reader = _reader(text.split("\n"), options)
    records: list[list[str]] = []
    while True:
        try:
            records.append(next(reader))
        except StopIteration:
            break
        except csv.Error:
            records.append(["?"])
    if not is_whole and len(records) > 1:
        records.pop()
    records = [record for record in records if record]
    counts = Counter(map(len, records))
    num_columns, agreeing = max(counts.items(), key=lambda c: (c[1], c[0]), default=(0, 0))
    header = tuple(records[0]) if records else ()
    return Dialect(
        tuple(sorted(options.items())), num_columns, agreeing / max(len(records), 1), len(records), header
    )


def _reader(lines: Iterable[str], options: dict[str, str]) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_RECORD_BYTES)  # the module's limit is 128 KiB, for the whole process
    dialect: dict[str, Any] = {key: value for key, value in options.items() if key != "newline"}
    dialect["skipinitialspace"] = "skipinitialspace" in options
    dialect["quoting"] = csv.QUOTE_NONE if "quoting" in options else csv.QUOTE_MINIMAL
    return csv.reader(lines, **dialect, doublequote="escapechar" not in options, strict=True)


class _TooLong(Exception):
    """A record, by way of a quote that is never closed, has grown above the bound."""


class _Lines(Iterator[str]):
    """Physical lines for the csv reader; those of the current record can be handed out again."""

    def __init__(self, piece: Slice, newline: bytes) -> None:
        self._newline, self._encoding = newline, piece.encoding
        self._items = split_lines(utf8_blocks(piece), newline)
        self._waiting: deque[bytes | LongLine] = deque()
        self.line = 1  # of the next line to be handed out
        self.begin()

    def begin(self) -> None:
        """Forget the last record."""
        self.raws: list[bytes] = []  # lines of the current record, with their newline
        self.num_bytes = 0
        self.problem: tuple[str, str] | None = None  # of the current record

    def __next__(self) -> str:
        while not self._waiting:
            item = next(self._items)  # StopIteration ends this iterator too
            if isinstance(item, list):
                self._waiting.extend(line + self._newline for line in item)
            else:
                self._waiting.append(item.line if isinstance(item, Tail) else item)
        line = self._waiting.popleft()
        self.line += 1
        if isinstance(line, LongLine):
            self.problem = ("too_long", line.detail)
            self.raws.append(line.head)
            return "\n"
        self.raws.append(line)
        self.num_bytes += len(line)
        if self.num_bytes > MAX_RECORD_BYTES:
            raise _TooLong
        try:
            text = with_euro(line, self._encoding).decode()
        except UnicodeDecodeError as error:
            self.problem = self.problem or not_utf8(line, error)
            text = line.decode("utf-8", "replace")
        return text if self._newline == b"\n" else text.replace("\r", "\n")

    def retreat(self) -> None:
        """Let the current record be its first line only, and hand the others out again."""
        again = self.raws[1:]
        self._waiting.extendleft(reversed(again))
        self.line -= len(again)
        self.raws = self.raws[:1]


def read_csv(piece: Slice, chunk_records: int) -> Iterator[Rows]:
    """Each record as ``{column: text}``.

    Raises DataError where the header cannot be read or two columns have one name.
    """
    rows, record, num_bytes = Rows([], [], [], []), 0, 0
    header: list[str] | None = None
    for values, raw, line, problem in table_records(piece):
        if header is None:
            detail = encoding_problem(raw, piece.encoding) or (problem and problem[1])
            if detail:
                raise DataError(
                    f"{shown_name(piece.path)}: the header line cannot be read: {detail}. Fix the first line."
                )
            header = [name or f"column_{i}" for i, name in enumerate(values, 1)]
            name, count = Counter(header).most_common(1)[0]
            if count > 1:
                raise DataError(
                    f"{shown_name(piece.path)}: two columns are named {name!r}. Rename one in the first line."
                )
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
            yield rows
            rows, num_bytes = Rows([], [], [], []), 0
    if rows.values or rows.rejects:
        yield rows


def table_records(piece: Slice) -> Iterator[tuple[list[str], bytes, int, tuple[str, str] | None]]:
    """(values, raw bytes, first line, problem) of each record that is not blank."""
    options = dict(piece.options)
    lines = _Lines(piece, options.get("newline", "\n").encode())
    reader = _reader(lines, options)
    while True:
        lines.begin()
        line = lines.line
        try:
            values = next(reader, None)
        except (csv.Error, _TooLong) as error:
            lines.retreat()
            reader = _reader(lines, options)
            detail = str(error) or "a quote in it is never closed"
            values, lines.problem = [""], lines.problem or ("csv_syntax", detail)
        if values is None:
            return
        raw = b"".join(lines.raws)
        if lines.problem is not None and lines.problem[0] == "too_long":
            raw = raw[:LONG_HEAD_BYTES]
        if lines.problem is None and b"\x00" in raw:
            lines.problem = ("nul", "a NUL byte")
        if values or lines.problem:
            yield values, raw.rstrip(b"\r\n"), line, lines.problem
