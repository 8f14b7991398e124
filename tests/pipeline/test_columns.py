"""A column map serves a file of the source and is read, or plan and build stop with exit 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small import recipe, write_jsonl

from datamix.core.contracts import Rows
from datamix.core.errors import DataError, RecipeError
from datamix.formats import ShapeSpec, shape
from datamix.jobs.build import build
from datamix.pipeline.planning import make_plan
from datamix.pipeline.progress import Screen
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe

QA = {"question": "Why?", "answer": "No reason.", "better_answer": "Because."}


def mapped(folder: Path, rows: list[Any], columns: dict[str, str], **source: Any) -> Recipe:
    entry = {"path": "rows.jsonl", "columns": columns, **source}
    path = recipe(folder, sources={"s": entry}, validation=None, dedupe=None, clean=None)
    write_jsonl(folder / "rows.jsonl", rows)
    return Recipe.read(path)


def refusal(folder: Path, rows: list[Any], columns: dict[str, str], **source: Any) -> str:
    read = mapped(folder, rows, columns, **source)
    with pytest.raises(RecipeError) as caught:
        build(read, Options(folder / "refused", folder / "cache", workers=1))
    with pytest.raises(RecipeError):
        make_plan(
            read, Options(folder / "refused", folder / "cache", workers=1), False, None, Screen(quiet=True)
        )
    return str(caught.value)


def test_a_map_that_no_field_serves_is_refused_with_the_fields_that_exist(tmp_path: Path) -> None:
    message = refusal(tmp_path, [QA] * 20, {"answer": "best_answer"})
    assert message.startswith("sources.s.columns.answer: no file of the source has a field 'best_answer'.")
    assert "Fields there: answer, better_answer, question." in message


def test_a_map_of_a_field_that_the_format_does_not_read_is_refused(tmp_path: Path) -> None:
    for source in ({}, {"format": "question_answer"}):
        message = refusal(tmp_path, [QA] * 20, {"output": "better_answer"}, **source)
        assert message.startswith("sources.s.columns")
        assert "output" in message
        assert "question" in message


def test_a_field_of_another_name_than_the_plain_one_wins(tmp_path: Path) -> None:
    read = mapped(
        tmp_path, [{**QA, "id": i, "answer": f"No {i}."} for i in range(20)], {"answer": "better_answer"}
    )
    manifest = build(read, Options(tmp_path / "out", tmp_path / "cache", workers=1))
    assert manifest["sources"]["s"]["records"]["used"] == 20


def test_a_field_that_comes_late_in_the_file_is_found(tmp_path: Path) -> None:
    rows: list[Any] = [{"question": f"q{i}", "answer": "a"} for i in range(400)]
    rows[-1]["rôle"] = "Be brief."
    read = mapped(tmp_path, rows, {"system": "rôle"})
    assert (
        build(read, Options(tmp_path / "out", tmp_path / "cache", workers=1))["sources"]["s"]["records"][
            "read"
        ]
        == 400
    )


def test_parts_of_turns_are_checked_too(tmp_path: Path) -> None:
    rows = [{"messages": [{"who": "U", "says": f"q{i}"}, {"who": "B", "says": "a"}]} for i in range(20)]
    columns = {"turn.role": "who", "turn.content": "says", "turn.user": "U", "turn.assistant": "B"}
    assert build(mapped(tmp_path, rows, columns), Options(tmp_path / "out", tmp_path / "cache", workers=1))
    assert "no turn of the source has a field 'whom'" in refusal(
        tmp_path, rows, columns | {"turn.role": "whom"}
    )
    assert "turn.sender is no part of a turn" in refusal(tmp_path, rows, columns | {"turn.sender": "who"})


ALIASES = [
    (
        "prompt_completion",
        {"prompt": "q", "completion": "x", "response": "y", "z": "good"},
        "response",
        "sft",
    ),
    (
        "prompt_completion",
        {"prompt": "q", "completion": "x", "response": "y", "z": "good"},
        "completion",
        "sft",
    ),
    ("question_answer", {"question": "q", "ask": "r", "answer": "x", "z": "good"}, "ask", "sft"),
    ("prompt", {"prompt": "q", "answer": "x", "reference": "y", "z": "good"}, "answer", "prompt"),
    ("prompt", {"prompt": "q", "problem": "p", "z": "good"}, "problem", "prompt"),
    ("alpaca", {"instruction": "q", "output": "x", "system": "s", "z": "good"}, "system_prompt", "sft"),
]


@pytest.mark.parametrize(("format", "row", "field", "kind"), ALIASES)
def test_a_mapped_field_is_read_from_there_and_nowhere_else(
    format: str, row: Any, field: str, kind: Any
) -> None:
    spec = ShapeSpec(format, kind, ((field, "z"),))
    (record,) = shape(Rows([row], [0], [None], [b""]), 0, spec).batch.to_pylist()
    texts = [turn["content"] for turn in record["messages"]] + [record.get("reference")]
    assert "good" in texts
    (plain,) = shape(
        Rows([{**row, field: row["z"]}], [0], [None], [b""]), 0, ShapeSpec(format, kind)
    ).batch.to_pylist()
    assert sum(text == "good" for text in texts) == 1
    assert plain is not None


def test_unknown_roles_are_named_with_the_map_that_reads_them(tmp_path: Path) -> None:
    turns = [{"role": "seller", "content": "q"}, {"role": "buyer", "content": "a"}]
    for field in ("messages", "talk"):
        read = mapped(tmp_path, [{field: turns}] * 20, {})
        with pytest.raises(DataError) as caught:
            build(read, Options(tmp_path / "out", tmp_path / "cache", workers=1))
        assert f"turns in {field} have the unknown roles 'seller', 'buyer'" in str(caught.value)
        assert f"columns: {{messages: {field}, turn.user: ROLE, turn.assistant: ROLE}}" in str(caught.value)
        columns = {"messages": field, "turn.user": "seller", "turn.assistant": "buyer"}
        rows = [{field: [{**turns[0], "content": f"q{i}"}, turns[1]]} for i in range(20)]
        out = Options(tmp_path / field, tmp_path / "cache", workers=1)
        assert build(mapped(tmp_path, rows, columns), out)["sources"]["s"]["records"]["used"] == 20
