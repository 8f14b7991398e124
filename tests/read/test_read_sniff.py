"""What a file holds is told from its content; what cannot be read says what to do."""

import bz2
import gzip
import json
import lzma
from dataclasses import replace
from pathlib import Path

import lz4.frame
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from reading import SHARED, joined, rows_of

from datamix.core.errors import DataError
from datamix.read import cut, read, sniff

ZH = "患者主诉头痛三天，没有发热，应该如何用药？建议先到医院检查。"
TRADITIONAL = "患者主訴頭痛三天，沒有發熱，應該如何用藥？建議先到醫院檢查。"

CONTENTS = [
    ("a.json", b'{"a":1}\n{"a":2}\n', "jsonl"),
    ("a.jsonl", b'[\n {"a":1},\n {"a":2}\n]', "json"),
    ("a.jsonl", b'{\n "a": 1,\n "b": {"c": 2}\n}', "json"),
    ("a.json", b'[{"a":1},{"a":2}]', "json"),
    ("a.txt", b'{"a":1}\n{"a":2}\n', "jsonl"),
    ("a.jsonl", b'{"a":\n{"a":2}\n{"a":3}\n', "jsonl"),
    ("a.jsonl", b'broken\n{"a":2}\n{"a":3}\n', "jsonl"),
    ("a", b'{"a":1}', "jsonl"),
    ("a", b'[{"a":1}]', "json"),
    ("a.txt", b"[Music]\nLa la la\n", "text"),
    ("a.txt", b"{curly} braces begin this prose\n", "text"),
    ("a.txt", b"One, two\nthree, four\nfive\n", "text"),
    ("a.txt", b"question\tanswer\nq1\ta1\nq2\ta2\n", "csv"),
    ("a.md", b"a,b\nc,d\ne,f\n", "text"),
    ("a.csv", b"text\nfirst\nsecond\n", "csv"),
    ("a.dat", b"a;b\n1;2\n3;4\n", "csv"),
    ("a", b"# Title\n\nProse.\n", "text"),
    ("empty.jsonl", b"", "jsonl"),
    ("empty.csv", b"", "csv"),
    ("empty.txt", b"", "text"),
    ("long.json", b'[{"a":"' + b"x" * 400_000 + b'"}]', "json"),
    ("long.jsonl", b'{"a":"' + b"x" * 400_000 + b'"}\n{"a":1}', "jsonl"),
    ("a.jsonl", b'{"a":"\x00"}\n{"a":1}\n', "jsonl"),
    ("a.txt", b'["not", "objects"]\n["but", "lines"]\n', "jsonl"),
]


@pytest.mark.parametrize(
    ("name", "content", "container"), CONTENTS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(CONTENTS)]
)
def test_content_tells_the_container(name: str, content: bytes, container: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert sniff(str(path)).container == container
    assert sniff(str(path)).num_bytes == len(content)


@pytest.mark.parametrize(
    ("declared", "name", "content", "container"),
    [
        ("lines", "a.txt", b"one\ntwo\n", "lines"),
        ("lines", "a.txt", b'{"a":1}\n', "lines"),
        ("csv", "a.txt", b"a,b\n1,2\n", "csv"),
        ("text", "a.txt", b"a\tb\n1\t2\n3\t4\n", "text"),
        ("text", "a.txt", b'{"text":1}\n', "text"),
        ("text", "a.jsonl", b'{"text":"a"}\n', "jsonl"),
        ("text", "a.csv", b"text\nhello\n", "csv"),
        ("json", "a.json", b'{"a":1}\n{"a":2}\n', "jsonl"),
    ],
)
def test_a_declared_container_decides_what_content_leaves_open(
    declared: str, name: str, content: bytes, container: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert sniff(str(path), declared).container == container


@pytest.mark.parametrize(
    ("text", "codec", "encoding"),
    [
        (ZH, "utf-8", "utf-8"),
        (ZH, "utf-8-sig", "utf-8-sig"),
        (ZH, "gb18030", "gb18030"),
        (ZH[:14], "gbk", "gb18030"),
        (TRADITIONAL, "big5", "big5"),
        (TRADITIONAL, "gb18030", "gb18030"),
        (ZH, "utf-16", "utf-16-le"),
        ("plain ASCII text", "utf-16-le", "utf-16-le"),
        ("plain ASCII text", "utf-16-be", "utf-16-be"),
        ("Les élèves ont déjà mangé à la forêt.", "latin-1", "latin-1"),
        ("L’été “déjà” passé", "cp1252", "cp1252"),
        ("Съешь же ещё этих мягких французских булок, да выпей чаю. " * 4, "cp1251", "cp1251"),
        (
            "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 4,
            "shift_jis",
            "cp932|shift_jis",
        ),
    ],
)
@pytest.mark.parametrize("container", ["jsonl", "json", "csv", "text"])
def test_encodings_are_detected_and_read(
    text: str, codec: str, encoding: str, container: str, tmp_path: Path
) -> None:
    record = {"text": text, "id": "x"}
    written = {
        "jsonl": json.dumps(record, ensure_ascii=False) + "\n",
        "json": json.dumps([record], ensure_ascii=False, indent=2),
        "csv": f'text,id\n"{text}",x\n',
        "text": text,
    }[container]
    path = tmp_path / f"a.{'txt' if container == 'text' else container}"
    path.write_bytes(written.encode(codec))
    assert sniff(str(path)).encoding in encoding.split("|")
    rows = rows_of(path)
    assert [value["text"] for value in rows.values] == [text]
    raw = rows.raws[0]
    assert raw in written.encode(codec)


def test_chinese_far_below_an_ascii_head_is_still_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    ascii_lines = b'{"text":"plain"}\n' * 20_000
    path.write_bytes(
        ascii_lines + (json.dumps({"text": ZH}, ensure_ascii=False) + "\n").encode("gb18030") * 100
    )
    assert sniff(str(path)).encoding == "gb18030"
    assert rows_of(path).values[-1] == {"text": ZH}


def test_a_few_bad_bytes_are_bad_records_not_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps({"text": ZH}, ensure_ascii=False).encode() + b"\n"
    path.write_bytes(line * 5 + b'{"text":"caf\xe9"}\n' + line * 5)
    assert sniff(str(path)).encoding == "utf-8"
    rows = rows_of(path)
    assert len(rows.values) == 10
    assert [(r.record, r.reason) for r in rows.rejects] == [(5, "utf8")]


def test_a_bad_byte_in_a_gb18030_file_costs_its_line_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps({"text": ZH}, ensure_ascii=False).encode("gb18030")
    bad = b'{"text":"\x81"}'
    path.write_bytes(good + b"\n" + bad + b"\n" + good)
    rows = rows_of(path)
    assert [v["text"] for v in rows.values] == [ZH, ZH]
    assert rows.raws == [good, good]
    assert [(r.record, r.reason, r.raw) for r in rows.rejects] == [(1, "encoding", bad)]


def joined_as(container: str, records: list[tuple[str, str]]) -> bytes:
    """Records of (text, codec) as one file."""
    if container == "text":
        return b"".join(text.encode(codec) + b"\n" for text, codec in records)
    if container == "csv":
        return b"text,id\n" + b"".join(f'"{text}",x\n'.encode(codec) for text, codec in records)
    objects = [json.dumps({"text": t, "id": "x"}, ensure_ascii=False).encode(c) for t, c in records]
    return b"[" + b",\n".join(objects) + b"]" if container == "json" else b"\n".join(objects) + b"\n"


EURO = [(ZH, "gb18030"), ("价格一百€，便宜。", "euro"), ("也写€。", "gb18030"), (ZH, "gb18030")]


@pytest.mark.parametrize("container", ["jsonl", "json", "csv", "lines"])
@pytest.mark.parametrize("encoding", [None, "gbk", "cp936", "GBK"])
def test_the_euro_byte_of_windows_is_a_euro_sign(
    container: str, encoding: str | None, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{container}"
    content = joined_as(
        "text" if container == "lines" else container,
        [(t.replace("€", "\x7f"), "gb18030") if c == "euro" else (t, c) for t, c in EURO],
    )
    path.write_bytes(content.replace(b"\x7f", b"\x80"))
    seen = sniff(str(path), "lines" if container == "lines" else None)
    assert seen.encoding == "gb18030"
    piece = cut(str(path), "", replace(seen, encoding=encoding or seen.encoding))[0]
    rows = joined(list(read(piece)))
    assert [value["text"] for value in rows.values] == [text for text, _ in EURO]
    assert rows.rejects == []
    assert all(raw in path.read_bytes() for raw in rows.raws)  # the bytes as they are stored


def test_a_document_with_the_euro_byte_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(ZH.encode("gbk") + b" 100\x80")
    assert rows_of(tmp_path / "a.txt").values[0]["text"] == ZH + " 100€"


SHORT = "你好，我是医生。"


@pytest.mark.parametrize("container", ["jsonl", "json", "csv", "lines"])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.9])
@pytest.mark.parametrize("text", [ZH, SHORT, "药物"])
def test_a_file_that_mixes_gbk_and_utf8_says_so_and_is_never_read_as_other_characters(
    container: str, share: float, text: str, tmp_path: Path
) -> None:
    records = [(text, "utf-8" if i < 20 * share else "gb18030") for i in range(20)]
    path = tmp_path / f"a.{container}"
    path.write_bytes(joined_as("text" if container == "lines" else container, records))
    rows = rows_of(path, "lines" if container == "lines" else None)
    assert {value["text"] for value in rows.values} == {text}
    encoding = sniff(str(path)).encoding
    expected = [i for i, (_, codec) in enumerate(records) if codec != encoding]
    assert [reject.record for reject in rows.rejects] == expected
    other = {"utf-8": "GB18030", "gb18030": "UTF-8"}[encoding]
    if text != "药物" or encoding != "utf-8":
        assert all(reject.detail.startswith(f"is {other} in a file that is") for reject in rows.rejects)
    assert all("the file mixes encodings" in r.detail or r.reason == "utf8" for r in rows.rejects)
    assert all(reject.raw in path.read_bytes() for reject in rows.rejects)


@pytest.mark.parametrize(("header", "rest"), [("utf-8", "gb18030"), ("gb18030", "utf-8")])
def test_a_header_in_another_encoding_than_its_table_says_so(header: str, rest: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("问题内容,回答内容\n".encode(header) + f"{ZH},{ZH}\n".encode(rest) * 20)
    with pytest.raises(DataError, match=f"is {header.upper()} in a file that is {rest.upper()}"):
        rows_of(path)


def test_a_latin_file_with_a_utf8_line_says_so(tmp_path: Path) -> None:
    line = "Les élèves ont déjà mangé à la forêt, été comme hiver."
    path = tmp_path / "a.jsonl"
    path.write_bytes(joined_as("jsonl", [(line, "cp1252")] * 9 + [(line, "utf-8")]))
    rows = rows_of(path)
    assert [value["text"] for value in rows.values] == [line] * 9
    assert [(r.record, r.reason) for r in rows.rejects] == [(9, "encoding")]
    assert "is UTF-8 in a file that is" in rows.rejects[0].detail


@pytest.mark.parametrize(
    ("codec", "bad", "detail"),
    [
        ("gb18030", b'{"text":"\xc4\xe3\x81"}', "byte 0x81 at offset 11 is not valid GB18030"),
        ("utf-8", b'{"text":"\xe4\xbd\xa0\xff"}', "byte 0xff at offset 12 is not valid UTF-8"),
        ("big5", b'{"text":"\xa7\x41\xff"}', "byte 0xff at offset 11 is not valid BIG5"),
    ],
)
def test_a_byte_that_does_not_decode_is_named_as_it_is_stored(
    codec: str, bad: bytes, detail: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps({"text": TRADITIONAL if codec == "big5" else ZH}, ensure_ascii=False).encode(codec)
    path.write_bytes(b"\n".join([good, good, bad, good]))
    rows = rows_of(path)
    assert [(r.record, r.detail, r.raw) for r in rows.rejects] == [(2, detail, bad)]


COMPRESSORS = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "lz4": lz4.frame.compress,
}


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.xz", "a.bin"])
def test_compression_is_told_by_magic_bytes(compression: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(COMPRESSORS[compression](b'{"a":1}\n{"a":2}\n'))
    sniffed = sniff(str(path))
    assert (sniffed.container, sniffed.compression) == ("jsonl", compression)
    assert [v["a"] for v in rows_of(path).values] == [1, 2]


def test_columnar_files_are_told_by_magic_bytes(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2]})
    pq.write_table(table, tmp_path / "parquet")
    with pa.ipc.new_file(tmp_path / "arrow", table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(tmp_path / "arrow_stream", table.schema) as writer:
        writer.write_table(table)
    for name in ("parquet", "arrow", "arrow_stream"):
        assert sniff(str(tmp_path / name)).container == name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n", "git lfs pull"),
        (b"PK\x03\x04" + b"\x00" * 26 + b"[Content_Types].xml" + b"xl/workbook.xml", "Office document"),
        (b"PK\x03\x04" + b"\x00" * 60, "zip archive"),
        (b"\x00" * 257 + b"ustar  \x00", "tar archive"),
        (b"\x80\x04\x95pickle", "pickle"),
        (bytes(range(256)) * 20, "control characters"),
        (gzip.compress(gzip.compress(b"x")), "compressed twice"),
        ("text".encode("utf-32"), "UTF-32"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz" if b"git-lfs" in content else tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        sniff(str(path))
    assert str(path) in str(caught.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        sniff(str(tmp_path / "nowhere.jsonl"))


@pytest.mark.shared
def test_real_files_are_told_right() -> None:
    if not SHARED.is_dir():
        pytest.skip("the real corpora are not beside the checkout")
    csv = next((SHARED / "sft_domain").glob("Toyhom*/*.csv"))
    assert (sniff(str(csv)).container, sniff(str(csv)).encoding) == ("csv", "gb18030")
    rows = rows_of(csv)
    assert (len(rows.values), rows.rejects) == (7644, [])
    assert list(rows.values[0]) == ["department", "title", "ask", "answer"]
    for path in sorted(SHARED.glob("sft_general/**/*.json*")):
        assert rows_of(path).rejects == []
