"""Parquet and Arrow: rows as JSON would have them, by row group or batch."""

import datetime
import decimal
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import joined, rows_of

from datamix.core.errors import DataError, RecipeError
from datamix.read import cut, find, read, sniff

TABLE = pa.table(
    {
        "text": ["你好", None, "three"],
        "turns": [[{"role": "user", "content": "a"}], [], None],
        "score": [1.5, float("nan"), None],
        "flag": [True, False, None],
    }
)
VALUES = [
    {"text": "你好", "turns": [{"role": "user", "content": "a"}], "score": 1.5, "flag": True},
    {"text": None, "turns": [], "score": None, "flag": False},
    {"text": "three", "turns": None, "score": None, "flag": None},
]


def write(path: Path, container: str, table: pa.Table, part_rows: int) -> None:
    if container == "parquet":
        pq.write_table(table, path, row_group_size=part_rows)
        return
    new = pa.ipc.new_file if container == "arrow" else pa.ipc.new_stream
    with new(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=part_rows)


@pytest.mark.parametrize("container", ["parquet", "arrow", "arrow_stream"])
def test_rows_come_as_json_has_them(container: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, container, TABLE, 2)
    rows = rows_of(path)
    assert rows.values == VALUES
    assert rows.records == [0, 1, 2]
    assert rows.lines == [None] * 3
    assert rows.raws == [b""] * 3
    assert rows_of(path, limit=2).values == VALUES[:2]


@pytest.mark.parametrize("container", ["parquet", "arrow", "arrow_stream"])
def test_compressed_columnar_files_are_read(container: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    write(plain, container, TABLE, 2)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    assert rows_of(path).values == VALUES


@pytest.mark.parametrize("container", ["parquet", "arrow"])
@pytest.mark.parametrize("slice_bytes", [1, 3000, 1 << 30])
def test_slices_are_row_groups_or_batches(container: str, slice_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    table = pa.table({"i": list(range(1000)), "text": [f"text {i}" for i in range(1000)]})
    write(path, container, table, 100)
    pieces = cut(str(path), "", sniff(str(path)), slice_bytes)
    parts = [joined(list(read(piece, chunk_records=64))) for piece in pieces]
    assert [v["i"] for part in parts for v in part.values] == list(range(1000))
    assert [part.records for part in parts] == [list(range(len(part.values))) for part in parts]
    assert len(pieces) == {1: 10, 1 << 30: 1}.get(slice_bytes, len(pieces))
    assert pieces[0].start == 0


def test_values_that_json_lacks_come_as_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "when": pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5)], pa.timestamp("us")),
            "day": pa.array([datetime.date(2024, 1, 2)]),
            "price": pa.array([decimal.Decimal("1.50")]),
            "utf8": pa.array(["文".encode()], pa.binary()),
            "bytes": pa.array([b"\xff"], pa.binary()),
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "word": pa.array(["a"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet").values == [
        {
            "when": "2024-01-02T03:04:05",
            "day": "2024-01-02",
            "price": "1.50",
            "utf8": "文",
            "bytes": "/w==",
            "map": {"k": 1},
            "word": "a",
        }
    ]


def test_a_string_that_is_not_utf8_costs_its_row_only(tmp_path: Path) -> None:
    buffers = [
        None,
        pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])),
        pa.py_buffer(b"a\xffb"),
    ]
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, buffers)})
    with pa.ipc.new_file(tmp_path / "a", table.schema) as writer:
        writer.write_table(table)
    rows = rows_of(tmp_path / "a")
    assert rows.values == [{"text": "a"}, {"text": "b"}]
    assert [(r.record, r.reason, r.raw) for r in rows.rejects] == [(1, "utf8", b"\xff")]


@pytest.mark.parametrize("container", ["parquet", "arrow", "arrow_stream"])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.95])
def test_a_cut_file_is_an_error(container: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, container, pa.table({"text": [f"text {i}" * 20 for i in range(5000)]}), 500)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match="truncated") as caught:
        rows_of(path)
    assert str(path) in str(caught.value)


def test_an_arrow_stream_cut_between_two_batches_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    table = pa.table({"a": [1, 2, 3, 4]})
    with path.open("wb") as stream:
        writer = pa.ipc.new_stream(stream, table.schema)
        writer.write_table(table)
        cut_here = stream.tell()
        writer.write_table(table)
        writer.close()
    assert len(rows_of(path).values) == 8
    path.write_bytes(path.read_bytes()[:cut_here])
    with pytest.raises(DataError, match="no end mark"):
        rows_of(path)


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    for container in ("parquet", "arrow", "arrow_stream"):
        write(tmp_path / container, container, pa.table({"a": pa.array([], pa.int64())}), 10)
        assert rows_of(tmp_path / container).values == []


def test_a_dataset_saved_to_disk_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    train = Dataset.from_dict({"text": [f"文本 {i}" for i in range(50)]})
    DatasetDict({"train": train, "test": train.select([0])}).save_to_disk(
        tmp_path / "saved", num_shards={"train": 3, "test": 1}
    )
    files = find(["saved/train"], str(tmp_path))
    assert [Path(file).suffix for file in files] == [".arrow"] * 3
    assert [v["text"] for file in files for v in rows_of(file).values] == train["text"][:]
    with pytest.raises(RecipeError, match="several splits"):
        find(["saved"], str(tmp_path))
