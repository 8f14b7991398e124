"""Prepared records: the quick way to them and the long one end with the same bytes."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamix.core.contracts import Slice
from datamix.formats import FastPath, ShapeSpec, fast_path
from datamix.pipeline.prepare import PrepareSpec, prepare

SHARED = Path(__file__).parents[3] / "shared" / "data"
Row = dict[str, Any]


def prepared(content: bytes, spec: ShapeSpec, quick: bool) -> tuple[list[bytes], Row, int]:
    """The files of a prepare task, its counts, and how many chunks went the quick way."""
    taken = []

    class Counting(FastPath):
        def __call__(self, *given: Any) -> Any:
            found = super().__call__(*given)
            taken.append(found is not None)
            return found

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_path, "_PATIENCE", 4 if quick else 0)
        patch.setattr("datamix.pipeline.prepare.FastPath", Counting)
        path, out = Path(folder, "rows.jsonl"), Path(folder, "out")
        out.mkdir()
        path.write_bytes(content)
        slices = (
            Slice(str(path), "0" * 64, "jsonl"),
            Slice(str(path), "1" * 64, "jsonl", start=5, stop=10**9),
        )
        counts = prepare(PrepareSpec(slices, spec, ()), out)
        return [file.read_bytes() for file in sorted(out.iterdir())], counts, sum(taken)


def assert_same(content: bytes, spec: ShapeSpec) -> int:
    """The number of chunks that went the quick way."""
    files, counts, taken = prepared(content, spec, True)
    assert (files, counts, 0) == prepared(content, spec, False)
    return taken


def lines(rows: Sequence[Row], **how: Any) -> bytes:
    return b"".join(json.dumps(row, **how).encode("utf-8", "surrogatepass") + b"\n" for row in rows)


TEXTS = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(codec="utf-8"), min_size=50, max_size=200),
    st.sampled_from(
        ["", "\n", '"', "\\", "\x00", "\x01", "\x010;", "😀", "\ud800", "<think>a</think>", "[]", "[{"]
    ),
)
ODD = st.one_of(TEXTS, st.none(), st.booleans(), st.integers(), st.floats(), st.just([]), st.just({}))
ROLES = st.sampled_from(
    ["user", "human", "assistant", "gpt", "system", "tool", "function_call", "nobody", ""]
)


def turns(role: str, content: str) -> st.SearchStrategy[Any]:
    alternating = st.lists(TEXTS, min_size=1, max_size=6).map(
        lambda texts: [{role: ("user", "assistant")[i % 2], content: text} for i, text in enumerate(texts)]
    )
    extra = st.dictionaries(
        st.sampled_from(["loss", "weight", "name", "reasoning", "role", "value"]), ODD, max_size=1
    )
    wild = st.builds(lambda r, c, e: {role: r, content: c, **e}, ROLES, ODD, extra)
    return st.one_of(alternating, st.lists(wild, max_size=4), ODD)


FIELDS = {
    "messages": st.fixed_dictionaries({"messages": turns("role", "content")}),
    "sharegpt": st.fixed_dictionaries({"conversations": turns("from", "value")}),
    "alpaca": st.fixed_dictionaries(
        {"instruction": TEXTS, "output": TEXTS},
        optional={"input": st.one_of(TEXTS, ODD), "history": st.one_of(ODD, st.just([["a", "b"]]))},
    ),
    "magpie": st.fixed_dictionaries({"instruction": TEXTS, "response": TEXTS}),
    "prompt_completion": st.fixed_dictionaries(
        {"prompt": st.one_of(TEXTS, turns("role", "content")), "completion": st.one_of(TEXTS, ODD)}
    ),
    "question_answer": st.fixed_dictionaries({"question": TEXTS, "answer": TEXTS}),
}
OTHERS = st.dictionaries(
    st.sampled_from(["id", "system", "tools", "input", "score", "chat_template_kwargs", "\x01", "response"]),
    st.one_of(ODD, st.lists(ODD, max_size=2)),
    max_size=2,
)


def test_every_format_of_the_quick_way_is_tried_here() -> None:
    assert FIELDS.keys() == fast_path.OPAQUE


@pytest.mark.parametrize("format", FIELDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_rows_come_out_the_same_by_the_quick_way(format: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.builds(lambda a, b: a | b, FIELDS[format], OTHERS), max_size=6))
    regular = data.draw(st.integers(0, 6))
    rows += [{**rows[0], "id": i} for i in range(regular)] if rows else []
    content = lines(
        rows, ensure_ascii=data.draw(st.booleans()), separators=data.draw(st.sampled_from([None, (",", ":")]))
    )
    places = data.draw(st.lists(st.tuples(st.integers(0, len(content)), st.binary(max_size=3)), max_size=2))
    for place, noise in places:
        content = content[:place] + noise + content[place:]
    system = data.draw(st.sampled_from([None, "Be brief."]))
    assert_same(content, ShapeSpec(format, "sft", system=system))


GOOD = [
    {"messages": [{"role": "user", "content": f"Hé\n{i}"}, {"role": "assistant", "content": "你好"}]}
    for i in range(2000)
]
CHAT = ShapeSpec("messages", "sft")
QUESTIONS = ShapeSpec("question_answer", "sft")


def test_a_few_odd_rows_do_not_keep_the_others_from_the_quick_way() -> None:
    odd = [
        {"messages": []},
        {"messages": [*GOOD[0]["messages"], {"role": "user", "content": "?"}], "tools": [{"name": "f"}]},
    ]
    content = lines([*GOOD[:700], *odd, *GOOD[700:1300]]) + b"\n \n" + lines(GOOD[1300:])
    assert assert_same(content, CHAT) == 4  # two chunks in each of the two slices


def test_a_broken_line_sends_its_chunk_the_long_way() -> None:
    content = lines(GOOD[:1300]) + b"\n \n{broken\n" + lines(GOOD[1300:])
    assert assert_same(content, CHAT) == 2  # of two chunks in each of the two slices


@pytest.mark.parametrize(
    "line",
    [
        b'{"question":"q","answer":"\\ud83d\\ude00 \\u00e9\\u4f60\\u0041\\/\\b\\f\\n\\r\\t\\"\\\\"}',
        b'{"question":"q","answer":"\\ud83d"}',
        b'{"question":"q","answer":"\\ude00\\ud83d"}',
        b'{"question":"q","answer":"\\ud83d\\u0041"}',
        b'{"question":"q","answer":"\\u00g0"}',
        b'{"question":"q","answer":"\\x"}',
        b'{"question":"q","answer":"tab\there"}',
        b'{"question":"q","answer":"\x7f\xc2\x80"}',
        b'{"question":"q","answer":"\xff"}',
        b'{"question":"q","answer":"\xed\xa0\x80"}',
        b'{"question":"q","answer":"\xc0\xaf"}',
        b'{"question":"q","answer":"open',
        b'{"question":"q","answer":"open\\',
        b'{"question":"q","answer":"open\\u00',
        b'{"question":"q","answer":"a"}{"question":"q","answer":"b"}',
        b'{"question":"q","answer":"a"},',
        b'{"question":"q","answer":"a" "b"}',
        b'{"question":"q","answer":"a","question":"q","answer":"b"}',
        b'{"question":"q","answer":"a","an\\u0073wer":"b"}',
        b'{"role":"a","question":"q","answer":"b"}',
        b'{"question":"q","answer":"a","n":01}',
        b'{"question":"q","answer":"a","n":[1,2.50,10000000000000000000000,1e5,-3,1.,.5]}',
        b'{"question":"q","answer":"a","n":123456789012345678901234567890}',
        b'{"question":"q","answer":"a","n":12a}',
        b'{"question":"q","answer":"a","n":1 2}',
        b'{"question":"q","answer":"a","n":1e400}',
        b'{"question":"q","answer":"a","n":NaN}',
        b'{"question":"q","answer":"a"}\r',
        b'\xef\xbb\xbf{"question":"q","answer":"a"}',
        b'{"question":"q","answer":"a"}\x00',
        b'{"question":"q","answer":\x01}',
        b'{\x01:"a","question":"q","answer":"b"}',
        b'"text"',
        b'["text"]',
        b'{"question":"q","answer":"a","x":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"question":"q","answer":"a","x":' + b"[" * 250 + b"]" * 250 + b"}",
        b'{"question":"q","answer":"a","x":' + b"[" * 100_000 + b"}",
    ],
)
def test_a_strange_line_is_read_or_rejected_as_ever(line: bytes) -> None:
    regular = lines([{"question": "q", "answer": f"Some text {i}", "n": i} for i in range(20)])
    for content in (line, regular + line, line + b"\n" + regular, regular + line + b"\n" + regular):
        assert_same(content, QUESTIONS)


@pytest.mark.parametrize("length", [*range(58, 70), 127, 128, 129])
def test_texts_of_any_length_end_where_they_end(length: int) -> None:
    texts = ["x" * length, "x" * (length - 1) + "\n", "x" * (length - 1) + "é", "y"]
    assert assert_same(lines([{"question": "q", "answer": t} for t in texts], ensure_ascii=False), QUESTIONS)


@pytest.mark.shared
def test_the_suites_of_strange_json_are_read_or_rejected_as_ever() -> None:
    folder = SHARED / "messy"
    suite = [
        path.read_bytes().replace(b"\n", b" ") for path in sorted(folder.glob("json_test_suite/**/*.json"))
    ]
    if not suite:
        pytest.skip("the corpora are not beside the checkout")
    naughty = json.loads(next(folder.glob("*naughty*/blns.json")).read_bytes())
    told = [b'{"question":"q","answer":"a","x":%b}' % case for case in suite] + [
        b'{"question":"q","answer":%b}' % case for case in suite
    ]
    told += [
        json.dumps({"question": "q", "answer": text}, ensure_ascii=ascii).encode()
        for text in naughty
        for ascii in (True, False)
    ]
    regular = lines([{"question": "q", "answer": "some text"}] * 2)
    sound = [case for case in told if case.decode(errors="ignore").encode() == case]
    assert assert_same(b"".join(case + b"\n" + regular for case in sound), QUESTIONS) > 2
    for case in told:
        if case not in sound:
            assert_same(regular + case + b"\n" + regular, QUESTIONS)
