"""Pairs: an explicit prompt beside whole conversations, completions that end with an answer, OpenAI's own form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from datamix.core.contracts import Rows
from datamix.core.records import RecordKind
from datamix.formats import ShapeSpec, detect, shape
from datamix.formats.write_rows import unshape

Message = dict[str, Any]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def answer(content: str | None, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


SYSTEM = {"role": "system", "content": "be kind"}


def read(*rows: Message) -> Any:
    found = detect(list(rows))
    assert found is not None
    numbered = Rows(list(rows), list(range(len(rows))), [None] * len(rows), [b""] * len(rows))
    return shape(numbered, 0, ShapeSpec(found.format, "preference", found.columns))


def said(turns: list[Message]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in turns]


@pytest.mark.parametrize(
    ("prompt", "head"),
    [
        (
            [SYSTEM, user("q0"), answer("a0"), user("q")],
            ["be kind", "q0", "a0", "q"],
        ),  # the conversations have q alone
        ([user("q")], ["q"]),
        ("q", ["q"]),
        (" q\n", ["q"]),
    ],
)
def test_an_explicit_prompt_belongs_to_the_record(prompt: Any, head: list[str]) -> None:
    sides = {side: [user("q"), answer(side)] for side in ("chosen", "rejected")}
    (record,) = read({"prompt": prompt, **sides}).batch.to_pylist()
    assert [turn["content"] for turn in record["messages"]][:-1] == head[:-1]
    assert record["messages"][-1]["content"].strip() == head[-1]
    assert said(record["chosen"]) == [("assistant", "chosen")]
    assert said(record["rejected"]) == [("assistant", "rejected")]


def test_a_system_turn_of_the_conversations_stands_before_the_prompt() -> None:
    sides = {side: [SYSTEM, user("q"), answer(side)] for side in ("chosen", "rejected")}
    (record,) = read({"prompt": "q", **sides}).batch.to_pylist()
    assert said(record["messages"]) == [("system", "be kind"), ("user", "q")]


@pytest.mark.parametrize("prompt", ["something else", [user("other"), answer("x"), user("one more")]])
def test_conversations_that_do_not_begin_with_the_prompt_are_rejected(prompt: Any) -> None:
    sides = {side: [user("q"), answer(side)] for side in ("chosen", "rejected")}
    assert [reject.reason for reject in read({"prompt": prompt, **sides}).rejects] == ["different_prompts"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": [answer("a"), user("thanks")], "rejected": [answer("b")]},
        {"prompt": "q", "chosen": [answer("a")], "rejected": [answer("b"), user("thanks")]},
        {"chosen": [user("q"), answer("a"), user("z")], "rejected": [user("q"), answer("b"), user("z")]},
        {"prompt": [user("q")], "completion": [answer("a"), user("thanks")], "label": True},
    ],
)
def test_a_completion_ends_with_an_answer(row: Message) -> None:
    assert [reject.reason for reject in read(row).rejects] == ["no_answer"]


def test_openai_pairs_have_arguments_as_text_and_an_id_for_every_call() -> None:
    call = {"type": "function", "function": {"name": "get", "arguments": {"sym": "甲"}}}
    asked = [user("price?"), answer(None, tool_calls=[call, call]), {"role": "tool", "content": "7"}]
    asked.append({"role": "tool", "content": "8"})
    row = {"prompt": asked, "chosen": [answer(None, tool_calls=[call])], "rejected": [answer("no")]}
    batch = read(row).batch
    ((written,), lost) = unshape(batch, "preference", "openai_preference")
    calls = written["input"]["messages"][1]["tool_calls"]
    assert [c["function"]["arguments"] for c in calls] == ['{"sym": "甲"}'] * 2
    ids = [c["id"] for c in calls]
    assert [m["tool_call_id"] for m in written["input"]["messages"][2:]] == ids
    assert len({*ids, written["preferred_output"][0]["tool_calls"][0]["id"]}) == 3
    assert lost == []
    (again,) = read(written).batch.to_pylist()
    assert json.loads(again["chosen"][0]["tool_calls"])[0]["function"] == call["function"]


@pytest.mark.parametrize(
    "media", [{"images": ["a.jpg"]}, {"image": "000.jpg"}, {"videos": ["b.mp4"]}, {"audios": "c.wav"}]
)
@pytest.mark.parametrize("kind", ["sft", "preference", "prompt"])
def test_media_beside_the_text_is_rejected_or_carried_in_meta(media: Message, kind: RecordKind) -> None:
    row: Message = {"prompt": "<image>what?", "chosen": "a", "rejected": "b", **media}
    if kind == "sft":
        row = {"messages": [user("<image>what?"), answer("a cat")], **media}
    elif kind == "prompt":
        row = {"prompt": "<image>what?", **media}
    found = detect([row])
    assert found is not None
    rows = Rows([row, row | dict.fromkeys(media)], [0, 1], [None, None], [b"", b""])
    refused = shape(rows, 0, ShapeSpec(found.format, kind, found.columns))
    assert [(reject.record, reject.reason) for reject in refused.rejects] == [(0, "media")]
    assert refused.batch.num_rows == 1
    kept = shape(rows, 0, ShapeSpec(found.format, kind, found.columns, media="keep"))
    assert [meta and json.loads(meta) for meta in kept.batch.column("meta").to_pylist()] == [media, None]


@pytest.mark.parametrize("format", ["messages", "prompt_completion"])
def test_weights_of_turns_come_back(format: str) -> None:
    talk = [
        user("a"),
        answer("b", weight=0.5),
        user("c"),
        answer("d", weight=0),
        user("e"),
        answer("f", weight=2),
    ]
    rows = Rows([{"messages": talk}], [0], [None], [b""])
    batch = shape(rows, 0, ShapeSpec("messages", "sft")).batch
    assert [turn["train"] for turn in batch.column("messages").to_pylist()[0]] == [
        None,
        0.5,
        None,
        0.0,
        None,
        2.0,
    ]
    written, lost = unshape(batch, "sft", format)
    assert lost == []
    again = shape(Rows(written, [0], [None], [b""]), 0, ShapeSpec(format, "sft")).batch
    assert again.column("messages").equals(batch.column("messages"))
    assert "weights of the loss of turns: 1 record" in unshape(batch, "sft", "sharegpt")[1]
