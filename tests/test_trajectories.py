"""Agents' trajectories from recipe to rows: calls, results and answers are trained by part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import TOKENIZER, write_jsonl
from tokenizers import Tokenizer

from datamix.audit import verify
from datamix.core.arrays import IGNORE_INDEX
from datamix.core.errors import RecipeError
from datamix.jobs.build import build
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}<tool_call>"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}<|im_end|>\n'
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trajectory(number: int) -> dict[str, Any]:
    call = {
        "id": f"c{number}",
        "type": "function",
        "function": {"name": "price", "arguments": {"代码": f"A{number}"}},
    }
    return {
        "messages": [
            {"role": "user", "content": f"How much is A{number}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": f"{number} 元"},
            {"role": "assistant", "content": f"It is {number}."},
        ]
    }  # fmt: skip


def recipe(folder: Path, **encode: Any) -> dict[str, Any]:
    write_jsonl(folder / "calls.jsonl", [trajectory(number) for number in range(30)])
    (folder / "calls.jinja").write_text(TEMPLATE, encoding="utf-8")
    return {
        "name": "calls",
        "kind": "sft",
        "tokenizer": str(TOKENIZER),
        "chat_template": "calls.jinja",
        "sources": {"all": {"path": "calls.jsonl"}},
        "encode": {"max_length": 512, **encode},
    }


@pytest.mark.parametrize(
    ("encode", "call"),
    [
        ({}, '<tool_call>{"name": "price", "arguments": {"代码": "A7"}}</tool_call><|im_end|>'),
        ({"loss_on": "final_answer"}, ""),
        (
            {"mask": ["tool_args"]},
            '<tool_call>{"name": "price", "arguments": {}}</tool_call><|im_end|>',
        ),
        (
            {"mask": ["tool_args", "tool_names"]},
            '<tool_call>{"name": "", "arguments": {}}</tool_call><|im_end|>',
        ),
    ],
)
def test_trajectories_are_trained_by_part(encode: dict[str, Any], call: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(Recipe.of(recipe(tmp_path, **encode), tmp_path), Options(out, tmp_path / "cache", workers=1))
    assert [check.name for check in verify(out) if not check.ok] == []
    assert [check.name for check in verify(out, inputs=1.0) if not check.ok] == []
    tokenizer = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json"))
    texts = {
        tokenizer.decode(
            [label for label in row["labels"] if label != IGNORE_INDEX], skip_special_tokens=False
        )
        for row in pq.read_table(out / "train").to_pylist()
    }
    assert f"{call}It is 7.<|im_end|>" in texts
    assert len(texts) == 30


def test_a_mask_of_calls_is_refused_where_there_are_no_labels(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="mask"):
        Recipe.of({**recipe(tmp_path, mask=["tool_args"]), "kind": "pretrain"}, tmp_path)


def test_verify_knows_turns_that_are_not_trained_where_everything_else_is(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "no", "weight": 0},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "yes"},
    ]
    write_jsonl(tmp_path / "talk.jsonl", [{"messages": talk}] * 3)
    value = recipe(tmp_path, loss_on="all") | {"sources": {"all": {"path": "talk.jsonl"}}}
    out = tmp_path / "out"
    build(Recipe.of(value, tmp_path), Options(out, tmp_path / "cache", workers=1))
    assert [check.detail for check in verify(out) if not check.ok] == []
    rows = pq.read_table(out / "train")
    labels = rows["labels"].to_pylist()
    masked = [[IGNORE_INDEX if n in (0, 5) else label for n, label in enumerate(row)] for row in labels]
    place = rows.schema.get_field_index("labels")
    shard = next((out / "train").glob("*.parquet"))
    pq.write_table(
        rows.set_column(place, rows.schema.field(place), pa.array(masked, rows.schema.field(place).type)),
        shard,
    )
    assert any("masks more than first tokens" in check.detail for check in verify(out) if not check.ok)


BARE = (  # like DeepSeek V3, which writes the header of calls once a conversation
    "{% set ns = namespace(called=false) %}{% for m in messages %}{% if m.tool_calls %}{% if not ns.called %}<|im_start|>assistant\n"
    "{% set ns.called = true %}{% endif %}{% for c in m.tool_calls %}<|endoftext|>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_verify_knows_calls_that_a_template_writes_without_a_header(tmp_path: Path) -> None:
    value = recipe(tmp_path)
    rounds = [trajectory(n)["messages"] + trajectory(n + 1)["messages"] for n in range(12)]
    write_jsonl(tmp_path / "calls.jsonl", [{"messages": messages} for messages in rounds])
    (tmp_path / "calls.jinja").write_text(BARE, encoding="utf-8")
    out = tmp_path / "out"
    build(Recipe.of(value, tmp_path), Options(out, tmp_path / "cache", workers=1))
    assert [check.detail for check in verify(out) if not check.ok] == []
