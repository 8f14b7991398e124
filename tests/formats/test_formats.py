"""Each foreign format as a row table: row in, record out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from datamix.core.contracts import Rows, Shaped
from datamix.core.errors import RecipeError
from datamix.core.records import SCHEMAS, RecordKind
from datamix.formats import RECORD_FORMATS, ShapeSpec, can_become, detect, native_kinds, shape


def shaped(values: list[Any], spec: ShapeSpec) -> Shaped:
    num = len(values)
    rows = Rows(values, list(range(num)), [i + 1 for i in range(num)], [b"raw %d" % i for i in range(num)])
    result = shape(rows, 3, spec)
    assert result.batch.schema == SCHEMAS[spec.kind]
    result.batch.validate(full=True)
    return result


def turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fields that are set, so that tables stay readable."""
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


def only(values: Any, format: str, kind: RecordKind | None = None, **more: Any) -> list[dict[str, Any]]:
    spec = ShapeSpec(format, kind or native_kinds(format)[0], **more)
    result = shaped(values if isinstance(values, list) else [values], spec)
    assert not result.rejects, result.rejects
    return [
        {k: turns(v) if isinstance(v, list) else v for k, v in row.items() if v is not None}
        for row in result.batch.to_pylist()
    ]


def reason(value: Any, format: str, kind: RecordKind | None = None, **more: Any) -> tuple[str, str]:
    result = shaped([value], ShapeSpec(format, kind or native_kinds(format)[0], **more))
    assert result.batch.num_rows == 0
    (reject,) = result.rejects
    assert (reject.record, reject.line, reject.raw) == (0, 1, b"raw 0")
    return reject.reason, reject.detail


def q(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def a(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def s(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


# one row of each format, the record it gives
SFT_ROWS: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("alpaca", {"instruction": "翻译", "input": "你好", "output": "Hello"}, [q("翻译\n你好"), a("Hello")]),
    ("alpaca", {"instruction": "", "input": "你好", "output": ""}, [q("你好"), a("")]),
    (
        "alpaca",
        {"instruction": "c", "input": "", "output": "d", "system": "你是医生", "history": [["a", "b"]]},
        [s("你是医生"), q("a"), a("b"), q("c"), a("d")],
    ),
    (
        "alpaca",
        {"instruction": "1+1?", "output": "2", "reasoning": "one and one", "system_prompt": "be short"},
        [s("be short"), q("1+1?"), {**a("2"), "reasoning": "one and one"}],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "bing", "value": "b"}]},
        [q("a"), a("b")],
    ),
    (
        "sharegpt",
        {"conversations": [q("a"), a("b"), q("c")], "system": "s"},
        [s("s"), q("a"), a("b"), q("c")],
    ),
    (
        "sharegpt",
        {"conversations": '[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]'},
        [q("a"), a("b")],
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "developer", "content": "d"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c", "reasoning_content": "r"},
            ]
        },
        [s("d"), q("ab"), {**a("c"), "reasoning": "r"}],
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": "a"}], "loss_weight": 0.0},
                {
                    "role": "assistant",
                    "content": [{"type": "reasoning", "value": "r"}, {"type": "text", "value": "b"}],
                    "loss_weight": 0.0,
                },
                {"role": "user", "content": "c"},
                {"role": "assistant", "content": "d", "loss": True},
            ]
        },
        [q("a"), {**a("b"), "reasoning": "r", "train": False}, q("c"), a("d")],
    ),
    ("prompt_completion", {"prompt": "a", "completion": "b"}, [q("a"), a("b")]),
    ("prompt_completion", {"prompt": [s("s"), q("a")], "completion": [a("b")]}, [s("s"), q("a"), a("b")]),
    ("prompt_completion", {"prompt": "a", "response": "b"}, [q("a"), a("b")]),
    ("question_answer", {"question": "头痛？", "answer": "休息"}, [q("头痛？"), a("休息")]),
    (
        "question_answer",
        {"department": "心血管科", "title": "t", "ask": "能吃党参吗？", "answer": "可以"},
        [q("能吃党参吗？"), a("可以")],
    ),
    ("magpie", {"uuid": "1", "instruction": "a", "response": "b"}, [q("a"), a("b")]),
    (
        "self_instruct",
        {"id": "seed_0", "instruction": "i", "instances": [{"input": "x", "output": "y"}]},
        [q("i\nx"), a("y")],
    ),
]


@pytest.mark.parametrize(("format", "row", "messages"), SFT_ROWS)
def test_rows_of_conversations_become_messages(
    format: str, row: dict[str, Any], messages: list[dict[str, Any]]
) -> None:
    assert only(row, format) == [{"slice": 3, "record": 0, "messages": messages}]
    found = detect([row] * 5)
    assert found is not None
    assert (found.format, found.kind) == (format, "sft")


PAIR_ROWS: list[tuple[str, dict[str, Any]]] = [
    ("preference", {"prompt": "q", "chosen": "good", "rejected": "bad"}),
    ("preference", {"prompt": [q("q")], "chosen": [a("good")], "rejected": [a("bad")]}),
    ("preference", {"chosen": [q("q"), a("good")], "rejected": [q("q"), a("bad")]}),
    ("preference", {"prompt": "q", "chosen": [q("q"), a("good")], "rejected": [q("q"), a("bad")]}),
    ("preference", {"question": "q", "chosen": "good", "rejected": "bad"}),
    (
        "ranking",
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ),
    ("medicalgpt", {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}),
    ("medicalgpt", {"conversations": [{"from": "human", "value": "q"}], "chosen": "good", "rejected": "bad"}),
    (
        "medicalgpt_old",
        {"system": "", "history": [], "question": "q", "response_chosen": "good", "response_rejected": "bad"},
    ),
    ("caregpt", {"instruction": "q", "input": "", "output": ["good", "bad"]}),
    ("hh_rlhf", {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}),
    (
        "paired_messages",
        {
            "chosen_messages": [
                {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": "good"}], "loss_weight": 1.0},
            ],
            "rejected_messages": [
                {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": "bad"}], "loss_weight": 1.0},
            ],
        },
    ),
    ("rejected_response", {"messages": [q("q"), a("good")], "rejected_response": "bad"}),
    ("rejected_response", {"messages": [q("q"), a("good")], "rejected_messages": [q("q"), a("bad")]}),
    (
        "openai_preference",
        {
            "input": {"messages": [q("q")], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [a("good")],
            "non_preferred_output": [a("bad")],
        },
    ),
    (
        "openai_preference",
        {
            "input": '{"messages": [{"role": "user", "content": "q"}]}',
            "preferred_output": "good",
            "non_preferred_output": "bad",
        },
    ),
]


@pytest.mark.parametrize(("format", "row"), PAIR_ROWS)
def test_rows_of_pairs_become_a_prompt_and_two_answers(format: str, row: dict[str, Any]) -> None:
    pair = {"messages": [q("q")], "chosen": [a("good")], "rejected": [a("bad")]}
    assert only(row, format) == [{"slice": 3, "record": 0, **pair}]
    found = detect([row] * 5)
    assert found is not None
    assert (found.format, found.kind) == (format, "preference")


@pytest.mark.parametrize(("format", "row"), PAIR_ROWS)
def test_a_pair_in_an_sft_recipe_is_its_prompt_and_better_answer(format: str, row: dict[str, Any]) -> None:
    (record,) = only(row, format, "sft")
    assert record["messages"] == [q("q"), a("good")]
    (record,) = only(row, format, "prompt")
    assert record["messages"] == [q("q")]


def test_margins_come_from_the_margin_or_from_two_scores() -> None:
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert only({**pair, "margin": "0.5"}, "preference")[0]["margin"] == 0.5
    assert only({**pair, "score_chosen": 8.5, "score_rejected": 6}, "preference")[0]["margin"] == 2.5
    assert reason({**pair, "margin": float("nan")}, "preference")[0] == "score"


def scored(*scores: float) -> dict[str, Any]:
    completions = [{"response": f"r{i}", "overall_score": score} for i, score in enumerate(scores)]
    return {"source": "x", "instruction": "q", "models": [], "completions": completions}


def test_scored_answers_give_the_best_against_each_worse_one() -> None:
    records = only(scored(3, 9, 9, 1), "ultrafeedback")
    assert [(r["record"], r["chosen"], r["rejected"], r["margin"]) for r in records] == [
        (0, [a("r1")], [a("r0")], 6.0),
        (0, [a("r1")], [a("r3")], 8.0),
    ]
    assert detect([scored(1, 2)]).format == "ultrafeedback"  # type: ignore[union-attr]


def test_scored_answers_give_every_two_of_unequal_score() -> None:
    records = only(scored(3, 9, 1), "ultrafeedback_pairs")
    assert [r["margin"] for r in records] == [6.0, 8.0, 2.0]
    assert reason(scored(4, 4), "ultrafeedback") == (
        "no_preference",
        "completions has no two answers with different scores",
    )


def test_scored_answers_in_an_sft_recipe_give_the_best_one_once() -> None:
    assert [r["messages"] for r in only(scored(3, 9, 1), "ultrafeedback", "sft")] == [[q("q"), a("r1")]]


def test_magpie_answers_with_rewards_are_pairs_and_without_them_conversations() -> None:
    row = {"uuid": "u", "instruction": "q", "responses": ["x", "y"], "gen_input_configs": {}}
    assert [r["messages"][1] for r in only(row, "magpie")] == [a("x"), a("y")]
    row["rewards_armorm"] = [{"score": 0.1}, {"score": 0.3}]
    (record,) = only(row, "magpie_scored")
    assert (record["chosen"], record["rejected"]) == ([a("y")], [a("x")])
    assert detect([row]).format == "magpie_scored"  # type: ignore[union-attr]


KTO_ROWS = [
    {"messages": [q("q"), a("good")], "label": True},
    {"conversations": [q("q"), a("good")], "kto_tag": True},
    {"prompt": "q", "completion": "good", "label": True},
    {"prompt": [q("q")], "completion": [a("good")], "label": True},
    {"completion": [q("q"), a("good")], "label": True},
    {"instruction": "q", "input": "", "output": "good", "kto_tag": "true"},
]


@pytest.mark.parametrize("row", KTO_ROWS)
def test_labelled_answers_become_unpaired_preferences(row: dict[str, Any]) -> None:
    found = detect([row])
    assert found is not None
    assert found.format == "kto"
    assert only(row, "kto") == [
        {"slice": 3, "record": 0, "messages": [q("q")], "chosen": [a("good")], "label": True}
    ]


def test_a_labelled_bad_answer_is_no_sft_record() -> None:
    row = {"messages": [q("q"), a("bad")], "label": False}
    assert only(row, "kto")[0]["label"] is False
    assert reason(row, "kto", "sft")[0] == "undesired"
    assert only(row, "kto", "prompt")[0]["messages"] == [q("q")]


PROMPT_ROWS: list[tuple[dict[str, Any], str | None]] = [
    ({"prompt": "q"}, None),
    ({"instruction": "q"}, None),
    ({"prompt": [q("q")], "ground_truth": "x"}, "x"),
    ({"problem": "q", "solution": "x"}, "x"),
    ({"problem": "q", "answer": 42}, "42"),
    ({"prompt": "q", "answer": {"value": 1}}, '{"value":1}'),
    ({"messages": [q("q")], "ground_truth": "x", "dataset": "gsm8k"}, "x"),
    ({"data_source": "d", "prompt": [q("q")], "reward_model": {"style": "rule", "ground_truth": "x"}}, "x"),
]


@pytest.mark.parametrize(("row", "reference"), PROMPT_ROWS)
def test_prompts_keep_their_reference(row: dict[str, Any], reference: str | None) -> None:
    (record,) = only(row, "prompt")
    assert record["messages"] == [q("q")]
    assert record.get("reference") == reference
    assert detect([row] * 3).format == "prompt"  # type: ignore[union-attr]


def test_an_answer_is_the_reference_in_a_prompt_recipe_and_the_answer_in_an_sft_recipe() -> None:
    row = {"question": "q", "answer": "x"}
    assert only(row, "question_answer", "prompt")[0]["reference"] == "x"
    assert only(row, "question_answer", "sft")[0]["messages"] == [q("q"), a("x")]


def test_a_conversation_as_a_prompt_loses_its_last_answer_only() -> None:
    (record,) = only({"messages": [s("s"), q("a"), a("b"), q("c"), a("d")]}, "messages", "prompt")
    assert record["messages"] == [s("s"), q("a"), a("b"), q("c")]


def test_text_is_text() -> None:
    assert only({"text": "全文", "id": 7}, "text") == [{"slice": 3, "record": 0, "text": "全文"}]
    assert only(["bare", {"text": ""}], "text")[0]["text"] == "bare"
    assert detect(["a", "b"]).format == "text"  # type: ignore[union-attr]


def test_tools_and_calls_have_one_spelling() -> None:
    tool = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    called = '[{"type":"function","function":{"name":"f","arguments":{"x":1}}}]'
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "o"},
            {"from": "gpt", "value": "e"},
        ],
        "tools": json.dumps([tool]),
    }
    openai = {
        "messages": [
            q("q"),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
            },
            {"role": "tool", "content": "o"},
            a("e"),
        ],
        "tools": [{"type": "function", "function": tool}],
    }
    (one,), (two,) = only(sharegpt, "sharegpt"), only(openai, "messages")
    assert one == two
    assert one["messages"][1] == {"role": "assistant", "tool_calls": called}
    assert (
        one["tools"] == '[{"type":"function","function":{"name":"f","description":"d",'
        '"parameters":{"type":"object","properties":{}}}}]'
    )


def called(call: Any, **more: Any) -> dict[str, Any]:
    """A conversation with one call, as a row of messages."""
    return {"messages": [q("q"), {"role": "assistant", "content": "", "tool_calls": [call]}, *more.values()]}


ARGUMENTS = [
    {"x": 1},
    '{"x": 1}',
    ' {"x":1}\n',
    '"{\\"x\\": 1}"',
    json.dumps(json.dumps(json.dumps({"x": 1}))),
]


@pytest.mark.parametrize("name", ["arguments", "parameters", "args", "input", "params"])
@pytest.mark.parametrize("value", ARGUMENTS)
def test_arguments_are_read_under_every_name_and_however_often_they_are_encoded(
    name: str, value: Any
) -> None:
    for call in (
        {"id": "c", "type": "function", "function": {"name": "f", name: value}},
        {"id": "c", "type": "function", "function": {"name": "f"}, name: value},
        {"id": "c", "name": "f", name: value},
        {"call_id": "c", "type": "function_call", "name": "f", name: value},
    ):
        for given in (call, json.dumps(call)):
            (record,) = only(called(given), "messages")
            assert json.loads(record["messages"][1]["tool_calls"]) == [
                {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
            ]
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": {"name": "f", name: value}}]
    (record,) = only({"conversations": turns}, "sharegpt")
    assert json.loads(record["messages"][1]["tool_calls"])[0]["function"]["arguments"] == {"x": 1}


@pytest.mark.parametrize("value", ["", " ", None, "null", '"null"', {}, "{}", [], "[]", '""'])
def test_empty_arguments_are_none(value: Any) -> None:
    (record,) = only(called({"function": {"name": "f", "arguments": value}}), "messages")
    assert json.loads(record["messages"][1]["tool_calls"])[0]["function"]["arguments"] == {}
    assert only(called({"name": "f"}), "messages")[0]["messages"][1] == record["messages"][1]


def test_a_map_column_of_arrow_is_arguments() -> None:
    (record,) = only(called({"name": "f", "arguments": [("x", "1"), ("y", "2")]}), "messages")
    assert json.loads(record["messages"][1]["tool_calls"])[0]["function"]["arguments"] == {"x": "1", "y": "2"}


@pytest.mark.parametrize(
    ("call", "detail"),
    [
        ({"name": "f", "arguments": "not json"}, ".arguments does not parse as JSON: 'not json'"),
        ({"name": "f", "arguments": "{broken"}, ".arguments does not parse as JSON: '{broken'"),
        ({"name": "f", "arguments": [1]}, ".arguments is a list, not an object"),
        ({"name": "f", "arguments": '"text"'}, ".arguments does not parse as JSON: 'text'"),
        ({"name": "f", "arguments": "3"}, ".arguments is a number, not an object"),
        ({"name": "f", "parameters": False}, ".parameters is true or false, not an object"),
        ({"name": "f", "args": {"x": 1}, "input": {"x": 2}}, " has different args and input"),
        ({"name": "f", "sym": "ABC"}, " has no arguments, and sym cannot be read as such"),
        (
            {"function": {"name": "f", "payload": {"x": 1}}},
            " has no arguments, and payload cannot be read as such",
        ),
        ({"arguments": {}}, " has no function name"),
    ],
)
def test_a_call_whose_arguments_cannot_be_read_is_a_reject(call: Any, detail: str) -> None:
    assert reason(called(call), "messages") == ("tool_call", f"messages[1].tool_calls[0]{detail}")


def test_ids_of_calls_and_of_tool_answers_stay() -> None:
    for key in ("id", "call_id", "tool_call_id"):
        row = called(
            {key: 7, "name": "f"}, tool={"role": "tool", "tool_call_id": "7", "name": "f", "content": "o"}
        )
        (record,) = only(row, "messages")
        assert json.loads(record["messages"][1]["tool_calls"])[0]["id"] == "7"
        assert record["messages"][2] == {"role": "tool", "tool_call_id": "7", "name": "f", "content": "o"}


CALL_F, CALL_G = {"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}
BOTH = [{"type": "function", "function": call} for call in (CALL_F, CALL_G)]


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "tool_call", "content": json.dumps(call)} for call in (CALL_F, CALL_G)],
        [{"role": "function_call", "content": call} for call in (CALL_F, CALL_G)],
        [{"role": "tool_call", "content": json.dumps([CALL_F, CALL_G])}],
        [{"role": "tool_call", "content": f"{json.dumps(CALL_F)}\n{json.dumps(CALL_G)}"}],
        [
            {"role": "assistant", "content": None, "tool_calls": [CALL_F]},
            {"role": "tool_call", "content": CALL_G},
        ],
    ],
)
def test_consecutive_calls_are_one_assistant_turn(turns: list[Any]) -> None:
    (record,) = only(
        {"messages": [q("q"), *turns, {"role": "tool_response", "content": "o"}, a("e")]}, "messages"
    )
    assert [turn["role"] for turn in record["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert json.loads(record["messages"][1]["tool_calls"]) == BOTH


def test_a_call_joins_the_text_before_it_but_never_a_turn_with_another_flag() -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "Let me see."},
        {"from": "function_call", "value": json.dumps(CALL_F)},
        {"from": "observation", "value": "o"},
        {"from": "function_call", "value": json.dumps(CALL_G)},
    ]
    (record,) = only({"conversations": turns}, "sharegpt")
    assert [turn["role"] for turn in record["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert record["messages"][1]["content"] == "Let me see."
    turns[1]["loss"] = False  # type: ignore[assignment]
    assert reason({"conversations": turns}, "sharegpt")[0] == "loss_flag"


def test_openai_turns_in_a_row_stay_apart() -> None:
    (record,) = only({"messages": [q("q"), a("x"), a("y")]}, "messages")
    assert [turn["content"] for turn in record["messages"]] == ["q", "x", "y"]


DEFINITION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
WRAPPED = [{"type": "function", "function": DEFINITION}]


@pytest.mark.parametrize(
    "tools",
    [
        WRAPPED,
        [DEFINITION],
        json.dumps(WRAPPED),
        json.dumps([DEFINITION]),
        [json.dumps(DEFINITION)],
        json.dumps(DEFINITION) + "\n",
        {"type": "function", **DEFINITION},
        [{"name": "f", "description": "d", "input_schema": DEFINITION["parameters"]}],
        [{"functionDeclarations": [DEFINITION]}],
    ],
)
@pytest.mark.parametrize("place", ["tools", "functions", "system"])
def test_definitions_of_tools_are_read_wherever_they_are(tools: Any, place: str) -> None:
    system = {"role": "system", "content": "s"}
    row: dict[str, Any] = {"messages": [system, q("q"), a("x")]}
    (system if place == "system" else row)["tools" if place == "system" else place] = tools
    (record,) = only(row, "messages")
    assert json.loads(record["tools"]) == WRAPPED
    assert record["messages"] == [s("s"), q("q"), a("x")]


def test_a_system_turn_may_be_nothing_but_definitions() -> None:
    for content in ("", None):
        system = {"role": "system", "content": content, "tools": WRAPPED}
        (record,) = only({"messages": [system, q("q"), a("x")], "tools": WRAPPED}, "messages")
        assert json.loads(record["tools"]) == WRAPPED
        assert record["messages"][0] == s("")
    other = [{"name": "g", "parameters": {}}]
    row = {"messages": [system, q("q"), a("x")], "tools": other}
    assert reason(row, "messages") == ("tools", "tools of the record and of its system turn differ")
    assert (
        reason({"messages": [q("q"), a("x")], "tools": WRAPPED, "functions": other}, "messages")[0] == "tools"
    )


def test_the_prompt_of_a_pair_has_the_definitions_of_its_system_turn() -> None:
    system = {"role": "system", "content": "s", "tools": WRAPPED}
    for row in (
        {"prompt": [system, q("q")], "chosen": [a("x")], "rejected": [a("y")]},
        {"chosen": [system, q("q"), a("x")], "rejected": [system, q("q"), a("y")]},
    ):
        (record,) = only(row, "preference")
        assert json.loads(record["tools"]) == WRAPPED
        assert record["messages"] == [s("s"), q("q")]


def test_anthropics_blocks_are_turns_calls_and_results() -> None:
    row = {
        "messages": [
            q("q"),
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                    {"type": "tool_use", "id": "t2", "name": "g", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "one"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "content": [{"type": "text", "text": "two"}],
                    },
                    {"type": "text", "text": "and?"},
                ],
            },
            a("e"),
        ],
        "system": "s",
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    }
    (record,) = only(row, "messages")
    _, _, first, one, two, user, last = record["messages"]
    assert (first["content"], first["reasoning"]) == ("Let me see.", "hm")
    assert [c["id"] for c in json.loads(first["tool_calls"])] == ["t1", "t2"]
    assert (one, two) == (
        {"role": "tool", "content": "one", "tool_call_id": "t1"},
        {"role": "tool", "content": "two", "tool_call_id": "t2"},
    )
    assert (user, last) == (q("and?"), a("e"))
    assert json.loads(record["tools"])[0]["function"]["parameters"] == {"type": "object"}


@pytest.mark.parametrize(
    ("prompt", "turns"),
    [
        ([s("s"), q("p"), a("b"), q("q")], [s("s"), q("p"), a("b"), q("q")]),
        ([s("s"), q("q")], [s("s"), q("q")]),
        ([q("q")], [q("q")]),
        ("q", [q("q")]),
        (" q\n", [q(" q\n")]),
        (None, [q("q")]),
    ],
)
def test_an_explicit_prompt_is_the_prompt_of_whole_conversations(prompt: Any, turns: list[Any]) -> None:
    pair = {"prompt": prompt, "chosen": [q("q"), a("x")], "rejected": [q("q"), a("y")]}
    (record,) = only(pair, "preference")
    assert (record["messages"], record["chosen"]) == (turns, [a("x")])
    labelled = {"prompt": prompt, "completion": [q("q"), a("x")], "label": True}
    (record,) = only(labelled, "kto")
    assert (record["messages"], record["chosen"]) == (turns, [a("x")])


def test_a_prompt_field_may_hold_one_question_of_longer_conversations() -> None:
    before = [s("s"), q("p"), a("b"), q("q")]
    for prompt in ("p", "q", [q("p")], [q("p"), a("b"), q("q")]):
        row = {"prompt": prompt, "chosen": [*before, a("x")], "rejected": [*before, a("y")]}
        assert only(row, "preference")[0]["messages"] == before


@pytest.mark.parametrize("prompt", ["something else", [q("p")], [s("t"), q("z")], [q("q"), a("x"), q("r")]])
def test_another_prompt_than_that_of_the_conversations_is_a_reject(prompt: Any) -> None:
    row = {"prompt": prompt, "chosen": [q("q"), a("x")], "rejected": [q("q"), a("y")]}
    assert reason(row, "preference") == (
        "different_prompts",
        "prompt is not the prompt of the conversations beside it",
    )
    assert (
        reason({"prompt": prompt, "completion": [q("q"), a("x")], "label": True}, "kto")[0]
        == "different_prompts"
    )


RANKED = {"instruction": "q", "input": "i", "output": ["best", "good", "bad"]}


@pytest.mark.parametrize(
    ("format", "pairs"),
    [
        ("caregpt", [("best", "good")]),
        ("caregpt_extremes", [("best", "bad")]),
        ("caregpt_pairs", [("best", "good"), ("best", "bad"), ("good", "bad")]),
    ],
)
def test_ranked_answers_are_pairs_by_choice(format: str, pairs: list[tuple[str, str]]) -> None:
    for row in (RANKED, {"prompt": "q\ni", "response": RANKED["output"]}):
        records = only(row, format)
        assert [record["messages"] for record in records] == [[q("q\ni")]] * len(pairs)
        answers = [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in records]
        assert answers == pairs
        assert detect([row] * 3).format == "caregpt"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "better", "margin"),
    [
        (
            {
                "prompt": "q",
                "response_0": "x",
                "response_1": "y",
                "better_response_id": 0,
                "safer_response_id": 1,
            },
            "x",
            None,
        ),
        ({"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": 1}, "y", None),
        ({"context": [q("q")], "response1": "x", "response2": "y", "overall_preference": -2}, "x", 2.0),
        ({"prompt": "q", "response_1": "x", "response_2": "y", "preference_strength": 3}, "y", 3.0),
        ({"prompt": "q", "response_a": "x", "response_b": "y", "winner": "model_b"}, "y", None),
        (
            {
                "prompt": '["q"]',
                "response_a": '["x"]',
                "response_b": '["y"]',
                "winner_model_a": 1,
                "winner_model_b": 0,
            },
            "x",
            None,
        ),
        (
            {"conversation_a": [q("q"), a("x")], "conversation_b": [q("q"), a("y")], "winner": "model_a"},
            "x",
            None,
        ),
        ({"instruction": "q", "output_1": "x", "output_2": "y", "preference": 2.0}, "y", None),
    ],
)
def test_a_verdict_makes_a_pair(row: dict[str, Any], better: str, margin: float | None) -> None:
    assert detect([row] * 3).format == "judged"  # type: ignore[union-attr]
    (record,) = only(row, "judged")
    worse = "y" if better == "x" else "x"
    assert (record["messages"], record["chosen"], record["rejected"]) == ([q("q")], [a(better)], [a(worse)])
    assert record.get("margin") == margin


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response_a": "x", "response_b": "y", "winner": "tie (bothbad)"},
        {
            "prompt": "q",
            "response_a": "x",
            "response_b": "y",
            "winner_model_a": 0,
            "winner_model_b": 0,
            "winner_tie": 1,
        },
        {"context": [q("q")], "response1": "x", "response2": "y", "overall_preference": 0},
        {"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": -1},
    ],
)
def test_a_tie_is_no_pair(row: dict[str, Any]) -> None:
    assert reason(row, "judged")[0] == "no_preference"


FLAGS = ["loss", "loss_weight", "loss_scale", "weight", "train", "training", "trainable"]


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_excludes_a_turn_or_is_a_reject(flag: str) -> None:
    def trained(value: Any) -> Any:
        (record,) = only({"messages": [q("q"), {**a("x"), flag: value}, q("r"), a("y")]}, "messages")
        return record["messages"][1].get("train")

    assert [trained(value) for value in (0, 0.0, False)] == [False] * 3
    assert [trained(value) for value in (1, 1.0, True, None)] == [None] * 4
    assert [trained(value) for value in (0.5, 2)] == [0.5, 2.0]
    for value in (-1, -0.5, float("nan"), "no", [0]):
        row = {"messages": [q("q"), {**a("x"), flag: value}]}
        assert reason(row, "messages")[0] == "loss_flag", value
    parts = [{"type": "text", "text": "a", flag: 0}, {"type": "text", "text": "b", flag: 0}]
    (record,) = only({"messages": [q("q"), {"role": "assistant", "content": parts}]}, "messages")
    assert record["messages"][1] == {"role": "assistant", "content": "ab", "train": False}
    parts[1][flag] = 1
    assert (
        reason({"messages": [q("q"), {"role": "assistant", "content": parts}]}, "messages")[0] == "loss_flag"
    )


def test_a_turn_that_is_excluded_stays_so_whatever_its_parts_weigh() -> None:
    parts = [{"type": "text", "text": "a", "weight": 0.5}]
    (record,) = only(
        {"messages": [q("q"), {"role": "assistant", "content": parts, "loss": False}]}, "messages"
    )
    assert record["messages"][1]["train"] == 0


def test_several_flags_of_one_turn_exclude_it_if_one_does() -> None:
    (record,) = only({"messages": [q("q"), {**a("x"), "weight": 1, "training": False}]}, "messages")
    assert record["messages"][1]["train"] == 0


def test_a_flag_of_another_name_is_mapped_and_flags_of_spans_are_rejects() -> None:
    row = {"messages": [q("q"), {**a("x"), "learn": 0, "weight": 1}]}
    (record,) = only(row, "messages", columns=(("turn.train", "learn"),))
    assert record["messages"][1]["train"] == 0
    spans = [{"begin_offset": 0, "end_offset": 1, "train": False}]
    assert reason({"messages": [q("q"), {**a("x"), "train_detail": spans}]}, "messages")[0] == "loss_flag"


def test_long_integers_in_arguments_keep_their_digits() -> None:
    value = '{"name": "f", "arguments": {"id": 123456789012345678901234567890}}'
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]}
    (record,) = only(row, "sharegpt")
    assert "123456789012345678901234567890" in record["messages"][1]["tool_calls"]


def test_a_column_map_reads_a_field_from_there_and_from_nowhere_else() -> None:
    row = {"问题": "q", "回答": "x", "input": "not the question"}
    columns = (("input", ""), ("instruction", "问题"), ("output", "回答"))
    assert only(row, "alpaca", columns=columns)[0]["messages"] == [q("q"), a("x")]
    firefly = {"kind": "NER", "input": "q", "target": "x"}
    renamed = (("instruction", "input"), ("output", "target"))
    assert only(firefly, "alpaca", columns=renamed)[0]["messages"] == [q("q"), a("x")]
    assert only({"content": "t"}, "text", columns=(("text", "content"),))[0]["text"] == "t"
    found = detect([row], columns)
    assert found is not None
    assert found.format == "alpaca"
    got = reason({"问题": "q"}, "alpaca", columns=(("instruction", "问题"), ("output", "回答")))
    assert got == ("missing_field", "output is missing (read from '回答')")


def test_turns_with_other_names_are_read_through_the_column_map() -> None:
    row = {"talk": [{"who": "USER", "says": "q"}, {"who": "BOT", "says": "x"}]}
    columns = (
        ("conversations", "talk"),
        ("turn.role", "who"),
        ("turn.content", "says"),
        ("turn.user", "USER"),
        ("turn.assistant", "BOT"),
    )
    assert only(row, "sharegpt", columns=columns)[0]["messages"] == [q("q"), a("x")]


def test_fields_under_chinese_names_are_recognised() -> None:
    found = detect([{"问": "q", "答": "x"}])
    assert found is not None
    assert (found.format, found.columns) == ("question_answer", (("question", "问"), ("answer", "答")))
    found = detect([{"科室": "内科", "问题": "q", "回答": "x"}])
    assert found is not None
    assert (found.format, found.columns) == ("question_answer", (("question", "问题"), ("answer", "回答")))
    assert detect([{"conversation": [q("q"), a("x")]}]).columns == (("messages", "conversation"),)  # type: ignore[union-attr]


def test_kept_fields_travel_as_meta_and_others_do_not() -> None:
    row = {"question": "q", "answer": "x", "department": "内科", "id": None, "n": {"a": [1]}}
    (record,) = only(row, "question_answer", keep_meta=("department", "n", "absent"))
    assert record["meta"] == '{"department":"内科","n":{"a":[1]}}'
    (record,) = only({**row, "meta": {"k": 1}}, "question_answer", keep_meta=("*",))
    assert record["meta"] == '{"department":"内科","n":{"a":[1]},"k":1}'
    assert "meta" not in only(row, "question_answer")[0]


def test_the_system_text_of_a_source_heads_only_records_without_one() -> None:
    rows = [
        {"messages": [q("a"), a("b")]},
        {"messages": [s("own"), q("a"), a("b")]},
    ]
    first, second = only(rows, "messages", system="common")
    assert first["messages"][0] == s("common")
    assert second["messages"][0] == s("own")


def test_template_arguments_of_a_record_win_over_those_of_its_source() -> None:
    row = {"messages": [q("a"), a("b")], "chat_template_kwargs": {"enable_thinking": True}}
    (record,) = only(row, "messages", kwargs='{"enable_thinking":false,"x":1}')
    assert record["kwargs"] == '{"enable_thinking":true,"x":1}'
    (record,) = only({"messages": [q("a"), a("b")]}, "messages", kwargs='{"x":1}')
    assert record["kwargs"] == '{"x":1}'


REJECTS: list[tuple[str, Any, str, str]] = [
    ("alpaca", {"instruction": "q"}, "missing_field", "output is missing"),
    ("alpaca", {"instruction": "q", "output": None}, "null_field", "output is null"),
    ("alpaca", {"instruction": "q", "output": 7}, "not_text", "output is a number, not text"),
    ("alpaca", {"instruction": "q", "output": "x", "history": [["a"]]}, "history", "history[0]"),
    (
        "alpaca",
        {"instruction": "q", "output": "x", "history": [["a", None]]},
        "history",
        "history[0][1] is null",
    ),
    ("alpaca", [1, 2], "not_object", "record is a list, not an object"),
    ("alpaca", None, "not_object", "record is null"),
    ("text", {"content": "x"}, "missing_field", "text is missing"),
    ("sharegpt", {"conversations": []}, "empty_conversation", "conversations has no turns"),
    ("sharegpt", {"conversations": "hello"}, "not_list", "conversations does not parse"),
    ("sharegpt", {"conversations": {"from": "human"}}, "not_list", "conversations is an object"),
    ("sharegpt", {"conversations": ["hi"]}, "not_object", "conversations[0] is text"),
    ("messages", {"messages": [a("x"), q("q")]}, "turn_order", "messages[0] is an assistant turn before"),
    ("messages", {"messages": [q("q"), s("s"), a("x")]}, "turn_order", "messages[1] is a system turn"),
    (
        "messages",
        {"messages": [q("q"), {"role": "tool", "content": "o"}]},
        "turn_order",
        "messages[1] is a tool turn",
    ),
    ("messages", {"messages": [q("q")]}, "no_answer", "messages has no assistant turn"),
    (
        "messages",
        {"messages": [q("q"), {"role": "narrator", "content": "x"}]},
        "unknown_role",
        "messages[1] has the",
    ),
    (
        "messages",
        {"messages": [q("q"), {"role": "assistant", "content": None}]},
        "null_content",
        "messages[1]",
    ),
    ("messages", {"messages": [q("q"), {"role": "assistant"}]}, "null_content", "messages[1]"),
    (
        "messages",
        {"messages": [q("q"), {"role": "assistant", "content": 3}]},
        "not_text",
        "messages[1].content is a",
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, a("x")]},
        "content_part",
        "messages[0].content[0] is a part of type 'image_url'",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f(x)"}]},
        "tool_call",
        "conversations[1] does not parse as JSON",
    ),
    ("messages", {"messages": [q("q"), a("x")], "tools": "nope"}, "tools", "tools does not parse"),
    ("preference", {"prompt": "q", "chosen": "x"}, "missing_field", "rejected is missing"),
    ("preference", {"prompt": "q", "chosen": "x", "rejected": None}, "null_field", "rejected is null"),
    (
        "preference",
        {"chosen": "abc", "rejected": "xyz"},
        "no_prompt",
        "chosen and rejected have no common beginning",
    ),
    (
        "preference",
        {"chosen": [q("a"), a("x")], "rejected": [q("b"), a("x")]},
        "different_prompts",
        "chosen and rejected part at turn 0",
    ),
    (
        "preference",
        {"prompt": [q("q"), a("x")], "chosen": "x", "rejected": "y"},
        "turn_order",
        "messages ends with",
    ),
    (
        "preference",
        {"prompt": [s("s")], "chosen": "x", "rejected": "y"},
        "no_prompt",
        "messages has no user turn",
    ),
    ("caregpt", {"instruction": "q", "output": ["a"]}, "not_pair", "output has 1 answer, not two or more"),
    ("hh_rlhf", {"chosen": "Human: q", "rejected": "x"}, "dialogue", "chosen does not begin"),
    (
        "openai_preference",
        {"input": [q("q")], "preferred_output": [a("x")], "non_preferred_output": [a("y")]},
        "not_object",
        "input is a list, not an object with messages",
    ),
    (
        "openai_preference",
        {"input": {"messages": [q("q")]}, "preferred_output": [a("x")]},
        "missing_field",
        "non_preferred_output is missing",
    ),
    ("kto", {"prompt": "q", "completion": "x", "label": "maybe"}, "label", "label is 'maybe'"),
    ("kto", {"messages": [q("q")], "label": True}, "no_answer", "messages does not end"),
    ("prompt", {"answer": "x"}, "missing_field", "prompt is missing"),
]


@pytest.mark.parametrize(("format", "value", "code", "detail"), REJECTS)
def test_what_does_not_fit_is_rejected_with_its_field(
    format: str, value: Any, code: str, detail: str
) -> None:
    got, sentence = reason(value, format)
    assert got == code
    assert sentence.startswith(detail), sentence


def test_rejects_leave_their_neighbours_alone() -> None:
    rows = [{"text": "a"}, {"text": None}, {"text": "b\ud800"}, {"text": "c"}]
    result = shaped(rows, ShapeSpec("text", "text"))
    assert result.batch.column("record").to_pylist() == [0, 3]
    assert [(r.record, r.line, r.reason) for r in result.rejects] == [
        (1, 2, "null_field"),
        (2, 3, "surrogate"),
    ]


def test_a_record_without_raw_bytes_is_kept_as_json() -> None:
    rows = Rows([{"text": 5}], [0], [None], [b""])
    (reject,) = shape(rows, 0, ShapeSpec("text", "text")).rejects
    assert reject.raw == b'{"text":5}'


def test_consecutive_user_turns_stay_as_they_are() -> None:
    (record,) = only({"messages": [q("a"), q("b"), a("c")]}, "messages")
    assert record["messages"] == [q("a"), q("b"), a("c")]


def test_dialogue_strings_may_part_before_the_last_answer() -> None:
    row = {
        "chosen": "\n\nHuman: q\n\nAssistant: one\n\nAssistant: two",
        "rejected": "\n\nHuman: q\n\nAssistant: other",
    }
    (record,) = only(row, "hh_rlhf")
    assert record["messages"] == [q("q")]
    assert record["chosen"] == [a("one"), a("two")]
    assert record["rejected"] == [a("other")]


def test_an_implicit_prompt_of_text_ends_before_the_space_that_parts() -> None:
    (record,) = only({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "preference")
    assert record["messages"] == [q("The sky is")]
    assert (record["chosen"], record["rejected"]) == ([a(" blue.")], [a(" green.")])


def test_an_unknown_format_or_an_impossible_kind_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match="'alpacca' is not a known format"):
        shape(Rows([], [], [], []), 0, ShapeSpec("alpacca", "sft"))
    with pytest.raises(RecipeError, match="alpaca gives sft records, which cannot be used as preference"):
        shape(Rows([], [], [], []), 0, ShapeSpec("alpaca", "preference"))


def test_only_sensible_kinds_become_each_other() -> None:
    kinds: tuple[RecordKind, ...] = ("text", "sft", "preference", "prompt")
    turned = [(x, y) for x in kinds for y in kinds if x != y and can_become(x, y)]
    assert turned == [("sft", "prompt"), ("preference", "sft"), ("preference", "prompt")]


def test_what_is_nobodys_format_is_not_recognised() -> None:
    assert detect([{"system_prompt": "role"}]) is None
    assert detect([]) is None
    assert detect([1, 2, 3]) is None
    mixed = [{"text": "x"}] * 2 + [{"foo": 1}] * 3
    assert detect(mixed) is None


def test_a_few_broken_rows_do_not_hide_a_format() -> None:
    rows = [{"instruction": "q", "output": "x"}] * 8 + [None, {"instruction": 3}]
    assert detect(rows).format == "alpaca"  # type: ignore[union-attr]


def test_every_format_of_any_kind_shapes_an_empty_chunk() -> None:
    for name, format in RECORD_FORMATS.items():
        for kind in format.kinds:
            assert shaped([], ShapeSpec(name, kind)).batch.num_rows == 0
