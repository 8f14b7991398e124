from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from datamix.clean import Step, clean
from datamix.clean.record_checks import PreferenceChecks, SftChecks, is_cut, is_refusal
from datamix.core.records import SCHEMAS

Turns = list[tuple[str, str | None]]


def batch_of(kind: str, record: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"slice": 0, "record": 0, **record}], schema=SCHEMAS[kind])


def turns(pairs: Turns) -> list[dict[str, Any]]:
    calls = '[{"type":"function","function":{"name":"f","arguments":{}}}]'
    return [
        {"role": "assistant", "content": None, "tool_calls": calls}
        if role == "call"
        else {"role": role, "content": text}
        for role, text in pairs
    ]


def sft_reason(pairs: Turns, options: SftChecks = SftChecks()) -> str | None:  # noqa: B008
    return clean(
        batch_of("sft", {"messages": turns(pairs)}), "sft", [Step("sft_checks", options)]
    ).dropped.get(0)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("user", "你好"), ("assistant", "你好！")], None),
        ([("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")], None),
        ([("user", "天气？"), ("call", None), ("tool", "{}"), ("tool", "{}"), ("assistant", "晴。")], None),
        ([("user", "天气？"), ("call", None)], None),
        ([("user", "a"), ("assistant", "  ")], "empty_answer"),
        ([("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "c")], "empty_answer"),
        ([("user", "什么是糖尿病？"), ("assistant", " 什么是糖尿病？ ")], "answer_equals_question"),
        ([("user", "a"), ("assistant", "抱歉，我无法回答这个问题。")], "refused_answer"),
        ([("user", "a"), ("assistant", "首先要多休息，其次要注意饮食，")], "truncated_ending"),
        ([("user", "a"), ("user", "b"), ("assistant", "c")], "turn_order"),
        ([("user", "a"), ("assistant", "b"), ("assistant", "c")], "turn_order"),
        ([("assistant", "b"), ("user", "a")], "turn_order"),
        ([("user", "a")], "turn_order"),
        ([("user", "a"), ("system", "s"), ("assistant", "b")], "turn_order"),
        ([("user", "a"), ("assistant", "b"), ("tool", "{}"), ("assistant", "c")], "turn_order"),
        ([], "turn_order"),
    ],
)
def test_each_fault_of_a_conversation_has_its_reason(pairs: Turns, expected: str | None) -> None:
    assert sft_reason(pairs) == (expected and f"sft_checks_{expected}")


def test_a_check_that_is_off_lets_its_fault_pass() -> None:
    assert sft_reason([("user", "a"), ("user", "b"), ("assistant", "c")], SftChecks(turn_order=False)) is None
    assert sft_reason([("user", "a"), ("assistant", "")], SftChecks(empty_answer=False)) is None


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, but as an AI, I don’t have the capability to order food.",
        "As an AI language model, I cannot provide medical advice.",
        "I cannot fulfill your request.",
        "很抱歉，我无法帮助您预订机票。",
        "作为一个人工智能语言模型，我没有个人观点。",
        "对不起，我不能提供这类信息，请换一个问题。",
        "我无法提供您要的内容。",
    ],
)
def test_refusals_are_told(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry to hear that you are unwell. Rest and drink plenty of water.",
        "As an AI, I cannot paint. However, here is how you could mix the colours yourself.",
        "I can't believe it is already June!",
        "抱歉让您久等了，您的订单已经发出。",
        "作为一个人工智能，我没有身体，但我可以帮您制定锻炼计划。",
        "我不能吃辣，所以点了番茄锅。",
        "The article refuses to say why.",
        "",
    ],
)
def test_answers_that_help_are_no_refusals(answer: str) -> None:
    assert not is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "First, wash the wound with clean water,",
        "有三点：一是休息，二是多喝水，",
        "步骤如下，请按顺序进行，首先：",
        "```python\nprint(1)",
        "There are several reasons. One of them is that the price of oil had been rising for many years before the",
    ],
)
def test_cut_answers_are_told(answer: str) -> None:
    assert is_cut(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Paris",
        "42",
        "Ingredients:",
        "First, wash the wound with clean water, then cover it with",  # too short to be sure
        "A. 是",
        "多休息，祝早日康复",
        "```python\nprint(1)\n```",
        "| a | b |",
        "- eggs\n- flour,",
        'A good design is one that makes you think: of course. Anybody could have done it, and nobody did." - Paul Rand',
        "Adopt a puppy today. You will never regret it, and neither will your shoes, which you will not miss anyway #PuppyLove",
        "See https://example.com/a/long/path/to/something/that/goes/on/and/on/and/on/and/on/and/on/index",
        "",
    ],
)
def test_whole_answers_are_not_called_cut(answer: str) -> None:
    assert not is_cut(answer)


def preference_reason(chosen: Turns, rejected: Turns | None, options: PreferenceChecks) -> str | None:
    record = {"messages": turns([("user", "q")]), "chosen": turns(chosen)}
    record.update({"rejected": turns(rejected)} if rejected is not None else {"label": True})
    return clean(
        batch_of("preference", record), "preference", [Step("preference_checks", options)]
    ).dropped.get(0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([("assistant", "好")], [("assistant", "不好")], None),
        ([("assistant", "好")], [("assistant", " 好\n")], "equal_answers"),
        ([("call", None)], [("call", None)], "equal_answers"),
        ([("call", None)], [("assistant", "f")], None),
        ([("assistant", "a")], [("assistant", " ")], "empty_answer"),
        ([("assistant", "")], [("assistant", "")], "empty_answer"),
        ([("assistant", "a")], None, None),
        ([("assistant", "")], None, "empty_answer"),
    ],
)
def test_pairs_that_say_nothing_are_dropped(
    chosen: Turns, rejected: Turns | None, expected: str | None
) -> None:
    got = preference_reason(chosen, rejected, PreferenceChecks())
    assert got == (expected and f"preference_checks_{expected}")


def test_preference_checks_can_be_switched_off() -> None:
    options = PreferenceChecks(equal_answers=False)
    assert preference_reason([("assistant", "a")], [("assistant", "a")], options) is None


def test_checks_of_one_kind_pass_records_of_another() -> None:
    batch = batch_of("text", {"text": ""})
    steps = [Step("sft_checks", SftChecks()), Step("preference_checks", PreferenceChecks())]
    assert clean(batch, "text", steps).dropped == {}


def test_a_turn_without_any_text_does_not_shift_its_neighbours() -> None:
    rows = [
        {
            "slice": 0,
            "record": 0,
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}],
        },
        {"slice": 0, "record": 1, "messages": turns([("user", "long enough"), ("assistant", "fine")])},
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMAS["sft"])
    assert clean(batch, "sft", [Step("sft_checks", SftChecks())]).dropped == {0: "sft_checks_empty_answer"}
