"""Documents to rows: each file, or page of a web archive, is one document, ``{"text": ..., "path": ...}``.

The path is the ``name`` option where the caller gives one (a path relative to what was asked for), else the
file's name: never the path on this machine. Text and Markdown are taken as they are; of pages, PDF, Word
documents and e-books the text is extracted. Memory: the document, at most ``MAX_RECORD_BYTES``.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from io import BytesIO
from urllib.parse import unquote
from xml.etree import ElementTree

from datamix.core.contracts import Reject, Rows, Slice
from datamix.core.errors import DataError, shown_name
from datamix.read.decompress import open_stream
from datamix.read.json_lines import parse_text
from datamix.read.lines import LONG_HEAD_BYTES, MAX_RECORD_BYTES, Overflow, utf8_blocks, with_euro

NAMES = {
    "html": "an HTML page",
    "pdf": "a PDF document",
    "docx": "a Word document",
    "epub": "an e-book",
    "warc": "a web archive",
}
_PACKAGES = ("resiliparse", "pypdfium2", "mammoth", "warcio")
_UNPACKED_BYTES = 4 * MAX_RECORD_BYTES  # of a zip: more is a bomb
_MAX_NESTING = 2048  # of elements in a page: finding the main content takes the square of it
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
# Elements that need no end tag.
_ENDLESS = re.compile(
    "area|base|br|col|dd|dt|embed|hr|img|input|li|link|meta|option|p|param|source|td|th|tr|track|wbr",
    re.IGNORECASE,
)
_CHUNK_BYTES = 8 << 20
_PAGES = ("text/html", "application/xhtml+xml", "text/plain")


def require_extractor(path: str, container: str) -> None:
    """Raises DataError where the extra ``docs`` is not installed."""
    if any(find_spec(name) is None for name in _PACKAGES):
        raise DataError(
            f'{shown_name(path)}: is {NAMES[container]}. To take its text: pip install ".[docs]"; or extract it '
            "yourself, to .txt, .md or .jsonl files, and name those."
        )


def read_document(piece: Slice, chunk_records: int) -> Iterator[Rows]:
    """The whole file as one row, or why there is none; a text of nothing but white space has none."""
    is_text = piece.container == "text"
    line = 1 if is_text else None
    parts: list[bytes] = []
    num_bytes = 0
    overflow: Overflow | None = None
    for block in utf8_blocks(piece):
        num_bytes += len(block)
        if overflow is None and num_bytes > MAX_RECORD_BYTES:
            overflow, parts = Overflow(parts), []
        if overflow is None:
            parts.append(block)
        else:
            overflow.add(block)
    if overflow is not None:
        long = overflow.close()
        advice = "; `format: lines` reads each line as a document" if is_text else ""
        yield Rows([], [], [], [], [Reject(0, line, "too_long", long.detail + advice, long.head)])
        return
    raw = b"".join(parts)
    if is_text and not raw.strip():
        return
    try:
        text, problem = (
            parse_text(with_euro(raw, piece.encoding))
            if is_text
            else (_EXTRACTORS[piece.container](raw), None)
        )
        if not is_text and not text.strip():
            problem = ("no_text", f"is {NAMES[piece.container]} without text: pictures or scans")
    except Exception as error:  # parsers of damaged documents throw anything: only this one is rejected
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        problem = ("document", f"is not readable as {NAMES[piece.container]}: {detail}")
    if problem is not None:
        yield Rows([], [], [], [], [Reject(0, line, *problem, raw)])
        return
    name = dict(piece.options).get("name", piece.path.rsplit("/", 1)[-1])
    yield Rows([{"text": text, "path": name}], [0], [line], [raw])


def _main_text(page: str) -> str:
    """The main content of a page, or all its text where no main content is recognised."""
    return _plain(page, main_content=True) or _plain(page)


def _plain(page: str, main_content: bool = False) -> str:
    """The text of a page with its line structure. Raises ValueError where it is nested too deep."""
    depth = 0
    for closes, name in _TAG.findall(page) if page.count("<") > _MAX_NESTING else ():
        if not _ENDLESS.fullmatch(name):
            depth = max(depth - 1, 0) if closes else depth + 1
        if depth > _MAX_NESTING:
            raise ValueError(f"elements are nested deeper than {_MAX_NESTING} levels")
    # the packages of the extra `docs` are imported where they are used
    from resiliparse.extract.html2text import extract_plain_text

    text: str = extract_plain_text(page, preserve_formatting=True, main_content=main_content, alt_texts=False)
    return text.replace("\x00", "").strip()


def _pdf(raw: bytes) -> str:
    import pypdfium2

    document = pypdfium2.PdfDocument(raw)
    texts: list[str] = []
    try:
        for number in range(len(document)):
            page = document[number]
            words = page.get_textpage()
            try:
                text = words.get_text_bounded().replace("\r\n", "\n")
            finally:
                words.close()
                page.close()
            # PDFium writes U+FFFE where a word is divided at the end of a line.
            texts.append(text.replace("\ufffe\n", "").replace("\ufffe", "").replace("\x00", "").strip())
    finally:
        document.close()
    return "\n\n".join(filter(None, texts))


def _docx(raw: bytes) -> str:
    import mammoth

    with zipfile.ZipFile(BytesIO(raw)) as package:
        _refuse_bomb(package)
    no_image = mammoth.images.img_element(lambda image: {})
    return _plain(mammoth.convert_to_html(BytesIO(raw), convert_image=no_image).value)


def _epub(raw: bytes) -> str:
    """The chapters in reading order, as the book's package document lists them."""
    with zipfile.ZipFile(BytesIO(raw)) as book:
        _refuse_bomb(book)
        rootfile = ElementTree.fromstring(book.read("META-INF/container.xml")).find(".//{*}rootfile")
        if rootfile is None:
            raise ValueError("META-INF/container.xml names no package")
        home = rootfile.attrib["full-path"]
        package = ElementTree.fromstring(book.read(home))
        names = {item.attrib["id"]: item.attrib["href"] for item in package.iterfind("{*}manifest/{*}item")}
        chapters = [
            _decoded(book.read(posixpath.normpath(posixpath.join(posixpath.dirname(home), unquote(name)))))
            for name in (names[item.attrib["idref"]] for item in package.iterfind("{*}spine/{*}itemref"))
        ]
    return "\n\n".join(filter(None, map(_plain, chapters)))


def _refuse_bomb(package: zipfile.ZipFile) -> None:
    num_bytes = sum(part.file_size for part in package.infolist())
    if num_bytes > _UNPACKED_BYTES:
        raise ValueError(f"it unpacks to {num_bytes} bytes, more than {_UNPACKED_BYTES >> 20} MiB")


def _decoded(raw: bytes) -> str:
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    text: str = bytes_to_str(raw, detect_encoding(raw) or "utf-8")
    return text


_EXTRACTORS: dict[str, Callable[[bytes], str]] = {
    "html": lambda raw: _main_text(raw.decode()),
    "pdf": _pdf,
    "docx": _docx,
    "epub": _epub,
}


def read_warc(piece: Slice, chunk_records: int) -> Iterator[Rows]:
    """The pages of a web archive in order: responses that are HTML or text, and extracted texts (WET)."""
    rows, num_bytes = Rows([], [], [], []), 0
    for record, (raw, kind, url, _) in enumerate(_pages(piece)):
        text, problem = "", None
        try:
            if len(raw) > MAX_RECORD_BYTES:
                problem, raw = ("too_long", f"more than {MAX_RECORD_BYTES >> 20} MiB"), raw[:LONG_HEAD_BYTES]
            else:
                text = _decoded(raw).replace("\x00", "").strip()
                text = text if kind == "text/plain" else _main_text(text)
                problem = None if text else ("no_text", f"is a page without text: {url}")
        except ValueError as error:
            problem = ("document", f"{url}: {error}")
        if problem is not None:
            rows.rejects.append(Reject(record, None, *problem, raw))
        else:
            rows.values.append({"text": text, "url": url})
            rows.records.append(record)
            rows.lines.append(None)
            rows.raws.append(raw)
        num_bytes += len(raw)
        if num_bytes > _CHUNK_BYTES or len(rows.values) + len(rows.rejects) >= chunk_records:
            yield rows
            rows, num_bytes = Rows([], [], [], []), 0
    if rows.values or rows.rejects:
        yield rows


def page_ranges(piece: Slice) -> Iterator[tuple[int, int]]:
    """Where each page of a web archive is in the decompressed stream, with its headers."""
    for _, _, _, span in _pages(piece):
        yield span()


def _pages(piece: Slice) -> Iterator[tuple[bytes, str, str, Callable[[], tuple[int, int]]]]:
    """(content, its type, URL) of each page of a web archive, at most one byte above the bound; and what gives its place."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    with open_stream(piece.path, piece.compression, piece.state) as stream:
        try:
            pages = ArchiveIterator(stream)

            def span() -> tuple[int, int]:
                start: int = pages.get_record_offset()
                return start, start + int(pages.get_record_length())

            for page in pages:
                headers = page.http_headers or page.rec_headers
                kind = (headers.get_header("Content-Type") or "").split(";")[0].strip().lower()
                if page.rec_type in ("response", "resource", "conversion") and kind in _PAGES:
                    url = page.rec_headers.get_header("WARC-Target-URI") or ""
                    yield page.content_stream().read(MAX_RECORD_BYTES + 1), kind, url, span
        except ArchiveLoadFailed as error:
            raise DataError(
                f"{shown_name(piece.path)}: damaged: {error}. Download or copy it again."
            ) from error
