"""Rows as widely used sets, vendors' interfaces and agents write them: recognised, and read as the conversation they hold."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from datamix.core.contracts import Rows
from datamix.core.records import RecordKind
from datamix.formats import ShapeSpec, detect, native_kinds, shape

Row = dict[str, Any]


def read(row: Row, kind: RecordKind | None = None) -> Row:
    """The record that ``format: auto`` makes of a file of such rows, without what is empty."""
    found = detect([row] * 5)
    assert found is not None
    spec = ShapeSpec(found.format, kind or native_kinds(found.format)[0], found.columns)
    shaped = shape(Rows([row], [0], [None], [b""]), 0, spec)
    assert shaped.rejects == []
    return _plain(shaped.batch.to_pylist()[0])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None and k not in ("slice", "record")}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def turn(role: str, content: str, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


Q, A, S = turn("user", "q"), turn("assistant", "a"), turn("system", "s")
Q2, A2 = turn("user", "q2"), turn("assistant", "a2")

CONVERSATIONS: list[tuple[str, Row, list[Row]]] = [
    ("dolly", {"instruction": "q", "context": "c", "response": "a", "category": "x"}, [turn("user", "q\nc"), A]),
    ("dolly without context", {"instruction": "q", "context": "", "response": "a"}, [Q, A]),
    ("firefly chat", {"conversation_id": 1, "conversation": [{"human": "q", "assistant": "a"}, {"human": "q2", "assistant": "a2"}]}, [Q, A, Q2, A2]),
    ("firefly", {"kind": "NER", "input": "q", "target": "a"}, [Q, A]),
    ("openorca", {"id": "x", "system_prompt": "s", "question": "q", "response": "a"}, [S, Q, A]),
    ("ms-swift", {"system": "s", "query": "q2", "response": "a2", "history": [["q", "a"]]}, [S, Q, A, Q2, A2]),
    ("belle", {"instruction": "q", "input": "", "target": "a"}, [Q, A]),
    ("medical-o1", {"Question": "q", "Complex_CoT": "t", "Response": "a"}, [Q, turn("assistant", "a", reasoning="t")]),
    ("chinese r1", {"input": "q", "reasoning_content": "t", "content": "a", "score": 9}, [Q, turn("assistant", "a", reasoning="t")]),
    ("adgen", {"content": "q", "summary": "a"}, [Q, A]),
    ("ultrachat", {"id": "0", "data": ["q", "a", "q2", "a2"]}, [Q, A, Q2, A2]),
    ("flan", {"inputs": "q", "targets": "a"}, [Q, A]),
    ("capitals", {"Question": "q", "Answer": "a"}, [Q, A]),
    ("instruction in capitals", {"Instruction": "q", "Response": "a"}, [Q, A]),
    ("input and output", {"input": "q", "output": "a"}, [Q, A]),
    ("pairs as lists", {"conversation": [["q", "a"], ["q2", "a2"]]}, [Q, A, Q2, A2]),
    ("pairs by question", {"dialogue": [{"question": "q", "answer": "a"}]}, [Q, A]),
    ("patient and doctor", {"conversation": [{"role": "patient", "content": "q"}, {"role": "doctor", "content": "a"}]}, [Q, A]),
    ("患者 and 医生", {"dialogue": [{"speaker": "患者", "text": "q"}, {"speaker": "医生", "text": "a"}]}, [Q, A]),
    ("speakers in the text", {"utterances": ["病人：q", "医生：a", "病人：q2", "医生：a2"]}, [Q, A, Q2, A2]),
    ("speakers in english", {"utterances": ["Patient: q", "Doctor: a"]}, [Q, A]),
    ("huatuo", {"data": ["问：q", "答：a"]}, [Q, A]),
    ("authors", {"messages": [{"author": "user", "content": "q"}, {"author": "bot", "content": "a"}]}, [Q, A]),
    ("query and answer", {"query": "q", "answer": "a"}, [Q, A]),
    ("roles in capitals", {"messages": [{"role": "USER", "content": "q"}, {"role": "Assistant", "content": "a"}]}, [Q, A]),
    (
        "gemini",
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
            "contents": [
                {"role": "user", "parts": [{"text": "q"}]},
                {"role": "model", "parts": [{"text": "t", "thought": True}, {"text": "a"}]},
            ],
        },
        [S, Q, turn("assistant", "a", reasoning="t")],
    ),
    (
        "responses",
        {"instructions": "s", "input": "q", "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}]},
        [S, Q, A],
    ),
    ("responses as text", {"input": [{"role": "user", "content": "q"}], "output": "a"}, [Q, A]),
    ("anthropic", {"system": [{"type": "text", "text": "s"}], "messages": [Q, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}, [S, Q, A]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "turns"), [case[1:] for case in CONVERSATIONS], ids=[c[0] for c in CONVERSATIONS]
)
def test_a_conversation_of_a_known_set_is_read(row: Row, turns: list[Row]) -> None:
    assert read(row)["messages"] == turns


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "chosen_response": "a", "rejected_response": "b"},
        {"question": "q", "response_j": "a", "response_k": "b"},
        {
            "prompt": "q",
            "response_0": "a",
            "response_1": "b",
            "is_response_0_safe": True,
            "better_response_id": 0,
        },
        {"prompt": "q", "response": ["a", "b"]},
    ],
)
def test_a_pair_of_a_known_set_is_read(row: Row) -> None:
    record = read(row)
    assert (record["messages"], record["chosen"], record["rejected"]) == ([Q], [A], [turn("assistant", "b")])


def test_a_text_stays_a_text_beside_fields_of_likely_names() -> None:
    for more in (
        {"data": ["x", "y"]},
        {"turns": ["x", "y"]},
        {"content": "c", "summary": "s"},
        {"input": "i", "output": "o"},
    ):
        assert detect([{"text": "t", **more}] * 3).format == "text"  # type: ignore[union-attr]


def test_an_answer_under_an_unknown_name_is_no_prompt() -> None:
    assert detect([{"instruction": "q", "input": "", "target": "a"}]).kind == "sft"  # type: ignore[union-attr]
    assert detect([{"prompt": "q", "ground_truth": "a"}]).kind == "prompt"  # type: ignore[union-attr]


CALL = {"name": "f", "arguments": {"x": 1}}
DEFINITION = {"name": "f", "description": "d", "parameters": {"type": "object"}}
CALLED: list[tuple[str, Row, str | None]] = [
    (
        "xlam",
        {"query": "q", "answers": json.dumps([CALL]), "tools": json.dumps([DEFINITION])},
        None,
    ),
    (
        "gemini",
        {
            "tools": [{"functionDeclarations": [DEFINITION]}],
            "contents": [
                {"role": "user", "parts": [{"text": "q"}]},
                {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"x": 1}}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"r": 1}}}]},
                {"role": "model", "parts": [{"text": "a"}]},
            ],
        },
        '{"r":1}',
    ),
    (
        "responses",
        {
            "tools": [{"type": "function", **DEFINITION}],
            "input": [{"role": "user", "content": "q"}],
            "output": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"x": 1}'},
                {"type": "function_call_output", "call_id": "c", "output": "o"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
            ],
        },
        "o",
    ),
    (
        "openhands before 1.0",
        {
            "history": [
                {"id": 0, "source": "agent", "action": "system", "args": {"content": "s", "tools": [DEFINITION]}},
                {"id": 1, "source": "user", "action": "message", "args": {"content": "q"}},
                {"id": 2, "source": "agent", "action": "f", "args": {"x": 1, "thought": "", "is_confirmed": "confirmed"}},
                {"id": 3, "source": "environment", "observation": "agent_state_changed", "content": "", "extras": {}},
                {"id": 4, "source": "agent", "cause": 2, "observation": "f", "content": "o", "extras": {}},
                {"id": 5, "source": "agent", "action": "message", "args": {"content": "a"}},
            ]
        },
        "o",
    ),
    (
        "openhands with the model's response",
        {
            "history": [
                {"source": "user", "action": "message", "args": {"content": "q"}},
                {
                    "source": "agent",
                    "action": "run",
                    "args": {"command": "ls"},
                    "tool_call_metadata": {
                        "tool_call_id": "c",
                        "function_name": "f",
                        "model_response": {
                            "id": "r",
                            "choices": [
                                {
                                    "message": {
                                        "role": "assistant",
                                        "content": "",
                                        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
                                    }
                                }
                            ],
                        },
                    },
                },
                {"source": "agent", "observation": "run", "content": "o", "tool_call_metadata": {"tool_call_id": "c", "function_name": "f"}},
                {"source": "agent", "action": "message", "args": {"content": "a"}},
            ],
            "tools": [DEFINITION],
        },
        "o",
    ),
    (
        "openhands since 1.0",
        {
            "events": [
                {"kind": "SystemPromptEvent", "source": "agent", "system_prompt": {"type": "text", "text": "s"}, "tools": [DEFINITION]},
                {"kind": "MessageEvent", "source": "user", "llm_message": {"role": "user", "content": [{"type": "text", "text": "q"}]}},
                {"kind": "ActionEvent", "source": "agent", "thought": [], "tool_name": "f", "tool_call_id": "c", "tool_call": {"id": "c", "name": "f", "arguments": '{"x": 1}'}},
                {"kind": "ObservationEvent", "source": "environment", "tool_name": "f", "tool_call_id": "c", "observation": {"content": [{"type": "text", "text": "o"}]}},
                {"kind": "ConversationStateUpdateEvent", "key": "x"},
                {"kind": "MessageEvent", "source": "agent", "llm_message": {"role": "assistant", "content": [{"type": "text", "text": "a"}]}},
            ]
        },
        "o",
    ),
    (
        "swe-agent",
        {
            "trajectory": [{"action": "f", "observation": "o", "response": "", "state": {}}],
            "history": [
                {"role": "system", "content": "s", "agent": "main"},
                {"role": "user", "content": "q", "agent": "main"},
                {"role": "assistant", "content": "", "thought": "", "action": "f", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
                {"role": "tool", "content": [{"type": "text", "text": "o"}], "tool_call_ids": ["c"]},
                {"role": "assistant", "content": "a", "agent": "main"},
            ],
            "tools": [DEFINITION],
        },
        "o",
    ),
    (
        "smolagents",
        {
            "steps": [
                {"system_prompt": "s"},
                {"task": "q", "task_images": None},
                {"step_number": 1, "model_output": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}], "observations": "o", "error": None},
                {"step_number": 2, "model_output": "a", "tool_calls": None, "observations": None},
                {"output": "a"},
            ],
            "tools": [DEFINITION],
        },
        "o",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "result"), [case[1:] for case in CALLED], ids=[c[0] for c in CALLED])
def test_calls_their_results_and_definitions_are_read(row: Row, result: str | None) -> None:
    record = read(row)
    turns = [t for t in record["messages"] if t["role"] != "system"]
    assert [call["function"] for call in json.loads(turns[1]["tool_calls"])] == [CALL]
    assert json.loads(record["tools"])[0]["function"] == DEFINITION
    assert turns[0] == Q
    if result is None:
        assert len(turns) == 2
        return
    assert (turns[2]["role"], turns[2]["content"]) == ("tool", result)
    assert turns[3] == A


def test_what_an_environment_answers_is_never_trained() -> None:
    for name, row, _ in CALLED:
        trained = [t for t in read(row)["messages"] if t["role"] == "assistant"]
        assert all(t.get("content") != "o" for t in trained), name


def test_code_of_an_agent_is_its_text_and_an_error_is_what_the_environment_answers() -> None:
    code = "I add.\n```py\nprint(1+1)\n```"
    call = {
        "id": "c",
        "type": "function",
        "function": {"name": "python_interpreter", "arguments": "print(1+1)"},
    }
    step = {
        "step_number": 1,
        "model_output": code,
        "tool_calls": [call],
        "observations": "2",
        "error": {"type": "E", "message": "late"},
    }
    messages = read(
        {"steps": [{"task": "q"}, step, {**step, "step_number": 2, "observations": None, "error": None}]}
    )["messages"]
    assert messages == [Q, turn("assistant", code), turn("user", "2\nlate"), turn("assistant", code)]


@pytest.mark.parametrize(
    "row",
    [
        {"conversation": [{"role": "wizard", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversation": [{"role": "user", "content": "q"}, {"who": "assistant", "content": "a"}]},
    ],
)
def test_a_role_that_is_not_known_is_one_clear_reject(row: Row) -> None:
    shaped = shape(
        Rows([row], [0], [None], [b""]), 0, ShapeSpec("messages", "sft", (("messages", "conversation"),))
    )
    (reject,) = shaped.rejects
    assert reject.reason == "unknown_role"
    assert "columns: {turn." in reject.detail


LEAVES = [
    None,
    0,
    -1,
    True,
    2.5,
    "",
    "x",
    "[",
    "[1]",
    '{"a": 1}',
    [],
    [1],
    [[]],
    {},
    {"a": []},
    [{}],
    {"role": "user"},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all parts of a row."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in parts for place in places(part, (*path, key)))]


@pytest.mark.parametrize("row", [case[1] for case in CALLED + CONVERSATIONS])
def test_a_row_with_any_part_replaced_is_a_record_or_a_reject(row: Row) -> None:
    found = detect([row])
    assert found is not None
    spec = ShapeSpec(found.format, native_kinds(found.format)[0], found.columns)
    for place in places(row)[1:]:
        for leaf in LEAVES:
            broken: Any = copy.deepcopy(row)
            part = broken
            for key in place[:-1]:
                part = part[key]
            part[place[-1]] = copy.deepcopy(leaf)
            detect([broken])
            shaped = shape(Rows([broken], [0], [None], [b""]), 0, spec)
            assert len(shaped.rejects) + bool(shaped.batch.num_rows) == 1
