"""Trajectories trained by part: final answers alone, calls without their arguments or names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import encode_batches as make
import pytest

TALK = [
    make.user("a"),
    make.assistant("let me see", tool_calls=[make.call("find", {"q": "北京\n", "n": 3, "deep": {"x": ["y"]}})]),
    make.tool("c", tool_call_id="abcdefghi", name="find"),
    make.assistant(None, tool_calls=[make.call("find", {}), make.call("now", {"q": "find"}, "bbcdefghi")]),
    make.tool("c", tool_call_id="abcdefghi", name="find"),
    make.tool("d", tool_call_id="bbcdefghi", name="now"),
    make.assistant("done"),
    make.user("thanks"),
]  # fmt: skip


def trained(folder: Path, talk: list[Any], **options: Any) -> list[str]:
    encoder = make.encoder(folder, **options)
    return make.trained_text(encoder, encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0])


def test_the_final_answer_is_the_last_turn_without_calls(tokenizers: dict[str, Path]) -> None:
    qwen = tokenizers["qwen2.5"]
    assert trained(qwen, TALK, loss_on="final_answer") == ["done<|im_end|>"]
    assert trained(qwen, TALK[:4], loss_on="final_answer") == []
    assert trained(qwen, TALK[:4], loss_on="last_assistant") != []


def test_arguments_of_calls_are_masked_whatever_their_values(tokenizers: dict[str, Path]) -> None:
    assert trained(tokenizers["qwen2.5"], TALK, mask=("tool_args",)) == [
        'let me see\n<tool_call>\n{"name": "find", "arguments": {',
        "}}\n</tool_call><|im_end|>",
        '<tool_call>\n{"name": "find", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "now", "arguments": {',
        "}}\n</tool_call><|im_end|>",
        "done<|im_end|>",
    ]


def test_names_of_calls_are_masked(tokenizers: dict[str, Path]) -> None:
    assert trained(tokenizers["qwen2.5"], TALK[:2], mask=("tool_names", "tool_args")) == [
        'let me see\n<tool_call>\n{"name": "',
        '", "arguments": {',
        "}}\n</tool_call><|im_end|>",
    ]


@pytest.mark.parametrize(
    "name", ["qwen2.5", "qwen3", "llama3.1", "mistral-v3", "mistral-tekken", "deepseek-v3"]
)
def test_masked_and_unmasked_text_together_are_what_is_trained_without_a_mask(
    name: str, tokenizers: dict[str, Path]
) -> None:
    talk = [TALK[0], make.assistant(None, tool_calls=[make.call("find", {"q": "北京", "n": 3})])]
    (whole,) = trained(tokenizers[name], talk)
    first, *_, last = trained(tokenizers[name], talk, mask=("tool_args",))
    assert whole.startswith(first)
    assert whole.endswith(last)
    hidden = whole[len(first) : len(whole) - len(last)]
    assert "北京" in hidden
    assert "3" in hidden
    assert "find" in first


def test_a_text_that_the_template_acts_on_is_masked_too(tokenizers: dict[str, Path]) -> None:
    """Where a record is rendered by its real texts, the arguments are found there."""
    talk = [
        make.user("a"),
        make.assistant("The </think> tag", tool_calls=[make.call("find", {"q": "b"})]),
    ]
    encoder = make.encoder(tokenizers["qwen3"], mask=("tool_args",))
    row = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    assert row["reason"] is not None or all('"b"' not in text for text in make.trained_text(encoder, row))
