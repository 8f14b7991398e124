"""Parquet, Arrow and JSON Lines: the rows as they are."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise, product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from datamix.core.errors import RecipeError
from datamix.core.records import row_schema
from datamix.exporters import EXPORT_FORMATS, keeps, open_sink
from datamix.exporters.columns import rechunk

KINDS = ("pretrain", "sft", "preference", "prompt")


@pytest.mark.parametrize(
    ("kind", "packed"), [*product(KINDS[:2], (False, True)), *product(KINDS[2:], (False,))]
)
def test_parquet_gives_back_every_row_without_a_readers_metadata(
    make_info, make_rows, tmp_path, kind, packed
):
    info = make_info(kind, packed=packed)
    rows = make_rows(info)
    names = open_sink("parquet", (), info, "train").write([rows], 3, tmp_path)
    assert names == ["train/00003.parquet"]
    table = pq.read_table(tmp_path / names[0])
    assert table.schema.equals(row_schema(kind, packed))
    assert table.schema.metadata is None
    assert table.to_pylist() == rows.to_pylist()
    assert b"huggingface" not in (tmp_path / names[0]).read_bytes()


def test_parquet_of_a_validation_source_is_named_by_it(make_info, make_rows, tmp_path):
    info = make_info()
    sink = open_sink("parquet", (), info, "validation/medical")
    assert sink.write([make_rows(info)], 0, tmp_path) == ["validation/medical-00000.parquet"]


@pytest.mark.parametrize("name", ["parquet", "arrow", "jsonl"])
def test_bytes_do_not_depend_on_how_rows_come_cut(make_info, make_rows, bytes_below, tmp_path, name):
    info = make_info("sft", packed=True, max_length=1 << 20, stages=("broad", "sharpen"))
    rows = make_rows(info, 23)
    seen = []
    for number, cuts in enumerate([(0, 23), (0, 1, 2, 11, 23), (0, 7, 14, 21, 23)]):
        batches = [rows.slice(a, b - a) for a, b in pairwise(cuts)]
        folder = tmp_path / str(number)
        sink = open_sink(name, (), info, "train")
        sink.finish([sink.write(batches, 0, folder)], folder)
        seen.append(bytes_below(folder))
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("name", ["parquet", "arrow", "jsonl"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_shard_is_written_and_read(make_info, tmp_path, name, kind):
    info = make_info(kind)
    sink = open_sink(name, (), info, "train")
    names = sink.write([], 0, tmp_path)
    sink.finish([names], tmp_path)
    assert len(names) == 1
    assert (tmp_path / names[0]).exists()


@given(sizes=st.lists(st.integers(0, 9), max_size=12), num_rows=st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_rechunk_keeps_rows_and_fills_every_table_but_the_last(sizes, num_rows):
    values = iter(range(sum(sizes)))
    batches = [
        pa.RecordBatch.from_pydict({"x": pa.array([next(values) for _ in range(n)], pa.int64())})
        for n in sizes
    ]
    tables = list(rechunk(batches, num_rows))
    assert [v for t in tables for v in t["x"].to_pylist()] == list(range(sum(sizes)))
    assert all(len(t) == num_rows for t in tables[:-1])
    assert all(0 < len(t) <= num_rows and t["x"].num_chunks == 1 for t in tables)


@pytest.mark.parametrize("kind", KINDS)
def test_datasets_loads_the_arrow_folder_with_all_its_splits(make_info, make_rows, tmp_path, kind):
    from datasets import load_from_disk

    info = make_info(kind)
    for split, shards in (("train", 3), ("validation/general", 1), ("validation/医学", 1)):
        sink = open_sink("arrow", (), info, split)
        names = [sink.write([make_rows(info, 10, 10 * i)], i, tmp_path) for i in range(shards)]
        sink.finish(names, tmp_path)
    loaded = load_from_disk(tmp_path)
    assert list(loaded) == ["train", "validation_general", "validation_医学"]
    assert len(loaded["train"]) == 30
    want = [row for i in range(3) for row in make_rows(info, 10, 10 * i).to_pylist()]
    assert loaded["train"].to_list() == want


def test_each_stage_is_a_dataset_of_its_own_and_no_row_is_written_twice(make_info, make_rows, tmp_path):
    from datasets import load_from_disk

    info = make_info("sft", stages=("warm up", "anneal"))
    sink = open_sink("arrow", (), info, "train")
    rows = make_rows(info, 30)
    names = [sink.write([rows.slice(10 * i, 10)], i, tmp_path) for i in range(3)]
    assert names[1] == ["train/data-00001-s0-warm up.arrow", "train/data-00001-s1-anneal.arrow"]
    sink.finish(names, tmp_path)
    assert load_from_disk(tmp_path)["train"].to_list() == rows.to_pylist()
    staged = [load_from_disk(tmp_path / "stages" / stage) for stage in info.stages]
    assert [set(part["stage"]) for part in staged] == [{"warm up"}, {"anneal"}]
    assert [row for part in staged for row in part.to_list()] == rows.to_pylist()
    assert len(list(tmp_path.rglob("*.arrow"))) == 4


def test_the_arrow_fingerprint_follows_the_rows(make_info, make_rows, tmp_path):
    prints = []
    for number, first in enumerate((0, 0, 1)):
        info, folder = make_info(), tmp_path / str(number)
        sink = open_sink("arrow", (), info, "train")
        sink.finish([sink.write([make_rows(info, 5, first)], 0, folder)], folder)
        prints.append(json.loads((folder / "train/state.json").read_text())["_fingerprint"])
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 16


@pytest.mark.parametrize(
    ("compression", "suffix", "unpack"),
    [
        ("none", "", bytes),
        ("gzip", ".gz", gzip.decompress),
        ("zstd", ".zst", lambda b: zstandard.ZstdDecompressor().stream_reader(b).read()),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_jsonl_is_one_row_a_line(make_info, make_rows, tmp_path, kind, compression, suffix, unpack):
    info = make_info(kind)
    rows = make_rows(info)
    sink = open_sink("jsonl", (("compression", compression),), info, "validation/general")
    names = sink.write([rows.slice(2, 5), rows.slice(7)], 0, tmp_path)
    assert names == [f"validation_general/00000.jsonl{suffix}"]
    lines = unpack((tmp_path / names[0]).read_bytes()).decode().splitlines()
    assert [json.loads(line) for line in lines] == rows.slice(2).to_pylist()


def test_a_gzip_header_holds_no_time_and_no_name(make_info, make_rows, tmp_path):
    sink = open_sink("jsonl", (("compression", "gzip"),), make_info(), "train")
    (name,) = sink.write([make_rows(make_info())], 0, tmp_path)
    assert (tmp_path / name).read_bytes()[:8] == bytes.fromhex("1f8b080000000000")  # flags 0, time 0


def test_every_format_opens_and_says_what_it_keeps(make_info):
    for name in EXPORT_FORMATS:
        opened = 0
        for kind in KINDS:
            try:
                kept = keeps(name, (), make_info(kind))
            except RecipeError:
                continue
            opened += 1
            assert set(kept) <= {"ratio", "order", "isolation"}
        assert opened


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("parket", (), ["parket", "parquet", "jsonl"]),
        ("parquet", (("level", 3),), ["level", "compression"]),
        ("parquet", (("compression", "rar"),), ["rar", "zstd"]),
        ("arrow", (("compression", "zstd"),), ["arrow", "none"]),
    ],
)
def test_a_wrong_format_or_option_is_told_with_what_would_do(make_info, name, options, words):
    with pytest.raises(RecipeError) as told:
        open_sink(name, options, make_info(), "train")
    assert all(word in str(told.value) for word in words)


def test_rows_read_from_parquet_are_written_as_those_that_a_build_hands_over(
    make_info, make_rows, bytes_below, tmp_path
):
    info = make_info("preference")
    built = make_rows(info, 9)
    (name,) = open_sink("parquet", (), info, "train").write([built], 0, tmp_path)
    read = pq.ParquetFile(tmp_path / name).iter_batches()
    for folder, rows in (("built", [built]), ("exported", read)):
        open_sink("arrow", (), info, "train").write(rows, 0, tmp_path / folder)
    assert bytes_below(tmp_path / "built") == bytes_below(tmp_path / "exported")
