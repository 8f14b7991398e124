"""JSON Lines: every line is a value or a reject, whatever stands in it and wherever the file is cut."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import as_container, in_order, joined, only, reasons, rows_of

from datamix.core.contracts import Slice
from datamix.read import read
from datamix.read.lines import LongLine, Tail, split_lines

GOOD = b'{"text":"\xe4\xbd\xa0\xe5\xa5\xbd"}'

BROKEN = [
    (b'{"text": "no end', "json_syntax"),
    (b'{"a":1}{"b":2}', "json_syntax"),
    (b"{'a': 1}", "json_syntax"),
    (b'{"text":"\xff"}', "utf8"),
    (b'{"text":"\xed\xa0\x80"}', "utf8"),
    (b'{"text":"\\ud800"}', "surrogate"),
    (b'{"text":"\\udc00x"}', "surrogate"),
    (b'{"text":"a\x00b"}', "nul"),
    (b'{"text":NaN}', "nan"),
    (b'{"text":[-Infinity]}', "nan"),
    (b'{"text":1e999}', "number"),
    (b'{"a":' * 257 + b"1" + b"}" * 257, "depth"),
    (b"[" * 100_000, "depth"),
    (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "depth"),
    (b"[1, 2]", "not_object"),
    (b'"text"', "not_object"),
    (b"12345", "not_object"),
    (b"null", "not_object"),
    (b"\x0c", "json_syntax"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN, ids=[f"{r}-{i}" for i, (_, r) in enumerate(BROKEN)])
def test_a_broken_line_is_rejected_alone_with_its_bytes(line: bytes, reason: str, tmp_path: Path) -> None:
    rows = as_container(tmp_path / "a", b"\n".join([GOOD, line, GOOD, b""]), "jsonl")
    assert rows.values == [{"text": "你好"}] * 2
    assert rows.records == [0, 2]
    assert rows.lines == [1, 3]
    reject = only(rows)
    assert (reject.record, reject.line, reject.reason, reject.raw) == (1, 2, reason, line)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'{"text":"a\\u0000b"}', {"text": "a\x00b"}),
        ('{"text":"a\u2028b\u2029c\u0085d"}'.encode(), {"text": "a\u2028b\u2029c\u0085d"}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b'{"a":{"b":1,"b":2}}', {"a": {"b": 2}}),
        (b'{"id":18446744073709551615}', {"id": 18446744073709551615}),
        (b'{"id":-9223372036854775808}', {"id": -9223372036854775808}),
        (b'{"id":18446744073709551616}', {"id": "18446744073709551616"}),
        (b'{"id":[{"x":-9223372036854775809}],"y":1}', {"id": [{"x": "-9223372036854775809"}], "y": 1}),
        (b'{"t":"18446744073709551616","f":1.5}', {"t": "18446744073709551616", "f": 1.5}),
        (b'{"f":1.12345678901234567890123}', {"f": 1.1234567890123457}),
        (b'{"f":1e-1}', {"f": 0.1}),
        (b'{"text":"\\ud83d\\ude00"}', {"text": "😀"}),
        (b'{"a":' * 256 + b"1" + b"}" * 256, None),
    ],
)
def test_what_is_strictly_json_is_kept_as_it_stands(line: bytes, value: object, tmp_path: Path) -> None:
    rows = as_container(tmp_path / "a", line + b"\n", "jsonl")
    assert rows.rejects == []
    assert rows.values == [json.loads(line) if value is None else value]


def test_byte_order_mark_carriage_returns_and_blank_lines_are_no_records(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"a":1}\r\n\r\n \t\n{"a":2}\n\n{"a":3}'
    rows = as_container(tmp_path / "a", content, "jsonl")
    assert rows.values == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert rows.records == [0, 1, 2]
    assert rows.lines == [1, 4, 6]


@pytest.mark.parametrize("tail", [b'{"text":"cut he', b'{"text":', b'{"a":1,', b'{"a":[{"b":2}', b"tru"])
def test_a_last_line_that_was_cut_off_is_told_as_such(tail: bytes, tmp_path: Path) -> None:
    rows = as_container(tmp_path / "a", GOOD + b"\n" + tail, "jsonl")
    assert len(rows.values) == 1
    assert only(rows).reason in ("truncated_line", "json_syntax")
    assert only(rows).raw == tail
    if tail != b"tru":
        assert only(rows).reason == "truncated_line"


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    assert as_container(tmp_path / "a", b"", "jsonl").values == []


def test_lines_are_documents_where_that_was_declared(tmp_path: Path) -> None:
    content = "第一行\r\n\n  two \u2028 still two\n".encode() + b"bad \xff\nnul \x00\nlast"
    rows = as_container(tmp_path / "a", content, "lines")
    assert [v["text"] for v in rows.values] == ["第一行", "  two \u2028 still two", "last"]
    assert rows.lines == [1, 3, 6]
    assert reasons(rows) == ["utf8", "nul"]


def test_limit_counts_rejects_too_and_stops_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":0}\nbad\n' + b"".join(b'{"a":%d}\n' % i for i in range(2, 100)))
    rows = rows_of(path, limit=5)
    assert [v["a"] for v in rows.values] == [0, 2, 3, 4]
    assert [r.record for r in rows.rejects] == [1]
    assert rows_of(path, limit=2).records == [0]


def test_chunks_are_bounded_in_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a":1}\n' * 2500)
    sizes = [len(rows.values) for rows in read(Slice(str(path), "", "jsonl"), chunk_records=1000)]
    assert sizes == [1000, 1000, 500]


def test_a_line_above_the_bound_is_told_without_being_held(tmp_path: Path) -> None:
    long = b'{"text":"' + b"x" * (65 << 20) + b'"}'
    rows = as_container(tmp_path / "a", GOOD + b"\n" + long + b"\n" + GOOD, "jsonl")
    assert rows.records == [0, 2]
    assert rows.lines == [1, 3]
    reject = only(rows)
    assert reject.reason == "too_long"
    assert reject.raw == long[: 64 << 10]
    assert str(len(long)) in reject.detail


lines_or_bytes = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from([GOOD, b"", b"\r", b" ", b"[1]", b'{"a":"\xe4', b'{"a":1}\r', b"\xef\xbb\xbf{}"]),
    ),
    max_size=12,
).map(b"\n".join)


@given(content=lines_or_bytes, chunk_records=st.integers(1, 5))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_and_rejects_tile_the_file(content: bytes, chunk_records: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    rows = joined(list(read(Slice(str(path), "", "jsonl"), chunk_records)))
    expected = [
        (number, line)
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
        if line.strip(b" \t\r")
    ]
    assert [raw for _, raw in in_order(rows)] == [line for _, line in expected]
    assert [ordinal for ordinal, _ in in_order(rows)] == list(range(len(expected)))
    assert sorted([*rows.lines, *(r.line for r in rows.rejects)]) == [number for number, _ in expected]


@given(content=lines_or_bytes, size=st.integers(1, 40), container=st.sampled_from(["jsonl", "lines"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_gives_the_records_of_the_whole_file(
    content: bytes, size: int, container: str, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    whole = joined(list(read(Slice(str(path), "", container))))
    stops = [*range(size, len(content), size), len(content)]
    cuts = [Slice(str(path), "", container, start=stop - size, stop=stop) for stop in stops[:-1]]
    cuts.append(Slice(str(path), "", container, start=size * (len(stops) - 1), stop=len(content)))
    parts = [joined(list(read(piece))) for piece in cuts]
    assert [raw for part in parts for _, raw in in_order(part)] == [raw for _, raw in in_order(whole)]
    assert [v for part in parts for v in part.values] == whole.values
    assert [r for part in parts for r in reasons(part)] == reasons(whole)


@given(
    content=st.binary(max_size=60).map(lambda b: b.replace(b"a", b"\n")),
    block=st.integers(1, 9),
    bound=st.integers(0, 9),
)
@settings(max_examples=300, deadline=None)
def test_lines_do_not_depend_on_blocks(content: bytes, block: int, bound: int) -> None:
    blocks = [content[i : i + block] for i in range(0, len(content), block)]
    found: list[tuple[int, bytes]] = []
    for item in split_lines(blocks, max_bytes=max(bound, block)):
        if isinstance(item, LongLine):
            found.append((item.num_bytes, item.head))
        else:
            found += [(len(line), line) for line in ([item.line] if isinstance(item, Tail) else item)]
    lines = content.split(b"\n")
    assert found == [(len(line), line) for line in (lines if lines[-1] else lines[:-1])]
