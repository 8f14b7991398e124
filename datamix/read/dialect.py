"""Which dialect a table is written in: delimiter, quote, escape.

Every combination is tried on the head with the strict parser; the one whose records agree most on their number of columns
wins, and of equals the one with more columns. ``csv.Sniffer`` guesses from character statistics and is wrong on
Chinese prose with commas.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass

_DELIMITERS = (",", "\t", ";", "|", "\x01")
_HEAD_CHARS = 64 << 10


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
        """Whether this can hardly be anything but a table: two columns or more, alike in every record, and named."""
        names = [name.strip() for name in self.header]
        return (
            self.num_columns > 1
            and self.agreement == 1.0
            and self.num_records >= 3
            and len(names) == self.num_columns == len(set(names))
            and all(0 < len(name) <= 40 and not name.endswith((".", "。", "!", "?")) for name in names)
        )


def detect_dialect(text: str, is_whole: bool, prefer: str = ",") -> Dialect:
    """The dialect of a table that begins with ``text``; ``prefer`` is the delimiter where nothing tells."""
    options: list[tuple[str, str]] = []
    if "\n" not in text and "\r" in text:
        options.append(("newline", "\r"))
        text = text.replace("\r", "\n")
    head = text[:_HEAD_CHARS]
    is_whole = is_whole and len(text) <= _HEAD_CHARS
    delimiters = sorted((d for d in _DELIMITERS if d in head), key=lambda d: d != prefer) or [prefer]
    quotes: list[tuple[str, str | None]] = [('"', None)]
    if '\\"' in head:
        quotes.append(('"', "\\"))
    if any(d + "'" in head or "\n'" in head for d in delimiters):
        quotes.append(("'", None))
    tried = [_tried(head, is_whole, d, q, e) for d in delimiters for q, e in quotes]
    best = max(tried, key=lambda t: (t.num_columns > 1, round(t.agreement, 2), t.num_columns))
    return Dialect(
        tuple(sorted([*options, *best.options])),
        best.num_columns,
        best.agreement,
        best.num_records,
        best.header,
    )


def _tried(text: str, is_whole: bool, delimiter: str, quote: str, escape: str | None) -> Dialect:
    spaced = f"{delimiter} {quote}" in text and f"{delimiter}{quote}" not in text
    options = [("delimiter", delimiter), ("quotechar", quote)]
    if escape is not None:
        options.append(("escapechar", escape))
    if spaced:
        options.append(("skipinitialspace", "true"))
    records = _records(text, is_whole, delimiter, (quote, escape, spaced))
    counts = Counter(len(record) for record in records if record)
    num_columns, agreeing = max(counts.items(), key=lambda c: (c[1], c[0]), default=(0, 0))
    header = tuple(next((r for r in records if r), []))
    return Dialect(tuple(options), num_columns, agreeing / max(counts.total(), 1), counts.total(), header)


def _records(
    text: str, is_whole: bool, delimiter: str, quoting: tuple[str, str | None, bool]
) -> list[list[str]]:
    """Records of the head; a line that does not parse counts as a record of no known width."""
    quote, escape, spaced = quoting
    reader = csv.reader(
        text.split("\n"),
        delimiter=delimiter,
        quotechar=quote,
        escapechar=escape,
        doublequote=escape is None,
        skipinitialspace=spaced,
        strict=True,
    )
    records: list[list[str]] = []
    while True:
        try:
            records.append(next(reader))
        except StopIteration:
            break
        except csv.Error:
            records.append(["?"])
    return records if is_whole or len(records) < 2 else records[:-1]
