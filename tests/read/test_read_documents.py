"""Trees of text and Markdown: a file is a document."""

from pathlib import Path

import pytest
from reading import as_container, reasons, rows_of

from datamix.core.contracts import Slice
from datamix.read import find, read


def test_each_file_is_one_document_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# 标题\n\n正文\r\n", encoding="utf-8", newline="")
    (tmp_path / "b.txt").write_bytes("\ufeffsecond\u2028still".encode())
    values = [value for path in find(["."], str(tmp_path)) for value in rows_of(path).values]
    assert values == [
        {"text": "# 标题\n\n正文\r\n", "path": "a.md"},
        {"text": "second\u2028still", "path": "b.txt"},
    ]


def test_the_name_may_be_given_relative_to_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    piece = Slice(str(tmp_path / "a.md"), "", "text", options=(("name", "guide/a.md"),))
    assert next(read(piece)).values == [{"text": "text", "path": "guide/a.md"}]


@pytest.mark.parametrize(
    ("content", "found"), [(b"", []), (b" \n", []), (b"a\xff", ["utf8"]), (b"a\x00", ["nul"])]
)
def test_what_is_no_document(content: bytes, found: list[str], tmp_path: Path) -> None:
    rows = as_container(tmp_path / "a.txt", content, "text")
    assert rows.values == []
    assert reasons(rows) == found


def test_a_text_above_the_bound_is_told_without_being_held(tmp_path: Path) -> None:
    rows = as_container(tmp_path / "a.txt", b"line\n" * (14 << 20), "text")
    assert reasons(rows) == ["too_long"]
    assert "format: lines" in rows.rejects[0].detail
    assert len(rows.rejects[0].raw) == 64 << 10


def test_a_too_long_text_in_another_encoding_keeps_its_head(tmp_path: Path) -> None:
    content = "你好，".encode("gb18030") * (12 << 20)
    rows = as_container(tmp_path / "a.txt", content, "text", encoding="gb18030")
    assert reasons(rows) == ["too_long"]
    assert rows.rejects[0].raw.startswith("你好".encode())
