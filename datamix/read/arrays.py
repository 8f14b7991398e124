"""JSON files to rows: an array of any size, one object, or objects one after another; streamed.

Each element is parsed on its own with the rules of JSON Lines, so that a broken one is rejected alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from datamix.contracts import Reject, Rows, Slice
from datamix.read.blocks import stored_bytes, utf8_blocks
from datamix.read.elements import Element, split_elements
from datamix.read.jsonl import parsed_rows, restored
from datamix.read.lines import KEPT_BYTES
from datamix.read.values import parse_clean, parse_one

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
