"""Tables in any dialect: every record is a value or a reject, and a stray quote costs its line only."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import as_container, reasons, rows_of

from datamix.core.errors import DataError
from datamix.read import sniff


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", "q,a\n1,2\n", {"delimiter": ","}),
        ("a.tsv", "q\ta\n1\t2\n", {"delimiter": "\t"}),
        ("a.csv", "q;a\n1,5;2\n3,5;4\n", {"delimiter": ";"}),
        ("a.csv", "q|a\n1|2\n", {"delimiter": "|"}),
        ("a.csv", "q,a\n'x, y',2\n'z, w',3\n", {"quotechar": "'"}),
        ("a.csv", 'q,a\n"say \\"hi, you\\"",2\n"x",3\n', {"escapechar": "\\"}),
        ("a.csv", 'q, a\n"x, y", "z, w"\n', {"skipinitialspace": "true"}),
        ("a.csv", "问题,回答\n头疼，怎么办,休息；喝水\n发热，怎么办,就医\n", {"delimiter": ","}),
    ],
)
def test_the_dialect_is_told_from_the_head(
    name: str, content: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    found = dict(sniff(str(path)).options)
    assert found | options == found
    assert [len(value) for value in rows_of(path).values] == [2] * (content.count("\n") - 1)


PLAIN = [
    ["q", "a"],
    ['"yes" said he, and left', "1"],
    ["two, three", '6" nails'],
    ['say "x"', '"'],
    ['"a', "b"],
    ["c", 'd"'],
]


@pytest.mark.parametrize("delimiter", ["\t", "|", ";"])
@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.txt"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_quotes_are_characters_where_every_row_fits_so(
    delimiter: str, name: str, newline: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text("".join(delimiter.join(row) + newline for row in PLAIN), newline="")
    rows = rows_of(path)
    assert [list(value.values()) for value in rows.values] == PLAIN[1:]
    assert rows.rejects == []


def test_quotes_that_would_join_rows_are_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('q\ta\n"one\t1\ntwo"\t2\nthree\t3\n"four" x\t4\n')
    assert [value["q"] for value in rows_of(path).values] == ['"one', 'two"', "three", '"four" x']


def test_one_broken_quote_in_a_quoted_table_stays_one_reject(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("q,a\n" + '"x","y"\n' * 300 + '"x"z,"y"\n' + '"x","y"\n' * 300)
    rows = rows_of(path)
    assert reasons(rows) == ["csv_syntax"]
    assert rows.values == [{"q": "x", "a": "y"}] * 600


def test_quoted_line_breaks_blank_lines_and_carriage_returns(tmp_path: Path) -> None:
    content = b'q,a\r\n"two\nlines","say ""hi"""\r\n\r\n\n x ,\r\n'
    rows = as_container(tmp_path / "a", content, "csv")
    assert rows.values == [{"q": "two\nlines", "a": 'say "hi"'}, {"q": " x ", "a": ""}]
    assert rows.lines == [2, 6]
    assert rows.raws == [b'"two\nlines","say ""hi"""', b" x ,"]


def test_lines_may_end_in_a_lone_carriage_return(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'q,a\r1,2\r"3\r4",5\r')
    assert rows_of(path).values == [{"q": "1", "a": "2"}, {"q": "3\n4", "a": "5"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1", "csv_columns"),
        (b"1,2,3", "csv_columns"),
        (b'"x"y,2', "csv_syntax"),
        (b'"never closed,2', "csv_syntax"),
        (b"\xff,2", "utf8"),
        (b"\x00,2", "nul"),
    ],
)
def test_a_broken_record_is_rejected_alone_with_its_bytes(line: bytes, reason: str, tmp_path: Path) -> None:
    content = b"q,a\n1,2\n" + line + b"\n5,6\n7,8\n"
    rows = as_container(tmp_path / "a", content, "csv")
    assert [value["q"] for value in rows.values] == ["1", "5", "7"]
    assert rows.records == [0, 2, 3]
    assert rows.lines == [2, 4, 5]
    assert [(r.record, r.line, r.reason, r.raw) for r in rows.rejects] == [(1, 3, reason, line)]


def test_a_quote_that_never_closes_does_not_swallow_what_follows(tmp_path: Path) -> None:
    content = b'q,a\n"open,1\n' + b'"fine",2\n' * 5000
    rows = as_container(tmp_path / "a", content, "csv")
    assert reasons(rows) == ["csv_syntax"]
    assert len(rows.values) == 5000


def test_long_fields_are_read(tmp_path: Path) -> None:
    rows = as_container(tmp_path / "a", b'q,a\n"' + b"x\n" * 200_000 + b'",1\n', "csv")
    assert len(rows.values[0]["q"]) == 400_000


def test_a_line_above_the_bound_is_rejected_alone(tmp_path: Path) -> None:
    rows = as_container(tmp_path / "a", b"q,a\n1,2\n" + b"x" * (65 << 20) + b"\n5,6\n", "csv")
    assert [value["q"] for value in rows.values] == ["1", "5"]
    assert [(r.reason, len(r.raw)) for r in rows.rejects] == [("too_long", 64 << 10)]


def test_a_table_may_have_very_many_columns(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(100_000)]
    (tmp_path / "a.csv").write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    (value,) = rows_of(tmp_path / "a.csv").values
    assert list(value) == names


def test_names_of_columns(tmp_path: Path) -> None:
    assert as_container(tmp_path / "a", b",q\n0,x\n", "csv").values == [{"column_1": "0", "q": "x"}]
    assert as_container(tmp_path / "a", b"q,a\n", "csv").values == []
    assert as_container(tmp_path / "a", b"", "csv").values == []
    with pytest.raises(DataError, match="two columns are named 'q'"):
        as_container(tmp_path / "a", b"q,q\n1,2\n", "csv")


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=8)


@given(
    table=st.lists(st.tuples(cells, cells), max_size=8),
    delimiter=st.sampled_from([",", "\t", ";", "|"]),
    ending=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16-le", "gb18030"]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_csv_module_writes_is_read_back(
    table: list[tuple[str, str]], delimiter: str, ending: str, encoding: str, tmp_path: Path
) -> None:
    written = io.StringIO()
    writer = csv.writer(written, delimiter=delimiter, lineterminator=ending)
    writer.writerows([("q", "a"), *table])
    content = written.getvalue().encode(encoding)
    rows = as_container(
        tmp_path / "a",
        content,
        "csv",
        encoding=encoding,
        options=(("delimiter", delimiter),),
        compression=None,
    )
    assert rows.rejects == []
    assert [(v["q"], v["a"]) for v in rows.values] == table


@given(
    content=st.lists(st.sampled_from([b'"', b",", b"\n", b"x", b"\xff", b"\r\n", b"\x00"]), max_size=20).map(
        b"".join
    )
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_values_and_rejects_in_order(content: bytes, tmp_path: Path) -> None:
    rows = as_container(tmp_path / "a", b"q,a\n" + content, "csv")
    ordinals = sorted([*rows.records, *(r.record for r in rows.rejects)])
    assert ordinals == list(range(len(ordinals)))
    kept = b"".join([*rows.raws, *(r.raw for r in rows.rejects)])
    for byte in b'",x\xff\x00':
        assert kept.count(byte) == content.count(byte)
