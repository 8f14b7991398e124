"""Conversion of whole files: what arrives is what was there, or it is said what is not."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from datamix.core.errors import DataError, RecipeError
from datamix.formats import ShapeSpec, native_kinds, shape
from datamix.jobs.convert import convert
from datamix.pipeline.scan import recognise
from datamix.read import read

SHARED = Path(__file__).parents[2] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real corpora are not beside the checkout")

ALPACA = [
    {"instruction": "问\n题", "input": "", "output": "a\r\nb", "history": [["早", "好"]], "id": 1},
    {"instruction": 'say "hi", please', "input": "x", "output": "", "system": "你是医生", "id": 2},
]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def records(path: Path | str) -> list[dict[str, Any]]:
    """The records of a file, without their ordinals."""
    seen = recognise(str(path))
    assert seen.detection is not None
    spec = ShapeSpec(
        seen.detection.format,
        native_kinds(seen.detection.format)[0],
        seen.detection.columns,
        keep_meta=("*",),
    )
    found: list[dict[str, Any]] = []
    for rows in read(seen.piece):
        shaped = shape(rows, 0, spec)
        assert [*rows.rejects, *shaped.rejects] == []
        found += shaped.batch.drop_columns(["slice", "record"]).to_pylist()
    return found


@pytest.mark.parametrize("name", ["b.jsonl", "b.json", "b.parquet", "b.jsonl.gz", "b.json.zst", "b.jsonl.xz"])
@pytest.mark.parametrize("to", ["alpaca", "sharegpt", "messages", "prompt_completion", "magpie"])
def test_records_are_the_same_in_another_format_and_container(tmp_path: Path, name: str, to: str) -> None:
    source = lines(tmp_path / "a.jsonl", ALPACA)
    done = convert(str(source), str(tmp_path / name), to)
    assert (done.num_records, done.num_rows, done.lost) == (2, 2, {})
    assert records(tmp_path / name) == records(source)
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("name", ["b.csv", "b.tsv", "b.csv.gz"])
def test_a_table_of_texts_holds_alpaca_rows_with_their_history(tmp_path: Path, name: str) -> None:
    rows = [{**row, "id": f"n{row['id']}"} for row in ALPACA]
    source = lines(tmp_path / "a.jsonl", rows)
    assert convert(str(source), str(tmp_path / name), "alpaca").lost == {}
    assert records(tmp_path / name) == records(source)


def test_what_a_table_cannot_hold_is_named(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", ALPACA)
    with pytest.raises(RecipeError, match=r"without loss: that id is not text \(CSV holds text\): 2"):
        convert(str(source), str(tmp_path / "b.csv"), "alpaca")
    assert not (tmp_path / "b.csv").exists()


def test_a_loss_is_refused_and_leaves_an_older_file_alone(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "g", "rejected": "b"}]
    source, target = lines(tmp_path / "a.jsonl", rows), tmp_path / "b.jsonl"
    target.write_text("older")
    with pytest.raises(
        RecipeError, match=r"cannot be written as alpaca without loss: the worse answers: 1\."
    ):
        convert(str(source), str(target), "alpaca", overwrite=True)
    assert target.read_text() == "older"
    done = convert(str(source), str(target), "alpaca", lossy=True, overwrite=True)
    assert json.loads(target.read_text()) == {"instruction": "q", "input": "", "output": "g"}
    assert "lost: the worse answers: 1" in str(done)


def test_records_that_do_not_fit_are_a_loss_with_their_lines(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", [*ALPACA, {"instruction": "q", "output": None}])
    with pytest.raises(RecipeError, match="line 3: output is null"):
        convert(str(source), str(tmp_path / "b.jsonl"), "sharegpt")
    assert convert(str(source), str(tmp_path / "b.jsonl"), "sharegpt", lossy=True).num_rows == 2


def test_what_cannot_be_done_is_said_before_anything_is_written(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", ALPACA)
    target = str(tmp_path / "b.jsonl")
    with pytest.raises(RecipeError, match="there is no such format"):
        convert(str(source), target, "alpacca")
    with pytest.raises(RecipeError, match="alpaca rows are sft records, which cannot become that"):
        convert(str(source), target, "preference")
    with pytest.raises(RecipeError, match="its name does not say what to write"):
        convert(str(source), str(tmp_path / "b.docx"), "sharegpt")
    with pytest.raises(RecipeError, match=r"is the input .* itself"):
        convert(str(source), str(source), "sharegpt")
    with pytest.raises(RecipeError, match="there is no folder"):
        convert(str(source), str(tmp_path / "no" / "b.jsonl"), "sharegpt")
    with pytest.raises(DataError, match="in no known format: its first record has the fields foo"):
        convert(str(lines(tmp_path / "c.jsonl", [{"foo": 1}])), target, "sharegpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "c.jsonl"]


def test_calls_keep_their_arguments_in_parquet(tmp_path: Path) -> None:
    rows = []
    for arguments in ({"城市": "北京"}, {"x": [1, {"y": None}]}, {}):
        value = json.dumps({"name": "f", "arguments": arguments}, ensure_ascii=False)
        turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]
        turns += [{"from": "observation", "value": "{}"}, {"from": "gpt", "value": "x"}]
        rows.append({"conversations": turns, "tools": '[{"name": "f", "parameters": {}}]'})
    source = lines(tmp_path / "a.jsonl", rows)
    convert(str(source), str(tmp_path / "b.parquet"), "messages")
    assert records(tmp_path / "b.parquet") == records(source)
    assert pq.read_table(tmp_path / "b.parquet").column_names == ["messages", "tools"]
    convert(str(tmp_path / "b.parquet"), str(tmp_path / "c.jsonl"), "sharegpt")
    assert records(tmp_path / "c.jsonl") == records(source)


def test_an_empty_answer_and_an_absent_reference_are_told_apart_or_said_to_be_lost(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "reference": "x"}, {"prompt": "b"}]
    source = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(RecipeError, match="where reference is absent"):
        convert(str(source), str(tmp_path / "b.csv"), "prompt")


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", ALPACA)
    for name in ("b.jsonl.gz", "b.parquet", "b.json"):
        written = []
        for _ in range(2):
            convert(str(source), str(tmp_path / name), "messages", overwrite=True)
            written.append((tmp_path / name).read_bytes())
        assert written[0] == written[1]


@pytest.mark.shared
@shared
@pytest.mark.parametrize(
    ("glob", "to", "name"),
    [
        ("sft_general/*/alpaca_zh_demo.json", "sharegpt", "b.jsonl"),
        ("sft_general/*/glaive_toolcall_zh_demo.json", "messages", "b.parquet"),
        ("sft_general/*/glaive_toolcall_en_demo.json", "messages", "b.csv"),
        ("sft_general/*/reason_tool_use_demo_50.jsonl", "messages", "b.parquet"),
        ("sft_domain/*/*.csv", "alpaca", "b.jsonl.zst"),
        ("preference/*/dpo_zh_500.jsonl", "preference", "b.parquet"),
        ("preference/*/dpo_zh_demo.json", "paired_messages", "b.jsonl"),
        ("preference/*/kto_en_demo.json", "kto", "b.json"),
    ],
)
def test_real_files_come_through_whole(tmp_path: Path, glob: str, to: str, name: str) -> None:
    (source,) = SHARED.glob(glob)
    assert convert(str(source), str(tmp_path / name), to).lost == {}
    there = records(tmp_path / name)
    assert [{**r, "meta": None} for r in there] == [{**r, "meta": None} for r in records(source)]


@pytest.mark.shared
@shared
def test_naughty_strings_come_through_tables(tmp_path: Path) -> None:
    naughty: list[str] = json.loads(next(SHARED.glob("messy/**/blns.json")).read_text(encoding="utf-8"))
    source = lines(tmp_path / "a.jsonl", [{"question": f"q{t}", "answer": f"a{t}"} for t in naughty])
    for name in ("b.csv", "b.tsv", "b.parquet"):
        assert convert(str(source), str(tmp_path / name), "question_answer").lost == {}
        assert records(tmp_path / name) == records(source)
    with (tmp_path / "b.csv").open(encoding="utf-8", newline="") as stream:
        assert sum(1 for _ in csv.DictReader(stream)) == len(naughty)


def test_a_file_of_which_nothing_can_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_bytes(b'{"instruction": "q", "output": \n' * 3)
    with pytest.raises(DataError, match=r"none of its first records can be read; its first record: "):
        convert(str(tmp_path / "broken.jsonl"), str(tmp_path / "out.jsonl"), "messages")
