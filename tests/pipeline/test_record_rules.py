"""Bands of a number, and reasoning in earlier turns: what a recipe asks of single records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import alpaca, recipe, write_jsonl
from tokenizers import Tokenizer

from datamix.audit import verify
from datamix.core.errors import RecipeError
from datamix.jobs.build import build
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe

PLAIN: dict[str, Any] = {"dedupe": None, "validation": None, "clean": None, "write": ["parquet"]}
ENCODE = {"max_length": 512, "pack": "none"}


def run(path: Path, name: str = "set") -> dict[str, Any]:
    manifest = build(Recipe.read(path), Options(path.parent / name, path.parent / "cache", workers=1))
    assert [f"{c.name}: {c.detail}" for c in verify(path.parent / name) if not c.ok] == []
    return manifest


def prompts(count: int = 100, key: str = "pass_rate") -> list[dict[str, Any]]:
    rows = []
    for n in range(count):
        row: dict[str, Any] = {
            "prompt": [{"role": "user", "content": f"What is {n} + {n}?"}],
            "answer": str(2 * n),
        }
        rows.append(row | ({"extra_info": {"rate": n / 100}} if key == "nested" else {key: n / 100}))
    return rows


def kept(folder: Path, source: str | None = None) -> set[int]:
    """The records of the set, each once."""
    rows = pq.read_table(folder / "set/train").to_pylist()
    return {p["record"] for row in rows if source in (None, row["source"]) for p in row["records"]}


@pytest.mark.parametrize(
    ("band", "wanted"),
    [
        ({"min": 0.1, "max": 0.9}, range(10, 91)),
        ({"min": 0.95}, range(95, 100)),
        ({"max": 0.02}, range(0, 3)),
        ({"min": 0, "max": 1}, range(100)),
    ],
)
@pytest.mark.parametrize("kind", ["prompt", "sft"])
def test_a_band_keeps_the_records_whose_number_is_inside(
    tmp_path: Path, band: dict[str, float], wanted: range, kind: str
) -> None:
    path = recipe(
        tmp_path,
        kind=kind,
        sources={"s": {"path": "s.jsonl", "keep": {"field": "pass_rate", **band}}},
        encode=ENCODE if kind == "sft" else None,
        **PLAIN,
    )
    rows: list[Any] = (
        prompts()
        if kind == "prompt"
        else [row | {"pass_rate": n / 100} for n, row in enumerate(alpaca(["What is it"], 100))]
    )
    write_jsonl(tmp_path / "s.jsonl", rows)
    source = run(path)["sources"]["s"]
    assert kept(tmp_path) == set(wanted)
    assert source["cleaned_by"].get("keep", 0) == 100 - len(wanted)
    table = pq.read_table(tmp_path / "set/train")  # the field is read, not carried
    assert "meta" not in table.column_names or table.column("meta").null_count == len(table)


def test_bands_of_a_nested_field_of_text_and_of_several_fields(tmp_path: Path) -> None:
    rows = [row | {"level": str(n % 10)} for n, row in enumerate(prompts(key="nested"))]
    keep = [{"field": "extra_info.rate", "min": 0.5}, {"field": "level", "max": 3}]
    path = recipe(
        tmp_path, kind="prompt", sources={"s": {"path": "s.jsonl", "keep": keep}}, encode=None, **PLAIN
    )
    write_jsonl(tmp_path / "s.jsonl", rows)
    run(path)
    assert kept(tmp_path) == {n for n in range(50, 100) if n % 10 <= 3}


@pytest.mark.parametrize("value", [None, "high", True, [0.5], float("nan")])
def test_a_record_without_a_number_is_left_out_and_counted(tmp_path: Path, value: Any) -> None:
    rows = prompts(20)
    rows[3]["pass_rate"] = value
    del rows[4]["pass_rate"]
    if isinstance(value, float):
        rows[3]["pass_rate"] = "nan"
    path = recipe(
        tmp_path,
        kind="prompt",
        sources={"s": {"path": "s.jsonl", "keep": {"field": "pass_rate", "min": 0.1}}},
        encode=None,
        **PLAIN,
    )
    write_jsonl(tmp_path / "s.jsonl", rows)
    assert run(path)["sources"]["s"]["cleaned_by"] == {"keep": 8, "keep_missing": 2}


def test_a_band_of_a_field_that_no_record_has_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        kind="prompt",
        sources={"s": {"path": "s.jsonl", "keep": {"field": "passrate", "min": 0.1}}},
        encode=None,
        **PLAIN,
    )
    write_jsonl(tmp_path / "s.jsonl", prompts(20))
    with pytest.raises(
        RecipeError, match=r"sources\.s\.keep: none of its 20 records has a number in the field passrate"
    ):
        run(path)


@pytest.mark.parametrize("keep", [{"field": "x"}, {"field": "x", "min": 2, "max": 1}, {"min": 1}])
def test_a_band_needs_a_field_and_a_bound(keep: dict[str, Any]) -> None:
    value = {
        "name": "a",
        "kind": "prompt",
        "tokenizer": "t",
        "sources": {"s": {"path": "s.jsonl", "keep": keep}},
    }
    with pytest.raises(RecipeError, match="keep"):
        Recipe.of(value, Path())


def test_bands_of_one_file_share_a_group_by_weight_and_prompt_sets_are_weighed(tmp_path: Path) -> None:
    def band(low: float, high: float, weight: float) -> dict[str, Any]:
        keep = {"field": "pass_rate", "min": low, "max": high}
        return {"path": "math.jsonl", "group": "math", "keep": keep, "weight": weight}

    path = recipe(
        tmp_path,
        kind="prompt",
        sources={
            "hard": band(0.0, 0.29, 0.5),
            "medium": band(0.3, 0.59, 0.3),
            "easy": band(0.6, 1.0, 0.2),
            "code": {"path": "code.jsonl", "weight": 0.4},
        },
        groups={"math": {"weight": 0.6, "within": "weights"}},
        mix={"size": 50},
        encode=None,
        **PLAIN,
    )
    write_jsonl(tmp_path / "math.jsonl", prompts())
    write_jsonl(tmp_path / "code.jsonl", [row | {"answer": f"c{n}"} for n, row in enumerate(prompts(40))])
    manifest = run(path)
    emitted = {name: source["emitted"]["records"] for name, source in manifest["sources"].items()}
    assert emitted == pytest.approx({"hard": 15, "medium": 9, "easy": 6, "code": 20}, abs=1)
    assert kept(tmp_path, "hard") <= set(range(0, 30))
    assert kept(tmp_path, "easy") <= set(range(60, 100))


THOUGHT = "let me see"
TALK = [
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "one", "reasoning_content": f"{THOUGHT} 1"},
    {"role": "user", "content": "second"},
    {"role": "assistant", "content": "two", "reasoning_content": f"{THOUGHT} 2"},
    {"role": "assistant", "content": "and more", "reasoning_content": f"{THOUGHT} 3"},
]
INLINE = [
    {key: value for key, value in turn.items() if key != "reasoning_content"}
    | (
        {"content": f"<think>\n{turn['reasoning_content']}\n</think>\n\n{turn['content']}"}
        if "reasoning_content" in turn
        else {}
    )
    for turn in TALK
]
PLAIN_TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]


@pytest.mark.parametrize("talk", [TALK, INLINE], ids=["field", "inline"])
@pytest.mark.parametrize(("thinking", "stays"), [("keep", "123"), ("last", "23"), ("drop", "")])
def test_reasoning_stays_where_the_recipe_says(
    tmp_path: Path, talk: list[Any], thinking: str, stays: str
) -> None:
    path = recipe(
        tmp_path,
        sources={"s": {"path": "s.jsonl"}},
        encode=ENCODE | {"thinking": thinking},
        **PLAIN,
    )
    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
        "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    value = json.loads(path.read_text()) | {"chat_template": "chat.jinja"}
    path.write_text(json.dumps(value))
    write_jsonl(tmp_path / "s.jsonl", [{"messages": talk}, {"messages": PLAIN_TALK}])
    manifest = run(path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "set/tokenizer/tokenizer.json"))
    rows = pq.read_table(tmp_path / "set/train").column("input_ids").to_pylist()
    text = "\n".join(tokenizer.decode(ids, skip_special_tokens=False) for ids in rows)
    assert "".join(n for n in "123" if f"{THOUGHT} {n}" in text) == stays
    assert "and more" in text
    assert manifest["sources"]["s"]["noticed"].get("thinking", 0) == (1 if stays else 0)
    page = (tmp_path / "set/report.html").read_text(encoding="utf-8")
    assert ("Records with reasoning, before duplicates are removed: s 50.0 %" in page) == bool(stays)


@pytest.mark.parametrize(
    ("thinking", "in_prompt", "in_answer"), [("keep", 1, 1), ("last", 0, 1), ("drop", 0, 0)]
)
def test_reasoning_of_pairs(tmp_path: Path, thinking: str, in_prompt: int, in_answer: int) -> None:
    path = recipe(
        tmp_path,
        kind="preference",
        sources={"s": {"path": "s.jsonl"}},
        encode={"max_length": 512, "thinking": thinking},
        **PLAIN,
    )
    rows = [
        {
            "prompt": [*TALK[:2], {"role": "user", "content": f"second {n}"}],
            "chosen": [{"role": "assistant", "content": "<think>in the answer</think>yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
        for n in range(3)
    ]
    write_jsonl(tmp_path / "s.jsonl", rows)
    run(path)
    (folder,) = {p.parent for p in (tmp_path / "cache").rglob("records.arrow")}
    table = pa.ipc.open_file(pa.memory_map(str(folder / "records.arrow"))).read_all().to_pylist()
    for row in table:
        assert sum(turn["reasoning"] is not None for turn in row["messages"]) == in_prompt
        assert sum("in the answer" in turn["content"] for turn in row["chosen"]) == in_answer
        assert row["rejected"][0]["content"] == "no"
