import gzip
import io
import zipfile
from pathlib import Path

import pytest
from reading import rows_of

from datamix.core.errors import DataError
from datamix.read import documents, sniff

pytest.importorskip("resiliparse", reason="the extra docs is not installed")
pytest.importorskip("pypdfium2", reason="the extra docs is not installed")
pytest.importorskip("mammoth", reason="the extra docs is not installed")

PAGE = """<!DOCTYPE html><html><head><meta charset="{charset}"><title>春天</title><script>var a = 1;</script></head><body>
<nav><ul><li><a href="/">首页</a></li><li><a href="/a">关于我们</a></li></ul></nav>
<main><article><h1>春天</h1><p>春天来了，河边的柳树发了芽，燕子从南方飞了回来，孩子们在草地上放风筝。</p>
<ul><li>柳树</li><li>燕子</li></ul></article></main><footer>版权所有</footer></body></html>"""


def pdf(text: str) -> bytes:
    """A PDF of one page with one line of Helvetica; an empty text draws a box."""
    drawn = f"BT /F1 24 Tf 72 700 Td ({text}) Tj ET" if text else "72 700 100 100 re f"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = f"xref\n0 6\n0000000000 65535 f \n{table}trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return (body + end).encode()


def packed(parts: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as whole:
        for name, content in parts.items():
            whole.writestr(name, content)
    return stream.getvalue()


def docx(*paragraphs: str) -> bytes:
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs)
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    return packed(
        {
            "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            '<Default Extension="xml" ContentType="application/xml"/></Types>',
            "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            f'<Relationship Id="r1" Type="{office}" Target="word/document.xml"/></Relationships>',
            "word/document.xml": f'<w:document xmlns:w="{word}"><w:body>{body}</w:body></w:document>',
        }
    )


def epub(*chapters: str) -> bytes:
    """A book whose package lies in a folder and lists its chapters in another order than their names."""
    names = [f"第{9 - number}章.xhtml" for number in range(len(chapters))]
    items = "".join(f'<item id="c{i}" href="text/{name}"/>' for i, name in enumerate(names))
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(names)))
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf">'
        f"<manifest>{items}</manifest><spine>{spine}</spine></package>"
    )
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
    )
    pages = {
        f"OEBPS/text/{name}": f"<html><body><p>{text}</p></body></html>"
        for name, text in zip(names, chapters, strict=True)
    }
    return packed(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": container,
            "OEBPS/book.opf": package,
            **pages,
        }
    )


def warc(*pages: tuple[str, str, str, bytes]) -> bytes:
    """Records of (WARC type, URL, HTTP content type, body)."""
    made = b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 4\r\n\r\nmade\r\n\r\n"
    for kind, url, content_type, body in pages:
        http = (
            f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        plain = kind == "conversion"
        block = body if plain else http + body
        head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Length: {len(block)}\r\n"
        head += f"Content-Type: {content_type if plain else 'application/http; msgtype=' + kind}\r\n\r\n"
        made += head.encode() + block + b"\r\n\r\n"
    return made


@pytest.mark.parametrize("charset", ["utf-8", "gbk"])
def test_of_a_web_page_the_main_content_is_taken(charset: str, tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(PAGE.format(charset=charset).encode(charset))
    [row] = rows_of(path).values
    assert row["path"] == "a.html"
    assert "柳树发了芽" in row["text"]
    assert "燕子" in row["text"].splitlines()[-1]
    assert "关于我们" not in row["text"]
    assert "var a" not in row["text"]
    assert "<" not in row["text"]


def test_a_page_of_an_unknown_kind_of_layout_is_taken_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<html><body><footer>only this</footer></body></html>")
    assert rows_of(path).values == [{"text": "only this", "path": "a.html"}]


@pytest.mark.parametrize(
    ("content", "container", "text"),
    [
        (pdf("Spring is here"), "pdf", "Spring is here"),
        (docx("春天来了。", "Spring &amp; sun"), "docx", "春天来了。\n\nSpring & sun"),
        (epub("第一", "second"), "epub", "第一\n\nsecond"),
    ],
)
def test_a_document_is_one_record(content: bytes, container: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "b.bin"
    path.write_bytes(content)
    assert sniff(str(path)).container == container
    rows = rows_of(path)
    assert rows.values == [{"text": text, "path": "b.bin"}]
    assert rows.raws == [content]


@pytest.mark.parametrize("content", [pdf("Spring")[:150], docx("春天")[:-100], epub("春天")[:300]])
def test_a_damaged_document_is_rejected_with_its_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(content)
    if sniff(str(path)).container == "text":
        pytest.skip("cut before its magic")
    [reject] = rows_of(path).rejects
    assert (reject.reason, reject.raw) == ("document", content)


def test_a_scan_is_rejected_as_a_document_without_text(tmp_path: Path) -> None:
    path = tmp_path / "scan.pdf"
    path.write_bytes(pdf(""))
    assert [reject.reason for reject in rows_of(path).rejects] == ["no_text"]


def test_a_document_that_unpacks_to_too_much_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_UNPACKED_BYTES", 1000)
    path = tmp_path / "bomb.docx"
    path.write_bytes(docx("a" * 2000))
    [reject] = rows_of(path).rejects
    assert "unpacks to" in reject.detail


def test_a_page_of_endless_nesting_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "deep.html"
    path.write_text("<!DOCTYPE html>" + "<div>" * 100_000)
    assert "nested deeper" in rows_of(path).rejects[0].detail
    path.write_text("<!DOCTYPE html>" + "<p>a<br>" * 5000)
    assert rows_of(path).rejects == []


@pytest.mark.parametrize("is_packed", [False, True])
def test_pages_of_a_web_archive_are_records(is_packed: bool, tmp_path: Path) -> None:
    content = warc(
        ("request", "http://a.example/", "text/html", b"GET"),
        ("response", "http://a.example/", "text/html; charset=gbk", PAGE.format(charset="gbk").encode("gbk")),
        ("response", "http://a.example/b.png", "image/png", b"\x89PNG"),
        ("response", "http://a.example/c", "text/html", b"<html><body></body></html>"),
        ("conversion", "http://a.example/d", "text/plain", "纯文本".encode()),
    )
    path = tmp_path / "x.warc.gz"
    path.write_bytes(gzip.compress(content) if is_packed else content)
    rows = rows_of(path)
    assert [(row["url"], record) for row, record in zip(rows.values, rows.records, strict=True)] == [
        ("http://a.example/", 0),
        ("http://a.example/d", 2),
    ]
    assert "柳树发了芽" in rows.values[0]["text"]
    assert rows.values[1]["text"] == "纯文本"
    assert [(reject.record, reject.reason) for reject in rows.rejects] == [(1, "no_text")]
    if is_packed:
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(DataError, match="truncated"):
            rows_of(path)


@pytest.mark.parametrize("content", [pdf("a"), docx("a"), epub("a"), b"<!DOCTYPE html><p>a", warc()])
def test_without_the_extra_the_way_to_it_is_named(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "find_spec", lambda name: None)
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r'pip install "\.\[docs\]"'):
        sniff(str(path))
