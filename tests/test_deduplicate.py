from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamix.core.errors import DataError, RecipeError
from datamix.dedup import DedupeSpec, NearSpec
from datamix.jobs.deduplicate import deduplicate

SPEC = DedupeSpec(near=NearSpec())
LONG = " ".join(f"word{i}" for i in range(60))


def lines(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_lines_that_stay_keep_their_bytes_and_removed_ones_are_named(tmp_path: Path):
    raw = [
        '{"text": "一"}',
        '{"text":"\\u4e00" }',
        "not json",
        f'{{"text": "{LONG}"}}',
        f'{{"text": "{LONG} end"}}',
        "",
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(raw), encoding="utf-8")
    done = deduplicate([str(tmp_path / "in.jsonl")], str(tmp_path / "out.jsonl"), SPEC)
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines() == [raw[0], raw[2], raw[3]]
    audit = pq.read_table(done.audit).to_pylist()
    assert [(row["record"], row["method"], row["kept_record"]) for row in audit] == [
        (1, "exact", 0),
        (4, "near", 3),
    ]
    assert audit[1]["similarity"] == pytest.approx(56 / 57)
    assert str(done).startswith(
        f"{tmp_path / 'in.jsonl'}: 3 of 5 stay (1 exact and 1 near duplicates removed, 1 that"
    )


def test_of_two_files_the_one_named_first_keeps_the_record(tmp_path: Path):
    first = lines(tmp_path / "b.jsonl", [{"instruction": "你好吗朋友", "output": "好"}])
    second = lines(
        tmp_path / "a.jsonl",
        [{"instruction": "你好吗朋友", "output": "好"}, {"instruction": "别的问题", "output": "答"}],
    )
    deduplicate([first, second], str(tmp_path / "out"), SPEC)
    kept = {p.name: p.read_text(encoding="utf-8").count("\n") for p in (tmp_path / "out").glob("*.jsonl")}
    assert kept == {"b.jsonl": 1, "a.jsonl": 1}
    merged = deduplicate([first, second], str(tmp_path / "one.jsonl"), SPEC)
    assert merged.target.read_text(encoding="utf-8").count("\n") == 2


def test_json_arrays_csv_parquet_and_compressed_lines_stay_what_they_are(tmp_path: Path):
    rows = [{"text": LONG}, {"text": LONG}, {"text": "another, one"}]
    (tmp_path / "array.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "table.csv").write_text(f'id,text\n1,{LONG}\n2,{LONG}\n3,"another, one"\n', encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    spec = DedupeSpec(near=NearSpec(), scope="within")
    inputs = ["array.json", "table.csv", "rows.parquet", "packed.jsonl.gz"]
    deduplicate([str(tmp_path / name) for name in inputs], str(tmp_path / "out"), spec)
    out = tmp_path / "out"
    assert json.loads((out / "array.json").read_text(encoding="utf-8")) == [rows[0], rows[2]]
    assert (out / "table.csv").read_text(encoding="utf-8") == f'id,text\n1,{LONG}\n3,"another, one"\n'
    assert pq.read_table(out / "rows.parquet").to_pylist() == [rows[0], rows[2]]
    assert [
        json.loads(line) for line in gzip.decompress((out / "packed.jsonl.gz").read_bytes()).splitlines()
    ] == [
        rows[0],
        rows[2],
    ]


def test_any_column_of_text_can_be_compared(tmp_path: Path):
    source = lines(tmp_path / "in.jsonl", [{"body": "same"}, {"body": "same"}, {"other": 1}])
    with pytest.raises(DataError, match="--column"):
        deduplicate([source], str(tmp_path / "out.jsonl"), SPEC)
    with pytest.raises(RecipeError, match="no column 'text'"):
        deduplicate([source], str(tmp_path / "out.jsonl"), SPEC, column="text")
    done = deduplicate([source], str(tmp_path / "out.jsonl"), SPEC, column="body")
    assert done.target.read_text(encoding="utf-8").count("\n") == 2


def test_an_input_is_never_overwritten(tmp_path: Path):
    source = lines(tmp_path / "in.jsonl", [{"text": "a"}])
    with pytest.raises(RecipeError, match=r"is the input .* itself"):
        deduplicate([source], source, SPEC)
    with pytest.raises(RecipeError, match=r"is the input .* itself"):
        deduplicate([source], str(tmp_path), SPEC)


def test_the_suffix_of_the_target_says_how_it_is_compressed(tmp_path: Path):
    source = lines(tmp_path / "in.jsonl", [{"text": "一二三"}, {"text": "一二三"}, {"text": LONG}])
    done = deduplicate([source], str(tmp_path / "out.jsonl.gz"), SPEC)
    assert gzip.decompress(done.target.read_bytes()).count(b"\n") == 2
    assert done.audit.name == "out.removed.parquet"
    assert done.target.read_bytes()[4:8] == bytes(4)  # no clock in it
    again = deduplicate([str(done.target)], str(tmp_path / "folder"), SPEC)
    assert gzip.decompress((again.target / "out.jsonl.gz").read_bytes()).count(b"\n") == 2


def test_a_name_that_promises_another_container_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"text": ["a b", "a b"]}), tmp_path / "rows.parquet")
    with pytest.raises(RecipeError, match=r"rows.parquet is parquet and stays parquet. Name it out.parquet"):
        deduplicate([str(tmp_path / "rows.parquet")], str(tmp_path / "out.jsonl"), SPEC)
    source = lines(tmp_path / "in.jsonl", [{"text": "一二三"}])
    with pytest.raises(RecipeError, match=r"not written as .xz. Name it out.jsonl."):
        deduplicate([source], str(tmp_path / "out.jsonl.xz"), SPEC)


def test_a_file_without_one_text_in_the_column_stays_as_it_is(tmp_path: Path):
    first = lines(tmp_path / "a.jsonl", [{"text": 5}])
    second = lines(tmp_path / "b.jsonl", [{"text": "x"}, {"text": "x"}])
    done = deduplicate([first, second], str(tmp_path / "out"), SPEC, "text")
    assert [(f.num_records, f.num_exact, f.num_unread) for f in done.files] == [(1, 0, 1), (2, 1, 0)]
    assert (tmp_path / "out" / "a.jsonl").read_text() == '{"text": 5}\n'
