"""Problems with their line, field and reason; and the schemas, tied to what the program holds and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pyarrow as pa
import pytest
from click.testing import CliRunner

from datamix.commands.check import check as command
from datamix.core.contracts import Rows
from datamix.core.errors import RecipeError
from datamix.core.records import MESSAGE, ROLES, SCHEMAS, RecordKind
from datamix.formats import ShapeSpec, shape, unshape
from datamix.jobs.check import Problem, check
from datamix.recipe.schemas import schema_text

KINDS: tuple[RecordKind, ...] = ("text", "sft", "preference", "prompt")
# a field of a record batch -> the property of the published schema that holds it
PROPERTIES = {
    "kwargs": "chat_template_kwargs",
    "chosen": "chosen",
    "reasoning": "reasoning_content",
    "train": "loss",
}


def file(folder: Path, rows: list[Any]) -> str:
    path = folder / "a.jsonl"
    path.write_text(
        "".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) + "\n" for r in rows),
        encoding="utf-8",
    )
    return str(path)


def found(path: str, kind: str | None = None) -> list[tuple[int | None, str, str]]:
    return [(p.line, p.field, p.reason) for p in check([path], kind)]


def test_right_records_have_no_problems(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": "x", "history": [["a", "b"]], "system": "s"}] * 3
    assert found(file(tmp_path, rows)) == found(file(tmp_path, rows), "sft") == []


def test_problems_name_line_field_and_reason(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]}
    rows = [
        good,
        {"messages": [{"role": "assistant", "content": "x"}]},
        "{broken\n",
        {"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "x"}]},
        good,
        {"messages": []},
        good,
        good,
    ]
    path = file(tmp_path, rows)
    problems = list(check([path]))
    assert [(p.line, p.field) for p in problems] == [
        (2, "messages[0]"),
        (3, ""),
        (4, "messages[0].content"),
        (6, "messages"),
    ]
    assert str(problems[0]) == f"{path}:2: messages[0] is an assistant turn before any user turn"
    assert str(problems[1]).startswith(f"{path}:3: json_syntax:")


def test_asked_for_a_kind_our_own_form_holds_to_the_schema(tmp_path: Path) -> None:
    path = file(tmp_path, [{"instruction": "q", "output": "x", "meta": "not an object"}] * 2)
    assert found(path) == []
    assert found(path, "sft")[0][:2] == (1, "meta")


DIALECTS: list[Any] = [
    {
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": "q"},
            {"role": "model", "content": "a"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "1"},
            {"role": "assistant", "content": "one"},
        ]
    },
    {"messages": [{"role": "user", "content": "q"}, {"role": "tool_call", "content": '{"name": "f"}'}]},
    {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
    {
        "messages": [{"role": "user", "content": ["a", "b"]}, {"role": "assistant", "content": "ok"}],
        "history": 3,
    },
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": "[]"},
]
BROKEN: list[Any] = [
    {"messages": [{"role": "nobody", "content": "q"}]},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": -1}]},
]


@pytest.mark.parametrize("kind", [None, "sft"])
def test_check_calls_a_problem_what_a_build_rejects_and_nothing_else(
    tmp_path: Path, kind: str | None
) -> None:
    path = file(tmp_path, DIALECTS + BROKEN)
    num = len(DIALECTS + BROKEN)
    rows = Rows(DIALECTS + BROKEN, list(range(num)), [None] * num, [b""] * num)
    rejects = shape(rows, 0, ShapeSpec("messages", "sft")).rejects
    assert [(p.record, p.code) for p in check([path], kind)] == [(r.record, r.reason) for r in rejects]
    assert [reject.record for reject in rejects] == [len(DIALECTS), len(DIALECTS) + 1]


def test_the_command_ends_with_a_count_by_reason(tmp_path: Path) -> None:
    path = file(tmp_path, [DIALECTS[0]] * 3 + BROKEN + ["{broken\n"])
    result = CliRunner().invoke(command, [path])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "3 problems: unknown_role 1, loss_flag 1, json_syntax 1."


def test_a_file_of_another_kind_is_a_problem_of_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, [{"text": "x"}])
    assert found(path, "sft") == [(None, "", "holds text records (text), not sft records")]
    assert found(path, "pretrain") == []
    path = file(tmp_path, [{"prompt": "q", "chosen": "x", "rejected": "y"}])
    assert found(path, "sft") == []


def test_what_is_not_recognised_is_checked_against_the_kind_that_was_asked_for(tmp_path: Path) -> None:
    path = file(tmp_path, [{"instruktion": "q"}, {"instruktion": "r"}])
    assert found(path) == [(None, "", "is in no known format: its first record has the fields instruktion")]
    assert found(path, "sft") == [
        (1, "instruction", "is missing"),
        (2, "instruction", "is missing"),
    ]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match="Kinds: text, sft, preference, prompt"):
        list(check([], "dpo"))
    assert str(Problem("f.parquet", 7, None, "text", "is null")) == "f.parquet record 7: text is null"


def schema(kind: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(schema_text(kind))
    return loaded


def types(node: dict[str, Any]) -> set[str]:
    """The JSON types that a property may have."""
    if "anyOf" in node:
        return set().union(*(types(option) for option in node["anyOf"]))
    if "$ref" in node:
        return {"array"} if node["$ref"].endswith(("messages", "tools", "history")) else {"string", "array"}
    if "enum" in node:
        return {"string"}
    kinds = node.get("type", ["string", "number", "object", "array", "boolean", "null"])
    return {kinds} if isinstance(kinds, str) else set(kinds)


def json_types(kind: pa.DataType) -> set[str]:
    if pa.types.is_list(kind):
        return {"array"}
    if pa.types.is_boolean(kind):
        return {"boolean"}
    if pa.types.is_floating(kind):
        return {"number"}
    return {"string", "array", "object"}  # texts, or structured leaves that travel as JSON text


@pytest.mark.parametrize("kind", KINDS)
def test_every_column_of_a_batch_stands_in_the_published_schema(kind: RecordKind) -> None:
    properties = schema(kind)["properties"]
    for field in SCHEMAS[kind]:
        if field.name in ("slice", "record"):
            continue
        name = PROPERTIES.get(field.name, field.name)
        assert name in properties, name
        assert json_types(field.type) & types(properties[name]), name


@pytest.mark.parametrize("kind", ["sft", "preference", "prompt"])
def test_every_field_of_a_turn_stands_in_the_published_schema(kind: str) -> None:
    message = schema(kind)["$defs"]["message"]["properties"]
    assert {PROPERTIES.get(field.name, field.name) for field in MESSAGE} == set(message)
    assert tuple(message["role"]["enum"]) == ROLES
    assert schema(kind)["$defs"]["message"] == schema("sft")["$defs"]["message"]


def message(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


FULL = [
    message("system", "s"),
    message("user", "q"),
    message(
        "assistant",
        None,
        reasoning="r",
        train=False,
        tool_calls='[{"id":"c","type":"function","function":{"name":"f","arguments":{}}}]',
    ),
    message("tool", "o", tool_call_id="c", name="f"),
]
EXTRAS = {"tools": '[{"type":"function","function":{"name":"f"}}]', "kwargs": '{"x":1}', "meta": None}
RECORDS: list[tuple[RecordKind, str, dict[str, Any]]] = [
    ("text", "text", {"text": "文"}),
    ("sft", "messages", {"messages": [*FULL, message("assistant", "x")], **EXTRAS}),
    (
        "sft",
        "alpaca",
        {"messages": [message("user", "q"), message("assistant", "x", reasoning="r")], **EXTRAS},
    ),
    (
        "preference",
        "preference",
        {
            "messages": FULL,
            "chosen": [message("assistant", "g")],
            "rejected": [message("assistant", "b")],
            "margin": 1.0,
            **EXTRAS,
        },
    ),
    ("preference", "kto", {"messages": FULL, "chosen": [message("assistant", "g")], "label": True, **EXTRAS}),
    ("prompt", "prompt", {"messages": FULL, "reference": "x", **EXTRAS}),
]


@pytest.mark.parametrize(("kind", "format", "record"), RECORDS)
def test_what_the_program_writes_holds_to_the_published_schema(
    kind: RecordKind, format: str, record: dict[str, Any]
) -> None:
    batch = pa.RecordBatch.from_pylist([{"slice": 0, "record": 0, **record}], schema=SCHEMAS[kind])
    ((row,), lost) = unshape(batch, kind, format)
    assert lost == []
    jsonschema_rs.Draft202012Validator(schema(kind)).validate(row)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("text", {"text": None}),
        ("sft", {"instruction": "q"}),
        ("sft", {"messages": [{"role": "user", "content": "q"}]}),
        ("sft", {"messages": [{"role": "narrator", "content": "q"}]}),
        ("sft", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]}),
        ("sft", {"instruction": "q", "output": "x", "history": [["only"]]}),
        ("preference", {"prompt": "q", "chosen": "x"}),
        ("preference", {"prompt": "q", "completion": "x"}),
        ("prompt", {"reference": "x"}),
    ],
)
def test_the_schemas_refuse_what_does_not_fit(kind: str, row: dict[str, Any]) -> None:
    jsonschema_rs.meta.validate(schema(kind))
    assert not jsonschema_rs.Draft202012Validator(schema(kind)).is_valid(row)


def test_a_file_without_records_is_named_and_a_torn_one_says_where(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "torn.json").write_text('[{"text": "a')
    assert [(problem.line, problem.reason) for problem in check([str(tmp_path)])] == [
        (None, "holds no records"),
        (1, "truncated: the file ends inside it"),
    ]
