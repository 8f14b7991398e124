"""JSON arrays as a stream: the borders of elements do not depend on blocks, and a broken one is rejected alone."""

import json
import re
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import SHARED, as_container, only, reasons, rows_of

from datamix.core.errors import DataError
from datamix.read import cut, json_array, read, sniff
from datamix.read.json_array import split_elements

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=12)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)
INDENTS = st.sampled_from([None, 0, 1, 2])


def borders(content: bytes, block: int) -> list[tuple[bytes, int]]:
    blocks = iter([content[i : i + block] for i in range(0, len(content), block)])
    elements = list(split_elements(blocks))
    assert [e.problem for e in elements if e.problem] == []
    return [(e.raw, e.line) for e in elements]


@given(
    values=st.lists(VALUES, max_size=6), indent=INDENTS, block=st.integers(1, 64), ascii_only=st.booleans()
)
@settings(max_examples=150, deadline=None)
def test_elements_of_any_array_are_found_for_any_blocks(
    values: list[object], indent: int | None, block: int, ascii_only: bool
) -> None:
    content = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    found = borders(content, block)
    assert [orjson.loads(raw) for raw, _ in found] == values
    position = 0
    for raw, line in found:
        position = content.index(raw, position)
        assert line == content.count(b"\n", 0, position) + 1
        position += len(raw)


@given(values=st.lists(st.dictionaries(st.text(max_size=3), VALUES), max_size=4), indent=INDENTS)
@settings(max_examples=50, deadline=None)
def test_objects_one_after_another_are_read(values: list[object], indent: int | None) -> None:
    content = "\n".join(json.dumps(v, indent=indent) for v in values).encode()
    if values:
        assert [orjson.loads(raw) for raw, _ in borders(content, 7)] == values


@given(content=st.binary(max_size=40))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_and_nothing_but_punctuation_is_lost(content: bytes, tmp_path: Path) -> None:
    problems = [e.problem[0] for e in split_elements(iter([content])) if e.problem is not None]
    if "unclosed" in problems:
        with pytest.raises(DataError, match="is never closed"):
            as_container(tmp_path / "a", content, "json")
        return
    rows = as_container(tmp_path / "a", content, "json")
    kept = b"".join([*rows.raws, *(r.raw for r in rows.rejects)])
    assert sorted(rows.records + [r.record for r in rows.rejects]) == list(
        range(len(rows.values) + len(rows.rejects))
    )
    if not content.startswith(b"\xef\xbb\xbf"):
        for byte in set(content) - set(b" \t\r\n,[]"):
            assert kept.count(byte) == content.count(byte)


@given(
    pieces=st.lists(
        st.sampled_from(
            [b'{"a":1}', b"[", b"]", b"{", b"}", b'"', b"\\", b",", b"\n", b" ", b'"b"', b":", b"1"]
        ),
        max_size=14,
    ),
    block=st.integers(1, 9),
)
@settings(max_examples=300, deadline=None)
def test_broken_arrays_do_not_depend_on_blocks(pieces: list[bytes], block: int) -> None:
    content = b"".join(pieces)
    blocks = [content[i : i + block] for i in range(0, len(content), block)]
    assert list(split_elements(iter(blocks))) == list(split_elements(iter([content])))


@given(
    values=st.lists(st.dictionaries(st.text(max_size=3), VALUES), min_size=1, max_size=4),
    before=st.dictionaries(
        st.sampled_from(["a", "b", "数"]), VALUES.filter(lambda v: not isinstance(v, list))
    ),
    indent=INDENTS,
    block=st.integers(1, 64),
)
@settings(max_examples=150, deadline=None)
def test_an_array_in_an_object_is_read_like_an_array(
    values: list[object], before: dict[str, object], indent: int | None, block: int
) -> None:
    content = json.dumps({**before, "data": values, "z": 1}, indent=indent).encode()
    blocks = [content[i : i + block] for i in range(0, len(content), block)]
    elements = list(split_elements(iter(blocks), field=b"data"))
    assert [e.problem for e in elements if e.problem] == []
    assert [orjson.loads(e.raw) for e in elements] == values
    assert [content.split(b"\n")[e.line - 1].count(e.raw.split(b"\n")[0]) for e in elements] != [0]


@pytest.mark.parametrize("block", [1 << 12, 1 << 22])
def test_runs_of_brackets_are_walked_in_one_step(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0

    class Counting:
        def search(self, text: bytes, position: int) -> re.Match[bytes] | None:
            nonlocal steps
            steps += 1
            return outside.search(text, position)

    outside = json_array._OUTSIDE
    monkeypatch.setattr(json_array, "_OUTSIDE", Counting())
    deep = b"[" * 50_000 + b"]" * 50_000
    content = b"[" + deep + b',{"a":1}]'
    blocks = [content[i : i + block] for i in range(0, len(content), block)]
    assert [len(e.raw) for e in split_elements(iter(blocks))] == [100_000, 7]
    assert steps <= 2 * len(blocks) + 4


ROWS = [{"instruction": f"i{i}", "output": f"o{i}"} for i in range(3)]
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    "value",
    [
        {"data": ROWS},
        {"rows": ROWS},
        {"训练": ROWS},
        {"version": "1.1", "data": ROWS},
        {"info": {"tags": ["a", "b"], "n": [{"x": 1}]}, "data": ROWS, "license": "MIT"},
        {"type": "text2text", "instances": ROWS},
        {"splits": ["train"], "train": ROWS},
        {"conversations": [{"messages": TURNS}] * 3},
    ],
    ids=lambda value: next(k for k, v in value.items() if isinstance(v, list)),
)
@pytest.mark.parametrize("indent", [None, 1])
def test_the_one_array_inside_an_object_holds_the_records(
    value: dict[str, object], indent: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False))
    rows = rows_of(path)
    assert rows.values in (ROWS, [{"messages": TURNS}] * 3)
    assert rows.records == [0, 1, 2]
    assert rows.rejects == []
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent).replace("\n", "\n\n"), "gb18030")
    assert rows_of(path).values == rows.values


def test_an_array_in_an_object_may_be_longer_than_the_head_that_is_looked_into(tmp_path: Path) -> None:
    rows = [{"text": "你" * 1000, "id": i} for i in range(300)]
    for count in (300, 1):
        value = {
            "info": {"a": 1},
            "data": rows[:count] * (300 // count) if count > 1 else [{"text": "x" * 300_000}],
        }
        (tmp_path / "a.json").write_text(json.dumps(value, ensure_ascii=False, indent=2))
        assert rows_of(tmp_path / "a.json").values == value["data"]


@pytest.mark.parametrize(
    "value",
    [
        {"messages": TURNS, "id": 1},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"id": "1", "dialog": [{"speaker": "a", "text": "q"}]},
        {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
        {"instances": [{"input": "", "output": "a"}], "instruction": "q"},
        {"tools": [{"name": "f"}], "messages": TURNS},
        {"prompt": "q", "completions": [{"response": "a", "score": 1}]},
        {"data": ["a", "b"]},
        {"data": []},
        {"a": 1},
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_object_that_is_a_record_stays_one(value: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, indent=1))
    assert rows_of(path).values == [value]


def test_of_two_arrays_in_an_object_none_is_guessed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(DataError, match=r"two arrays of records, 'train' and \"test\""):
        rows_of(path)


def test_a_truncated_array_in_an_object_says_so_once(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    whole = json.dumps({"version": 1, "data": ROWS})
    for end in range(whole.index("i0") + 20, len(whole) - 1):
        path.write_text(whole[:end])
        rows = rows_of(path)
        assert len(rows.values) + (reasons(rows) == ["truncated"]) >= 1
        assert reasons(rows) in (["truncated"], [])
        assert reasons(rows) == ["truncated"] or end == len(whole) - 1


BROKEN_ELEMENTS = [
    (b'[\n  {"a": 1},\n  {"a": tru},\n  {"a": 3}\n]', "json_syntax"),
    (b'[{"a":1},{"a":\xff},{"a":3}]', "utf8"),
    (b'[{"a":1},{"a":"\\ud800"},{"a":3}]', "surrogate"),
    (b'[{"a":1},NaN,{"a":3}]', "nan"),
    (b'[{"a":1},{"x":NaN},{"a":3}]', "nan"),
    (b'[{"a":1},{"x":[1}},{"a":3}]', "json_syntax"),
    (b'[{"a":1},{"x":{"y":1]},{"a":3}]', "json_syntax"),
    (b'[{"a":1},"text",{"a":3}]', "not_object"),
    (b'[{"a":1},,{"a":3}]', "json_syntax"),
    (b'[{"a":1},' + b"[" * 300 + b"]" * 300 + b',{"a":3}]', "depth"),
    (b'[\n  {"a": 1},\n  {\n    "x": "no end,\n    "y": "z"\n  },\n  {"a": 3}\n]', "json_syntax"),
]


@pytest.mark.parametrize(("content", "reason"), BROKEN_ELEMENTS, ids=range(len(BROKEN_ELEMENTS)))
def test_a_broken_element_is_rejected_alone(content: bytes, reason: str, tmp_path: Path) -> None:
    rows = as_container(tmp_path / "a", content, "json")
    assert rows.values == [{"a": 1}, {"a": 3}]
    assert rows.records == [0, 2]
    assert (only(rows).record, only(rows).reason) == (1, reason)


@pytest.mark.parametrize(
    "content",
    [
        b'[\n  {"a": 1},\n  {\n    "x": {"y": 1\n  },\n  {"a": 3}\n]',
        b'[\n{"a": 1},\n{"x": [1, 2\n,\n{"a": 3}\n]',
        b'[\n{"a": 1},\n{"x": "raw\nline"},\n{"a": 3}\n]',
        b'[\n{"a": 1},\n{"x": {"y": [{"z": 1}, {"z": 2}]}' + b',\n{"a": 3}' * 20 + b"\n]",
    ],
)
def test_behind_a_missing_bracket_nothing_is_guessed_and_the_line_is_named(
    content: bytes, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="the value that begins in line 3 is never closed"):
        as_container(tmp_path / "a", content, "json")


@pytest.mark.parametrize(
    ("content", "num_values", "found"),
    [
        (b'[{"a":1},{"a":2', 1, ["truncated"]),
        (b'[{"a":1},', 1, ["truncated"]),
        (b'[{"a":1}', 1, ["truncated"]),
        (b'[{"a":1},{"a":2},]', 2, ["json_syntax"]),
        (b'[{"a":1}]\n[{"a":2}]', 2, ["json_syntax"]),
        (b'[{"a":1}] trailing', 1, ["json_syntax"]),
        (b'{"a":1', 0, ["truncated"]),
        (b"", 0, ["json_syntax"]),
        (b" \n", 0, ["json_syntax"]),
        (b"[]", 0, []),
        (b"\xef\xbb\xbf[]", 0, []),
        (b"42", 0, ["not_object"]),
        (b"nul", 0, ["json_syntax"]),
    ],
)
def test_files_that_end_wrong_say_so_once(
    content: bytes, num_values: int, found: list[str], tmp_path: Path
) -> None:
    rows = as_container(tmp_path / "a", content, "json")
    assert len(rows.values) == num_values
    assert reasons(rows) == found


def test_an_element_above_the_bound_is_rejected_alone(tmp_path: Path) -> None:
    long = b'{"text":"' + b"x" * (65 << 20) + b'"}'
    rows = as_container(tmp_path / "a", b'[{"a":1},\n' + long + b',\n{"a":2}]', "json")
    assert [v["a"] for v in rows.values] == [1, 2]
    assert rows.lines == [1, 3]
    assert (only(rows).reason, only(rows).line) == ("too_long", 2)
    assert only(rows).raw == long[: 64 << 10]
    assert str(len(long)) in only(rows).detail


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["y", "n", "i"])
def test_json_test_suite(kind: str) -> None:
    folder = SHARED / "messy" / "json_test_suite"
    if not folder.is_dir():
        pytest.skip("JSONTestSuite is not beside the checkout")
    paths = sorted(folder.rglob(f"{kind}_*.json"))
    assert paths
    accepted = [path.name for path in paths if _is_accepted(path)]
    if kind == "y":
        assert accepted == [path.name for path in paths]
    if kind == "n":
        assert accepted == []


def _is_accepted(path: Path) -> bool:
    """Whether a file is JSON; values that are no objects are JSON too, though no records."""
    try:
        return all(reason == "not_object" for reason in reasons(rows_of(path)))
    except DataError:
        return False


@pytest.mark.parametrize("layout", ["array", "indented", "lines"])
def test_a_stream_of_an_agents_events_is_one_record(tmp_path: Path, layout: str) -> None:
    events = [
        {"id": 0, "source": "user", "action": "message", "args": {"content": "列出文件"}},
        {"id": 1, "source": "agent", "action": "run", "args": {"command": "ls"}},
        {"id": 2, "source": "agent", "cause": 1, "observation": "run", "content": "a.py"},
    ]
    path = tmp_path / ("events.jsonl" if layout == "lines" else "trajectory.json")
    lines = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
    text = lines if layout == "lines" else json.dumps(events, indent=2 if layout == "indented" else None)
    path.write_text(text, encoding="utf-8")
    seen = sniff(str(path))
    (piece,) = cut(str(path), "", seen)
    (rows,) = read(piece)
    assert rows.values == [{"events": events}]
    assert rows.raws == [text.encode()]
    path.write_text(text + "{", encoding="utf-8")
    (rows,) = read(piece)
    assert [(r.record, r.reason, r.raw) for r in rows.rejects] == [(0, "json_syntax", (text + "{").encode())]


@pytest.mark.parametrize("field", ["history", "trajectory", "events", "steps", "contents"])
def test_a_list_of_an_agents_steps_is_part_of_its_record(tmp_path: Path, field: str) -> None:
    path = tmp_path / "run.json"
    record = {"id": 1, field: [{"kind": "x", "action": "run"}, {"observation": "run"}]}
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    seen = sniff(str(path))
    (rows,) = read(cut(str(path), "", seen)[0])
    assert rows.values == [record]
