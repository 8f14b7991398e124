"""Whatever a file holds, reading it ends in rows, rejects or one clear error; nothing else is ever thrown."""

import gzip
import json
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import SHARED, rows_of

from datamix.core.errors import DataError

NAMES = ["a.jsonl", "a.json", "a.csv", "a.txt", "a.md", "a", "a.parquet", "a.jsonl.gz"]
MAGIC = [
    b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh91AY&SY", b"\x04\x22\x4d\x18", b"PAR1", b"ARROW1\x00\x00",
    b"\xff\xff\xff\xff\x10\x00\x00\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"PK\x03\x04", b"\x50\x2a\x4d\x18",
]  # fmt: skip
TOKENS = [
    b'{"a":',
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\\",
    b"\x00",
    b"\xc4\xe3\xba\xc3",
    b"\xe4\xbd\xa0",
    b"1",
]
anything = st.one_of(
    st.binary(max_size=200),
    st.builds(bytes.__add__, st.sampled_from(MAGIC), st.binary(max_size=200)),
    st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join),
)


def read_or_refuse(path: Path) -> None:
    try:
        rows = rows_of(path)
    except DataError:
        return
    ordinals = sorted([*rows.records, *(reject.record for reject in rows.rejects)])
    assert ordinals == list(range(len(ordinals)))
    assert all(type(value) is dict for value in rows.values)


@given(
    content=anything,
    name=st.sampled_from(NAMES),
    packed=st.sampled_from([None, gzip.compress, zstandard.compress]),
)
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_under_any_name(content: bytes, name: str, packed: object, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(packed(content) if callable(packed) else content)
    read_or_refuse(path)


@cache
def whole_file(name: str) -> bytes:
    lines = b'{"text":"\xe4\xbd\xa0"}\n' * 40
    if name in ("gz", "zst"):
        return (gzip.compress if name == "gz" else zstandard.compress)(lines)
    if name == "json":
        return b"[" + lines.strip().replace(b"\n", b",\n") + b"]"
    table = pa.table({"text": ["你好", "b"] * 20, "turns": [[{"role": "user"}]] * 40, "n": list(range(40))})
    sink = pa.BufferOutputStream()
    if name == "parquet":
        pq.write_table(table, sink, row_group_size=10)
    else:
        new = pa.ipc.new_file if name == "arrow" else pa.ipc.new_stream
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=10)
    return bytes(sink.getvalue())


@given(
    name=st.sampled_from(["parquet", "arrow", "stream", "gz", "zst", "json"]),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
    ),
    share=st.sampled_from([1.0, 1.0, 0.5, 0.9]),
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files(name: str, changes: list[tuple[float, int]], share: float, tmp_path: Path) -> None:
    content = bytearray(whole_file(name))
    for place, byte in changes:
        content[int(place * len(content))] = byte
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * share)])
    read_or_refuse(path)


@pytest.mark.shared
@pytest.mark.parametrize("container", ["jsonl", "json", "csv", "parquet", "lines"])
def test_naughty_strings_come_through_every_container(container: str, tmp_path: Path) -> None:
    found = SHARED / "messy" / "minimaxir__big-list-of-naughty-strings" / "blns.json"
    if not found.is_file():
        pytest.skip("the list of naughty strings is not beside the checkout")
    strings = [s for s in json.loads(found.read_text(encoding="utf-8")) if s.strip(" \t\r")]
    path = tmp_path / f"a.{container}"
    if container == "jsonl":
        path.write_text(
            "".join(json.dumps({"text": s}, ensure_ascii=False) + "\n" for s in strings), newline=""
        )
    elif container == "json":
        path.write_text(json.dumps([{"text": s} for s in strings], ensure_ascii=False, indent=1), newline="")
    elif container == "csv":
        quoted = ['"' + s.replace('"', '""') + '"' for s in strings]
        path.write_text("text,id\n" + "".join(f"{s},1\n" for s in quoted), newline="")
    elif container == "parquet":
        pq.write_table(pa.table({"text": strings}), path)
    else:
        strings = [s for s in strings if "\n" not in s and not s.endswith("\r")]
        path.write_text("\n".join(strings), newline="")
    rows = rows_of(path, "lines" if container == "lines" else None)
    assert [value["text"] for value in rows.values] == strings
    assert rows.rejects == []
