"""The place of a record is where its bytes are in the decompressed stream, whatever the file is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamix.core.contracts import Slice
from datamix.read import locate, read, sniff

ROWS = [{"instruction": f"问题 {n}", "output": "好" * (n % 5) + f"\n第二行 {n}"} for n in range(40)]


def _lines(encoding: str = "utf-8") -> bytes:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    lines[3:3] = ["", '{"broken": ']  # a blank line is no record, a broken one is
    return "\n".join(lines).encode(encoding)


def _csv(newline: str = "\n") -> bytes:
    cells = ['"' + row["output"].replace("\n", newline) + '"' for row in ROWS]
    rows = [f"{row['instruction']},{cell}" for row, cell in zip(ROWS, cells, strict=True)]
    rows[2:2] = ["one,two,three"]  # a reject
    return newline.join(["instruction,output", *rows, ""]).encode()


FILES = {
    "plain.jsonl": _lines(),
    "mark.jsonl": b"\xef\xbb\xbf" + _lines(),
    "gbk.jsonl": _lines("gb18030"),
    "wide.jsonl": b"\xff\xfe" + _lines("utf-16-le"),
    "packed.jsonl.gz": gzip.compress(_lines()),
    "array.json": json.dumps(ROWS, ensure_ascii=False).encode(),
    "same.json": json.dumps([ROWS[0]] * 30, ensure_ascii=False, separators=(",", ":")).encode(),
    "pretty.json": json.dumps(ROWS, ensure_ascii=False, indent=2).encode("gb18030"),
    "field.json": json.dumps({"about": {"rows": 40}, "data": ROWS}, ensure_ascii=False).encode(),
    "table.csv": b"\xef\xbb\xbf" + _csv(),
    "windows.csv": _csv("\r\n"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_record_is_where_its_bytes_are(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    seen = sniff(str(path))
    piece = Slice(str(path), "", seen.container, seen.compression, seen.encoding, seen.options)
    stream = gzip.decompress(FILES[name]) if name.endswith(".gz") else FILES[name]
    rows = [row for chunk in read(piece) for row in zip(chunk.records, chunk.lines, chunk.raws, strict=True)]
    assert len(rows) >= 30
    last = 0
    for record, line, raw in rows:
        place = locate(piece, record)
        assert place is not None
        assert stream[place.start : place.stop] == raw
        assert place.line == line
        assert place.start >= last  # equal records are not taken for each other
        last = place.stop
    assert locate(piece, rows[-1][0] + 1) is None


def test_a_record_longer_than_a_block_is_where_its_bytes_are(tmp_path: Path) -> None:
    """Elements that run over the end of a block are walked, and what was dropped before them counts."""
    long = {"instruction": "q", "output": "好" * 2_000_000}
    path = tmp_path / "long.json"
    path.write_bytes(json.dumps([ROWS[0], long, ROWS[1], long, ROWS[2]], ensure_ascii=False).encode())
    piece = Slice(str(path), "", "json")
    for record in range(5):
        place = locate(piece, record)
        assert place is not None
        assert (
            json.loads(path.read_bytes()[place.start : place.stop])
            == [ROWS[0], long, ROWS[1], long, ROWS[2]][record]
        )


def test_columnar_files_give_a_row_group(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=16)
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=7)
    with pa.ipc.new_stream(tmp_path / "s.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    for name, size in (("a.parquet", 16), ("a.arrow", 7), ("s.arrow", 7)):
        seen = sniff(str(tmp_path / name))
        piece = Slice(str(tmp_path / name), "", seen.container)
        for record in range(40):
            place = locate(piece, record)
            assert place is not None
            assert (place.row_group, place.row) == divmod(record, size)
        assert locate(piece, 40) is None


def test_a_document_is_its_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("第一行\n第二行\n", encoding="utf-8")
    place = locate(Slice(str(tmp_path / "a.txt"), "", "text"), 0)
    assert place is not None
    assert (place.start, place.stop, place.line) == (0, 20, 1)


def test_a_page_of_an_archive_has_its_headers_in_its_bytes(tmp_path: Path) -> None:
    pytest.importorskip("warcio", reason="needs the extra docs")
    pages = []
    for number in range(3):
        page = f"page {number} of text"
        head = f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:uuid:{number}>\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n"
        head += f"WARC-Target-URI: http://a/{number}\r\nContent-Type: text/plain\r\nContent-Length: {len(page)}\r\n\r\n"
        pages.append(f"{head}{page}\r\n\r\n".encode())
    content = b"".join(pages)
    (tmp_path / "a.warc").write_bytes(content)
    for number in range(3):
        place = locate(Slice(str(tmp_path / "a.warc"), "", "warc"), number)
        assert place is not None
        whole = content[place.start : place.stop]
        assert whole.startswith(b"WARC/1.")
        assert f"page {number} of text".encode() in whole
        assert whole.count(b"WARC/1.") == 1
