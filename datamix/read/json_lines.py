"""Line files to rows: JSON Lines (each line an object) and ``lines`` (each line a text).

The loop is tight where lines are clean: split, parse, hand on. A chunk with anything wrong in it is gone through
again line by line, and only the lines at fault are rejected. Blank lines are no records. Cost: orjson's, plus about a
tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from datamix.core.contracts import FastRows, Reject, Rows, Slice
from datamix.read.byte_blocks import stored_bytes, utf8_blocks
from datamix.read.json_values import JsonProblem, ends_early, parse_clean, parse_one
from datamix.read.lines import LongLine, Tail, split_lines

_BLANK = b" \t\r"
_ParseMany = Callable[[list[bytes]], list[Any] | None]
_ParseOne = Callable[[bytes], tuple[Any, JsonProblem | None]]
# lines, ordinal of the first -> a batch of them and which it leaves to be parsed; None: all of them
Take = Callable[[list[bytes], int], tuple[pa.RecordBatch, list[int]] | None]


def read_jsonl(piece: Slice, chunk_records: int, take: Take | None = None) -> Iterator[Rows]:
    """Each line's object, as it was found; or what ``take`` makes of a chunk of lines."""
    return _read(piece, chunk_records, parse_clean, parse_one, take)


def read_lines(piece: Slice, chunk_records: int) -> Iterator[Rows]:
    """Each line as ``{"text": line}``, without a carriage return at its end."""
    return _read(piece, chunk_records, _texts, _text)


def _read(
    piece: Slice, chunk_records: int, many: _ParseMany, one: _ParseOne, take: Take | None = None
) -> Iterator[Rows]:
    record, line = 0, 1
    restore = stored_bytes(piece.encoding)
    for item in split_lines(utf8_blocks(piece)):
        if isinstance(item, LongLine):
            reject = Reject(record, line, "too_long", item.detail, item.head)
            yield Rows([], [], [], [], [reject])
            record, line = record + 1, line + 1
            continue
        lines = [item.line] if isinstance(item, Tail) else item
        for start in range(0, len(lines), chunk_records):
            part = lines[start : start + chunk_records]
            rows = (
                (_offered(part, take, record, line) if take is not None else None)
                or _clean_rows(part, many, record, line)
                or _careful_rows(part, many, one, record, line)
            )
            if isinstance(item, Tail):
                rows = _mark_truncated(rows)
            if restore is not None:
                rows = restored(rows, restore)
            record = rows.taken.num_records if rows.taken else record + len(rows.values) + len(rows.rejects)
            line += len(part)
            if rows.values or rows.rejects or rows.taken:
                yield rows


def _offered(part: list[bytes], take: Take, record: int, line: int) -> Rows | None:
    """The lines that ``take`` leaves, and what it made of the others."""
    kept = [i for i, raw in enumerate(part) if raw.strip(_BLANK)]
    raws = part if len(kept) == len(part) else [part[i] for i in kept]
    found = take(raws, record) if raws else None
    if found is None:
        return None
    batch, left = found
    rows = parsed_rows(
        [raws[i] for i in left], [line + kept[i] for i in left], record, parse_clean, parse_one
    )
    ordinals = [record + i for i in left]
    num_bytes = sum(map(len, raws)) - sum(len(raws[i]) for i in left)
    return Rows(
        rows.values,
        [ordinals[r - record] for r in rows.records],
        rows.lines,
        rows.raws,
        [replace(reject, record=ordinals[reject.record - record]) for reject in rows.rejects],
        FastRows(batch, record + len(raws), line + kept[-1], num_bytes),
    )


def _clean_rows(part: list[bytes], many: _ParseMany, record: int, line: int) -> Rows | None:
    values = many(part)
    if values is None:
        return None
    count = len(part)
    return Rows(values, list(range(record, record + count)), list(range(line, line + count)), part)


def _careful_rows(part: list[bytes], many: _ParseMany, one: _ParseOne, record: int, line: int) -> Rows:
    kept = [i for i, raw in enumerate(part) if raw.strip(_BLANK)]
    raws = [part[i] for i in kept]
    lines: list[int | None] = [line + i for i in kept]
    return parsed_rows(raws, lines, record, many, one)


def parsed_rows(
    raws: list[bytes], lines: list[int | None], record: int, many: _ParseMany, one: _ParseOne
) -> Rows:
    """Parse a chunk whose first record has the ordinal ``record``: together if all is well, else one by one."""
    values = many(raws)
    if values is not None:
        return Rows(values, list(range(record, record + len(raws))), lines, raws)
    rows = Rows([], [], [], [])
    for ordinal, (raw, line) in enumerate(zip(raws, lines, strict=True), record):
        value, problem = one(raw)
        if problem is not None:
            rows.rejects.append(Reject(ordinal, line, *problem, raw))
            continue
        rows.values.append(value)
        rows.records.append(ordinal)
        rows.lines.append(line)
        rows.raws.append(raw)
    return rows


def restored(rows: Rows, restore: Callable[[bytes], bytes]) -> Rows:
    """The same rows with their bytes as stored, where a file was transcoded to be read.

    The head of a too long record may end inside a character and stays as it is.
    """
    rejects = [
        reject
        if reject.reason == "too_long"
        else replace(
            reject,
            reason="encoding" if reject.reason == "utf8" else reject.reason,
            raw=restore(reject.raw),
        )
        for reject in rows.rejects
    ]
    return replace(rows, raws=[restore(raw) for raw in rows.raws], rejects=rejects)


def _mark_truncated(rows: Rows) -> Rows:
    """Of the last line, which no newline ends, say so where that is why it does not parse."""
    rejects = [
        replace(reject, reason="truncated_line", detail=f"the file ends inside it: {reject.detail}")
        if reject.reason == "json_syntax" and ends_early(reject.raw)
        else reject
        for reject in rows.rejects
    ]
    return replace(rows, rejects=rejects)


def _texts(raws: list[bytes]) -> list[Any] | None:
    try:
        values = [{"text": raw.decode().removesuffix("\r")} for raw in raws]
    except UnicodeDecodeError:
        return None
    return values if all(raw and b"\x00" not in raw and raw.strip(_BLANK) for raw in raws) else None


def _text(raw: bytes) -> tuple[Any, JsonProblem | None]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return None, ("utf8", f"byte 0x{raw[error.start]:02x} at offset {error.start} is not valid UTF-8")
    if "\x00" in text:
        return None, ("nul", f"a NUL byte at offset {raw.index(0)}")
    return {"text": text.removesuffix("\r")}, None
