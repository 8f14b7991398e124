"""What says nothing does not decide: nulls in the first records or in a whole shard, and a first line above the bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import recipe, write_jsonl

from datamix.jobs.build import build
from datamix.pipeline.planning import make_plan
from datamix.pipeline.progress import Screen
from datamix.pipeline.scan import recognise
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe

QA = {"question": "Why?", "answer": "Because."}
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "id": 1}


@pytest.mark.parametrize(
    ("nulls", "row", "format"),
    [
        ({"question": None, "answer": None}, QA, "question_answer"),
        ({"question": "Why?", "answer": None}, QA, "question_answer"),  # would be a prompt
        ({"messages": None, "id": 2}, CHAT, "messages"),
        ({"text": None}, {"text": "t"}, "text"),
        (
            {"prompt": "p", "chosen": None, "rejected": None},
            {"prompt": "p", "chosen": "c", "rejected": "r"},
            "preference",
        ),
    ],
)
@pytest.mark.parametrize("count", [1, 299, 600, 5000])
def test_first_records_of_nulls_do_not_decide_the_format(
    nulls: dict[str, Any], row: dict[str, Any], format: str, count: int, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [nulls] * count + [row] * 400)
    seen = recognise(str(path))
    assert seen.is_certain
    assert seen.detection is not None
    assert seen.detection.format == format


def test_a_field_that_is_null_everywhere_and_would_change_nothing_leaves_no_doubt(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**QA, "system": None, "id": None}] * 400)
    seen = recognise(str(path))
    assert (seen.is_certain, len(seen.values)) == (True, 300)


@pytest.mark.parametrize("empty", [{"question": None, "answer": None}, {"question": "Why?", "answer": None}])
def test_a_shard_of_nulls_has_the_format_of_its_source(empty: dict[str, Any], tmp_path: Path) -> None:
    path = recipe(
        tmp_path, sources={"s": {"path": "data/"}}, validation=None, dedupe=None, max_reject_share=0.5
    )
    schema = pa.schema([("question", pa.string()), ("answer", pa.string())])
    (tmp_path / "data").mkdir()
    for name, rows in (("a", [empty] * 3), ("b", [QA, {**QA, "question": "How?"}] * 5)):
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "data" / f"{name}.parquet")
    build(Recipe.read(path), Options(tmp_path / "out", tmp_path / "cache", workers=1))
    source = json.loads((tmp_path / "out" / "manifest.json").read_text())["sources"]["s"]
    assert source["records"]["read"] == 13
    assert source["rejected_by"] == {"null_field": 3}
    assert source["records"]["used"] == 10


def test_a_first_line_above_the_bound_does_not_stop_the_plan(tmp_path: Path) -> None:
    path = recipe(tmp_path, sources={"s": {"path": "long.jsonl"}}, validation=None, dedupe=None)
    rows = [{"instruction": "x" * (65 << 20), "output": "y"}]
    write_jsonl(
        tmp_path / "long.jsonl", rows + [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(200)]
    )
    plan = make_plan(
        Recipe.read(path),
        Options(tmp_path / "out", tmp_path / "cache", workers=1),
        False,
        None,
        Screen(quiet=True),
    )
    assert plan["sources"][0]["records"] >= 200
