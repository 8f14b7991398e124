"""JSON from bytes, strictly, and line files to rows: JSON Lines (each line an object), ``lines`` (each line
a text).

``parse_clean`` is the way nearly all records go: one guard, one ``map(orjson.loads)``. Only a chunk in
which something is out of the ordinary is read again record by record with ``parse_one``, and only the
records at fault are rejected. Strict means RFC 8259: no NaN or Infinity, no lone surrogates, valid UTF-8.
Of duplicate keys the last wins. Integers outside 64 bit, which orjson would round to floats, stay exact, as
text. Nesting deeper than ``MAX_DEPTH`` is rejected (orjson itself stops at 1024 with an error, where
recursive parsers crash). Blank lines are no records. Cost: orjson's, plus about a tenth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

import orjson
import pyarrow as pa

from datamix.core.contracts import FastRows, Reject, Rows, Slice
from datamix.read.lines import LongLine, Tail, split_lines, utf8_blocks, with_euro

MAX_DEPTH = 256
JsonProblem = tuple[str, str]  # reason code, one sentence
# lines, ordinal of the first -> a batch of them and which it leaves to be parsed; None: all of them
Take = Callable[[list[bytes], int], tuple[pa.RecordBatch, list[int]] | None]
_ParseMany = Callable[[list[bytes]], list[Any] | None]
_ParseOne = Callable[[bytes], tuple[Any, JsonProblem | None]]

_BLANK = b" \t\r"
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_LONG_INTEGER = re.compile(rb"(?<![0-9.eE+-])-?[0-9]{19,}+(?![.eE])")
_DIGITS = bytes(48 if 48 <= b <= 57 else 32 for b in range(256))
_LONG_RUN = b"0" * 19  # the shortest integer outside 64 bit has 19 digits
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_CONTAINERS = frozenset((dict, list))
_PLAIN = frozenset((str, int, bool, type(None)))  # not nested, and no float that was a long integer
_TOO_DEEP: JsonProblem = ("depth", f"nested deeper than {MAX_DEPTH} levels")


def parse_clean(raws: list[bytes]) -> list[Any] | None:
    """The objects in ``raws``, or None where any of them needs ``parse_one``."""
    try:
        values = list(map(orjson.loads, raws))
    except orjson.JSONDecodeError:
        return None
    if not set(map(type, values)) <= {dict}:
        return None
    for i, value in enumerate(values):
        if _PLAIN.issuperset(map(type, value.values())):
            continue
        is_deep, has_float = _survey(value)
        if is_deep:
            return None
        if has_float:
            values[i] = _with_exact_integers(value, raws[i])
    return values


def parse_one(raw: bytes) -> tuple[Any, JsonProblem | None]:
    """The object in ``raw``, or why there is none."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None, _diagnosis(raw)
    if type(value) not in _CONTAINERS:
        kind = "a string" if isinstance(value, str) else "null" if value is None else str(value)[:40]
        return None, ("not_object", f"expected an object, found {kind}")
    is_deep, has_float = _survey(value)
    if is_deep:
        return None, _TOO_DEEP
    if type(value) is list:
        return None, ("not_object", "expected an object, found a list")
    return _with_exact_integers(value, raw) if has_float else value, None


def ends_early(raw: bytes) -> bool:
    """Whether ``raw`` reads like the beginning of a value whose end is missing."""
    try:
        json.loads(raw.decode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated") or error.pos >= len(error.doc.rstrip())
    except RecursionError:
        return True
    return False


def _survey(value: Any) -> tuple[bool, bool]:
    """Whether lists and objects nest deeper than ``MAX_DEPTH``, and whether a float is among the values.

    Walks level by level, without recursion.
    """
    kinds: set[type] = set()
    level = [value]
    for _ in range(MAX_DEPTH):
        children: list[Any] = []
        for parent in level:
            children += parent.values() if type(parent) is dict else parent
        kinds.update(map(type, children))
        level = [child for child in children if type(child) in _CONTAINERS]
        if not level:
            return False, float in kinds
    return True, float in kinds


def _with_exact_integers(value: Any, raw: bytes) -> Any:
    if raw.translate(_DIGITS).find(_LONG_RUN) < 0:
        return value
    bare = _STRING.sub(b'""', raw)
    if any(isinstance(_exact(m[0].decode()), str) for m in _LONG_INTEGER.finditer(bare)):
        return json.loads(raw, parse_int=_exact)
    return value


def _exact(digits: str) -> int | str:
    if len(digits) > 21:
        return digits
    number = int(digits)
    return number if -(1 << 63) <= number < 1 << 64 else digits


def _diagnosis(raw: bytes) -> JsonProblem:
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        brackets = _STRING.sub(b"", raw).translate(None, _NO_BRACKETS)
        if max(accumulate(1 if b in b"[{" else -1 for b in brackets), default=0) > MAX_DEPTH:
            return _TOO_DEEP
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return not_utf8(raw, error)
    if "\x00" in text:
        return "nul", f"a NUL byte at offset {raw.index(0)}"
    constants: list[str] = []
    try:
        json.loads(text, parse_constant=constants.append)
    except json.JSONDecodeError as error:
        return "json_syntax", f"{error.msg} at character {error.pos + 1}"
    except RecursionError:
        return _TOO_DEEP
    except ValueError:  # an integer with more digits than Python converts
        return "number", "a number that no float can hold"
    if constants:
        return "nan", f"{constants[0]} is not JSON"
    if re.search(r"\\u[dD][89a-fA-F]", text):
        return "surrogate", "a lone surrogate escape (\\ud800 to \\udfff), which is no character"
    return "number", "a number that no float can hold"


def not_utf8(raw: bytes, error: UnicodeDecodeError) -> JsonProblem:
    """The problem of bytes that do not decode."""
    return "utf8", f"byte 0x{raw[error.start]:02x} at offset {error.start} is not valid UTF-8"


def parse_text(raw: bytes) -> tuple[str, JsonProblem | None]:
    """Bytes as text, or why they are none."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return "", not_utf8(raw, error)
    return text, ("nul", f"a NUL byte at offset {raw.index(0)}") if "\x00" in text else None


def parsed_rows(
    raws: list[bytes], records: list[int], lines: list[int | None], many: _ParseMany, one: _ParseOne
) -> Rows:
    """Parse a chunk: together if all is well, else one by one."""
    values = many(raws)
    if values is not None:
        return Rows(values, records, lines, raws)
    rows = Rows([], [], [], [])
    for raw, record, line in zip(raws, records, lines, strict=True):
        value, problem = one(raw)
        if problem is not None:
            rows.rejects.append(Reject(record, line, *problem, raw))
            continue
        rows.values.append(value)
        rows.records.append(record)
        rows.lines.append(line)
        rows.raws.append(raw)
    return rows


def read_jsonl(piece: Slice, chunk_records: int, take: Take | None = None) -> Iterator[Rows]:
    """Each line's object as it is; or what ``take`` makes of a chunk of lines."""
    return _read(piece, chunk_records, parse_clean, parse_one, take)


def read_lines(piece: Slice, chunk_records: int) -> Iterator[Rows]:
    """Each line as ``{"text": line}``, without a carriage return at its end."""

    def texts(raws: list[bytes]) -> list[Any] | None:
        try:
            values = [{"text": raw.decode().removesuffix("\r")} for raw in raws]
        except UnicodeDecodeError:
            return None
        return values if all(b"\x00" not in raw and raw.strip(_BLANK) for raw in raws) else None

    def text(raw: bytes) -> tuple[Any, JsonProblem | None]:
        line, problem = parse_text(raw)
        return {"text": line.removesuffix("\r")}, problem

    return _read(piece, chunk_records, texts, text)


def _read(
    piece: Slice, chunk_records: int, many: _ParseMany, one: _ParseOne, take: Take | None = None
) -> Iterator[Rows]:
    record, line = 0, 1

    def one_stored(raw: bytes) -> tuple[Any, JsonProblem | None]:
        return one(with_euro(raw, piece.encoding))

    for item in split_lines(utf8_blocks(piece)):
        if isinstance(item, LongLine):
            yield Rows([], [], [], [], [Reject(record, line, "too_long", item.detail, item.head)])
            record, line = record + 1, line + 1
            continue
        lines = [item.line] if isinstance(item, Tail) else item
        for start in range(0, len(lines), chunk_records):
            part = lines[start : start + chunk_records]
            rows = _chunk(part, record, line, many, one_stored, take)
            if isinstance(item, Tail):  # no newline ends it: say so where that is why it does not parse
                rejects = [
                    replace(
                        reject, reason="truncated_line", detail=f"the file ends inside it: {reject.detail}"
                    )
                    if reject.reason == "json_syntax" and ends_early(reject.raw)
                    else reject
                    for reject in rows.rejects
                ]
                rows = replace(rows, rejects=rejects)
            record = rows.taken.num_records if rows.taken else record + len(rows.values) + len(rows.rejects)
            line += len(part)
            if rows.values or rows.rejects or rows.taken:
                yield rows


def _chunk(
    part: list[bytes], record: int, line: int, many: _ParseMany, one: _ParseOne, take: Take | None
) -> Rows:
    """The rows of consecutive lines, the first of them line ``line`` and, unless blank, record ``record``."""
    values = many(part) if take is None else None
    if values is not None:
        return Rows(
            values, list(range(record, record + len(part))), list(range(line, line + len(part))), part
        )
    places = [i for i, raw in enumerate(part) if raw.strip(_BLANK)]
    raws = [part[i] for i in places]
    offered = take(raws, record) if take is not None and raws else None
    batch, left = offered or (None, range(len(raws)))
    rows = parsed_rows(
        [raws[i] for i in left], [record + i for i in left], [line + places[i] for i in left], many, one
    )
    if batch is None:
        return rows
    num_bytes = sum(map(len, raws)) - sum(len(raws[i]) for i in left)
    return replace(rows, taken=FastRows(batch, record + len(raws), line + places[-1], num_bytes))
