from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from datamix.clean import STEPS, Step, clean
from datamix.clean.normalize import Normalize
from datamix.clean.record_checks import Length
from datamix.core.records import SCHEMAS, Fields


def turn(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def batch_of(kind: str, records: list[dict[str, Any]]) -> pa.RecordBatch:
    rows = [{"slice": 0, "record": 7 + i, **r} for i, r in enumerate(records)]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMAS[kind])


def documents(*texts: str) -> pa.RecordBatch:
    return batch_of("text", [{"text": t} for t in texts])


DECOMPOSED, COMPOSED = "cafe\u0301", "caf\u00e9"


def test_a_dropped_record_counts_once_under_the_first_step_that_drops_it() -> None:
    steps = [
        Step("normalize", Normalize()),
        Step("length", Length(min_chars=2)),
        Step("length", Length(min_chars=5, max_chars=8)),
    ]
    cleaned = clean(documents("a", DECOMPOSED, "刚好五个字", "long enough to go", "\x00ab"), "text", steps)
    assert cleaned.dropped == {
        0: "length_min_chars",
        1: "length_min_chars",
        3: "length_max_chars",
        4: "length_min_chars",
    }
    assert cleaned.batch.column("record").to_pylist() == [9]
    assert cleaned.fixed == {"normalize": 2}


def test_no_steps_give_the_batch_back() -> None:
    batch = documents("a", "b")
    assert clean(batch, "text", []).batch is batch


def test_an_empty_batch_passes_every_kind() -> None:
    apart = ("language", "keep")  # needs an extra; is looked up in the pipeline, where scores are
    steps = [Step(name, options()) for name, options in STEPS.items() if name not in apart]
    for kind in SCHEMAS:
        empty = batch_of(kind, [])
        assert clean(empty, kind, steps).batch.equals(empty)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("prompt", [COMPOSED, DECOMPOSED, DECOMPOSED]),
        ("answer", [DECOMPOSED, COMPOSED, COMPOSED]),
        ("all", [COMPOSED, COMPOSED, COMPOSED]),
    ],
)
def test_fields_select_the_turns_of_a_conversation(fields: Fields, expected: list[str]) -> None:
    record = {"messages": [turn("user", DECOMPOSED), turn("assistant", DECOMPOSED, reasoning=DECOMPOSED)]}
    cleaned = clean(batch_of("sft", [record]), "sft", [Step("normalize", Normalize(), fields)])
    user, assistant = cleaned.batch.column("messages").to_pylist()[0]
    assert [user["content"], assistant["content"], assistant["reasoning"]] == expected
    assert cleaned.fixed == {"normalize": 1}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("prompt", [COMPOSED, DECOMPOSED, DECOMPOSED]),
        ("answer", [DECOMPOSED, COMPOSED, COMPOSED]),
        ("all", [COMPOSED, COMPOSED, COMPOSED]),
    ],
)
def test_fields_select_the_parts_of_a_pair(fields: Fields, expected: list[str]) -> None:
    record = {
        "messages": [turn("user", DECOMPOSED)],
        "chosen": [turn("assistant", DECOMPOSED)],
        "rejected": [turn("assistant", DECOMPOSED)],
    }
    batch = clean(
        batch_of("preference", [record]), "preference", [Step("normalize", Normalize(), fields)]
    ).batch
    got = [batch.column(name)[0].as_py()[0]["content"] for name in ("messages", "chosen", "rejected")]
    assert got == expected


def test_mending_keeps_everything_that_is_not_text() -> None:
    call = '[{"type":"function","function":{"name":"f","arguments":{}}}]'
    record = {
        "messages": [
            turn("user", DECOMPOSED),
            turn("assistant", None, tool_calls=call),
            turn("tool", DECOMPOSED, tool_call_id="1", name="f"),
            turn("assistant", "ok", train=False),
        ],
        "tools": "[]",
        "kwargs": "{}",
        "meta": '{"a":1}',
    }
    before = batch_of("sft", [{"messages": [turn("user", "x")]}, record, {"messages": []}])
    after = clean(before.slice(1), "sft", [Step("normalize", Normalize())]).batch
    expected = before.slice(1).to_pylist()
    for message in expected[0]["messages"]:
        message["content"] = message["content"] and message["content"].replace(DECOMPOSED, COMPOSED)
    assert after.schema == before.schema
    assert after.to_pylist() == expected


def test_length_counts_the_selected_turns_together_and_calls_as_said() -> None:
    batch = batch_of(
        "sft",
        [
            {
                "messages": [
                    turn("user", "问"),
                    turn("assistant", ""),
                    turn("user", "再问"),
                    turn("assistant", "答"),
                ]
            },
            {"messages": [turn("user", "问"), turn("assistant", None, tool_calls="[{}]")]},
            {"messages": [turn("user", "问"), turn("assistant", "")]},
        ],
    )
    assert clean(batch, "sft", [Step("length", Length(1), "answer")]).dropped == {2: "length_min_chars"}
    assert clean(batch, "sft", [Step("length", Length(3), "prompt")]).dropped == {
        1: "length_min_chars",
        2: "length_min_chars",
    }


def test_each_completion_of_a_pair_must_pass_and_an_unpaired_one_has_no_other() -> None:
    prompt = [turn("user", "q")]
    batch = batch_of(
        "preference",
        [
            {"messages": prompt, "chosen": [turn("assistant", "yes")], "rejected": [turn("assistant", "")]},
            {"messages": prompt, "chosen": [turn("assistant", "yes")], "label": True},
            {"messages": prompt, "chosen": [turn("assistant", "")], "label": False},
            {"messages": prompt, "chosen": [turn("assistant", "yes")], "rejected": [turn("assistant", "no")]},
        ],
    )
    cleaned = clean(batch, "preference", [Step("normalize", Normalize()), Step("length", Length(), "answer")])
    assert cleaned.dropped == {0: "length_min_chars", 2: "length_min_chars"}
    assert cleaned.batch.column("rejected").null_count == 1


def test_the_reference_of_a_prompt_is_its_answer() -> None:
    batch = batch_of(
        "prompt",
        [
            {"messages": [turn("user", "2+2?")], "reference": DECOMPOSED},
            {"messages": [turn("user", "2+2?")]},
            {"messages": [turn("user", "2+2?")], "reference": ""},
        ],
    )
    cleaned = clean(
        batch, "prompt", [Step("normalize", Normalize(), "answer"), Step("length", Length(), "answer")]
    )
    assert cleaned.batch.column("reference").to_pylist() == [COMPOSED, None]
    assert cleaned.dropped == {2: "length_min_chars"}


def test_a_length_that_nothing_can_meet_is_refused() -> None:
    with pytest.raises(ValueError, match="max_chars must be at least"):
        Length(min_chars=10, max_chars=5)
    with pytest.raises(ValueError, match="0 or more"):
        Length(min_chars=-1)
