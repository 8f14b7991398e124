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
from datamix.core.records import RecordKind
from datamix.formats import ShapeSpec, shape
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
            "bytes": "\udcff",  # no text: a record made of it is rejected
            "map": {"k": 1},
            "word": "a",
        }
    ]


TOOL_CALLS = [
    {"name": "f", "arguments": {"a": 1}},
    {"name": "g", "arguments": {"city": "B", "deep": {"k": [1]}, "list": [None, "x"]}},
    {"name": "h", "arguments": {}},
]


@pytest.mark.parametrize("container", ["parquet", "arrow", "arrow_stream"])
def test_a_null_inside_a_struct_is_an_absent_key(container: str, tmp_path: Path) -> None:
    rows = [
        {"role": "assistant", "calls": [call], "tools": {"properties": {call["name"]: {"type": "string"}}}}
        for call in TOOL_CALLS
    ]
    write(tmp_path / "a", container, pa.Table.from_pylist(rows), 2)
    values = rows_of(tmp_path / "a").values
    # Arrow cannot tell an empty object from one whose fields are all null
    rows[2]["calls"][0] = {"name": "h", "arguments": {}}
    assert values == rows


def test_a_null_column_is_a_null_and_a_null_in_a_list_or_map_stays(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array([None, "b"]),
            "list": pa.array([["a", None], None]),
            "map": pa.array([[("k", None)], None], pa.map_(pa.string(), pa.string())),
            "nested": pa.array([{"x": float("nan"), "y": 1.0}, None]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet").values == [
        {"text": None, "list": ["a", None], "map": {"k": None}, "nested": {"y": 1.0}},
        {"text": "b", "list": None, "map": None, "nested": None},
    ]


def test_dates_that_python_does_not_have_come_as_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["a", "b"],
            "when": pa.array([0, 2**39], pa.timestamp("s")),
            "meta": pa.array([{"day": 0}, {"day": 4_000_000}], pa.struct([("day", pa.date32())])),
        }
    )
    pq.write_table(table.slice(0, 2).drop_columns("when"), tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "b", table.schema) as writer:
        writer.write_table(table)
    first, second = rows_of(tmp_path / "b").values
    assert first == {"text": "a", "when": "1970-01-01T00:00:00", "meta": {"day": "1970-01-01"}}
    assert second["text"] == "b"
    assert second["when"].startswith("19391-")
    assert second["meta"]["day"].startswith("12921-")
    assert [value["text"] for value in rows_of(tmp_path / "a.parquet").values] == ["a", "b"]


@pytest.mark.parametrize("container", ["parquet", "arrow", "arrow_stream"])
def test_a_row_above_the_bound_is_rejected_alone_and_chunks_stay_small(
    container: str, tmp_path: Path
) -> None:
    texts = ["a" * (5 << 20)] * 4 + ["b" * (65 << 20), "c"]
    write(tmp_path / "a", container, pa.table({"text": texts}), 6)
    pieces = cut(str(tmp_path / "a"), "", sniff(str(tmp_path / "a")))
    chunks = [chunk for piece in pieces for chunk in read(piece)]
    rows = joined(chunks)
    assert [len(value["text"]) for value in rows.values] == [5 << 20] * 4 + [1]
    assert [(r.record, r.reason) for r in rows.rejects] == [(4, "too_long")]
    assert max(len(chunk.values) for chunk in chunks) <= 2


@pytest.mark.parametrize(
    ("kind", "format", "field", "rows"),
    [
        ("sft", "alpaca", "instruction", [{"instruction": x, "output": "o"} for x in (b"i", b"\xff", b"k")]),
        ("text", "text", "text", [{"text": x} for x in (b"i", b"a\xff", b"k")]),
        ("sft", "messages", "messages", [
            {"messages": [{"role": "user", "content": x}, {"role": "assistant", "content": b"o"}]}
            for x in (b"i", b"\xff\xfe", b"k")
        ]),
    ],
)  # fmt: skip
def test_a_binary_cell_that_is_not_utf8_is_rejected_where_it_is_read_and_harmless_where_not(
    kind: RecordKind, format: str, field: str, rows: list[dict[str, object]], tmp_path: Path
) -> None:
    pq.write_table(pa.Table.from_pylist([{**row, "unread": b"\xfe"} for row in rows]), tmp_path / "a.parquet")
    result = shape(rows_of(tmp_path / "a.parquet"), 0, ShapeSpec(format, kind))
    assert result.batch.column("record").to_pylist() == [0, 2]
    (reject,) = result.rejects
    assert (reject.record, reject.reason, reject.detail) == (
        1,
        "utf8",
        f"{field} holds bytes that are not UTF-8",
    )
    assert b"\xff" in reject.raw


@pytest.mark.parametrize("container", ["parquet", "arrow", "arrow_stream"])
def test_a_row_above_the_bound_among_many_short_ones_is_rejected_alone(
    container: str, tmp_path: Path
) -> None:
    texts = ["a"] * 700 + ["b" * (65 << 20)] + ["c"] * 600
    shared = pa.array(["d" * (33 << 20), "e" * (33 << 20)] + ["f"] * 1299).dictionary_encode()
    write(tmp_path / "a", container, pa.table({"text": texts, "id": list(range(1301))}), 1301)
    rows = rows_of(tmp_path / "a")
    assert [value["id"] for value in rows.values] == [*range(700), *range(701, 1301)]
    assert [(r.record, r.reason) for r in rows.rejects] == [(700, "too_long")]
    write(tmp_path / "b", container, pa.table({"text": shared}), 1301)
    assert rows_of(tmp_path / "b").rejects == []


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
