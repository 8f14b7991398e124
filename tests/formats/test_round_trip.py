"""What is written in a format is read back as the same records, unless the writer says what is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamix.core.contracts import Rows
from datamix.core.errors import RecipeError
from datamix.core.records import SCHEMAS, RecordKind
from datamix.formats import RECORD_FORMATS, WRITERS, ShapeSpec, detect, shape, unshape

SHARED = Path(__file__).parents[3] / "shared" / "data"
KINDS: tuple[RecordKind, ...] = ("text", "sft", "preference", "prompt")

texts = st.one_of(
    st.sampled_from(
        ["", " ", "你好", "a\nb", "\n\nHuman: x", "<think>\nx\n</think>", "[{", "null", "\u2028\x00"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=8),
)
calls = st.sampled_from(
    [
        '[{"type":"function","function":{"name":"f","arguments":{"x":1}}}]',
        '[{"id":"c1","type":"function","function":{"name":"f","arguments":{}}}]',
        '[{"type":"function","function":{"name":"f","arguments":{"x":"{}"}}},'
        '{"type":"function","function":{"name":"g","arguments":{"城市":"北京"}}}]',
    ]
)
TOOLS = '[{"type":"function","function":{"name":"f","parameters":{}}},{"type":"retrieval"}]'


def message(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    fields = ("reasoning", "tool_calls", "tool_call_id", "name", "train")
    return {"role": role, "content": content, **{field: more.get(field) for field in fields}}


questions = texts.map(lambda text: message("user", text))
reasons = st.none() | texts.filter(bool)


@st.composite
def answers(draw: st.DrawFn, plain: bool) -> dict[str, Any]:
    if plain:
        return message("assistant", draw(texts))
    called = draw(st.none() | calls)
    content = draw(st.none() | texts.filter(bool)) if called else draw(texts)
    train = draw(st.sampled_from([None, False]))
    return message("assistant", content, reasoning=draw(reasons), tool_calls=called, train=train)


@st.composite
def final(draw: st.DrawFn, plain: bool) -> list[dict[str, Any]]:
    turns = [draw(answers(plain))]
    if not plain and draw(st.booleans()):
        ids = {
            "tool_call_id": draw(st.sampled_from([None, "c1"])),
            "name": draw(st.sampled_from([None, "f"])),
        }
        turns += [message("tool", draw(texts), **ids), draw(answers(plain))]
    return turns


@st.composite
def prompts(draw: st.DrawFn, plain: bool, single: bool) -> list[dict[str, Any]]:
    if single:
        return [draw(questions)]
    turns = [message("system", draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        turns += [draw(questions), *draw(final(plain))]
    turns += [draw(questions)]
    if not plain and draw(st.booleans()):
        turns += [draw(questions)]
    return turns


@st.composite
def records(draw: st.DrawFn, kind: RecordKind) -> dict[str, Any]:
    """A record of ``kind``; some of them plain enough for formats of texts, some of a single question and answer."""
    plain, single = draw(st.sampled_from([(True, True), (True, False), (False, False)]))
    meta = draw(st.sampled_from([None, '{"zz":1,"部门":{"a":[null]}}']))
    if kind == "text":
        return {"text": draw(texts), "meta": meta}
    record: dict[str, Any] = {"messages": draw(prompts(plain, single)), "meta": meta}
    if not single:
        record["tools"] = draw(st.sampled_from([None, None, TOOLS]))
        record["kwargs"] = draw(st.sampled_from([None, None, '{"enable_thinking":false}']))
    if kind == "sft":
        record["messages"] += draw(final(plain))
        if not plain and draw(st.integers(0, 3)) == 0:
            record["messages"].append(draw(questions))
    elif kind == "prompt":
        record["reference"] = draw(st.none() | texts)
    elif draw(st.booleans()):
        record |= {"chosen": draw(final(plain)), "rejected": draw(final(plain))}
        record["margin"] = draw(st.sampled_from([0.5, 2.0, -1.0, None]))
    else:
        record |= {"chosen": draw(final(plain)), "label": draw(st.booleans())}
    return record


CALL = '[{"type":"function","function":{"name":"f","arguments":{"城市":"x"}}}]'


def answered(record: dict[str, Any], format: str) -> dict[str, Any]:
    """The record as it is; for a format of calls alone with a call as its answer."""
    if format != "xlam":
        return record
    question = next(turn for turn in reversed(record["messages"]) if turn["role"] == "user")
    return record | {"messages": [question, message("assistant", None, tool_calls=CALL)], "tools": TOOLS}


def batch_of(kind: RecordKind, records: list[dict[str, Any]]) -> pa.RecordBatch:
    rows = [{"slice": 0, "record": i, **record} for i, record in enumerate(records)]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMAS[kind])


def read_back(rows: list[dict[str, Any]], kind: RecordKind, format: str) -> pa.RecordBatch:
    parsed = json.loads(json.dumps(rows, ensure_ascii=False))
    num = len(parsed)
    spec = ShapeSpec(format, kind, keep_meta=("*",))
    result = shape(Rows(parsed, list(range(num)), [None] * num, [b""] * num), 0, spec)
    assert not result.rejects, result.rejects
    return result.batch


@pytest.mark.parametrize(("format", "kind"), sorted(WRITERS))
def test_a_record_survives_every_format_that_reports_no_loss(format: str, kind: RecordKind) -> None:
    survived = []

    @settings(max_examples=120, deadline=None, database=None, derandomize=True)
    @given(records(kind))
    def check(record: dict[str, Any]) -> None:
        batch = batch_of(kind, [answered(record, format)])
        rows, lost = unshape(batch, kind, format)
        if lost:
            return
        survived.append(1)
        assert read_back(rows, kind, format).to_pylist() == batch.to_pylist()

    check()
    assert len(survived) >= 3, "the property must not hold for want of cases"


@pytest.mark.parametrize(("format", "kind"), sorted(WRITERS))
def test_what_is_written_is_recognised_as_something_that_reads_the_same(
    format: str, kind: RecordKind
) -> None:
    plain = [message("user", "问"), message("assistant", "答"), message("user", "再问")]
    record: dict[str, Any] = {"messages": plain}
    good, bad = [message("assistant", "好")], [message("assistant", "坏")]
    if kind == "text":
        record = {"text": "文"}
    elif kind == "sft":
        record["messages"] = [*plain[2:], *good] if format == "self_instruct" else [*plain, *good]
    elif kind == "prompt":
        record["reference"] = "参考"
    elif format == "kto":
        record |= {"chosen": good, "label": True}
    else:
        record |= {"chosen": good, "rejected": bad, "margin": 1.5}
    batch = batch_of(kind, [answered(record, format)] * 3)
    rows, lost = unshape(batch, kind, format)
    assert lost == []
    found = detect(rows)
    assert found is not None
    assert read_back(rows, kind, found.format).to_pylist() == batch.to_pylist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_a_format_that_loses_nothing_of_it(kind: RecordKind) -> None:
    holders = {
        "text": ["text"],
        "sft": ["messages"],
        "preference": ["preference", "kto"],
        "prompt": ["prompt"],
    }

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(records(kind))
    def check(record: dict[str, Any]) -> None:
        batch = batch_of(kind, [record])
        format = holders[kind][0 if record.get("label") is None else -1]
        rows, lost = unshape(batch, kind, format)
        assert lost == []
        assert read_back(rows, kind, format).to_pylist() == batch.to_pylist()

    check()


def test_losses_are_named_and_counted() -> None:
    record = {
        "messages": [
            message("user", "q"),
            message("assistant", "x", reasoning="r", train=False),
        ]
    }
    rows, lost = unshape(batch_of("sft", [record, record]), "sft", "sharegpt")
    assert lost == [
        "flags of turns that are never trained: 2 records",
        "reasoning as a field (written inline as <think>): 2 records",
    ]
    assert rows[0]["conversations"][1] == {"from": "gpt", "value": "<think>\nr\n</think>\n\nx"}


def test_a_record_that_a_format_cannot_hold_gives_no_row_and_is_counted() -> None:
    record = {"messages": [message("user", "a"), message("user", "b"), message("assistant", "c")]}
    rows, lost = unshape(batch_of("sft", [record]), "sft", "alpaca")
    assert rows == []
    assert lost == [
        "records with turns that do not alternate between user and assistant (left out): 1 record"
    ]


def test_a_kept_field_under_a_name_of_the_format_is_reported() -> None:
    record = {"text": "x", "meta": '{"text":"other","id":3}'}
    rows, lost = unshape(batch_of("text", [record]), "text", "text")
    assert rows == [{"text": "x", "id": 3}]
    assert lost == ["the meta field 'text', whose name the format uses itself: 1 record"]


def test_a_pair_becomes_two_labelled_rows_and_says_what_that_loses() -> None:
    pair = {"messages": [message("user", "q")]}
    pair |= {"chosen": [message("assistant", "g")], "rejected": [message("assistant", "b")], "margin": 2.0}
    rows, lost = unshape(batch_of("preference", [pair]), "preference", "kto")
    assert [row["label"] for row in rows] == [True, False]
    assert lost == [
        "the margin: 1 record",
        "which answers were compared (a pair becomes two labelled rows): 1 record",
    ]


def test_writing_a_kind_that_a_format_does_not_have_is_an_error() -> None:
    with pytest.raises(RecipeError, match="alpaca cannot hold preference records"):
        unshape(batch_of("preference", []), "preference", "alpaca")


def test_every_format_can_be_written() -> None:
    assert {(name, kind) for name, format in RECORD_FORMATS.items() for kind in format.kinds} == set(WRITERS)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real corpora are not beside the checkout")
@pytest.mark.parametrize(("format", "kind"), sorted(WRITERS))
def test_naughty_strings_survive_every_format(format: str, kind: RecordKind) -> None:
    path = next(SHARED.glob("messy/**/blns.json"))
    naughty: list[str] = json.loads(path.read_text(encoding="utf-8"))
    made = {
        "text": lambda x: {"text": x},
        "sft": lambda x: {"messages": [message("user", x), message("assistant", x)]},
        "preference": lambda x: {
            "messages": [message("user", x)],
            "chosen": [message("assistant", x)],
            **(
                {"label": True}
                if format == "kto"
                else {"rejected": [message("assistant", "")], "margin": 1.0}
            ),
        },
        "prompt": lambda x: {"messages": [message("user", x)], "reference": x},
    }[kind]
    batch = batch_of(kind, [answered(made(x), format) for x in naughty])
    rows, lost = unshape(batch, kind, format)
    assert lost == []
    assert read_back(rows, kind, format).to_pylist() == batch.to_pylist()
