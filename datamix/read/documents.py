"""Text and Markdown files to rows: each file is one document, ``{"text": ..., "path": ...}``.

The path is the ``name`` option where the caller gives one (a path relative to what was asked for), else the file's own
name: never where the file lies on this machine. Memory: the document, at most ``MAX_RECORD_BYTES``.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from io import BytesIO
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from datamix.core.contracts import Reject, Rows, Slice
from datamix.core.errors import DataError, mask_url
from datamix.read.byte_blocks import stored_bytes, utf8_blocks
from datamix.read.decompress import open_stream
from datamix.read.json_lines import restored
from datamix.read.lines import KEPT_BYTES, MAX_RECORD_BYTES, LongLine, Overflow


def read_document(piece: Slice) -> Iterator[Rows]:
    """The whole file as one row; a file of nothing but white space has none."""
    raw = whole_file(piece)
    if isinstance(raw, LongLine):
        advice = f"{raw.detail}; `format: lines` reads each line as a document"
        yield Rows([], [], [], [], [Reject(0, 1, "too_long", advice, raw.head)])
        return
    if not raw.strip():
        return
    restore = stored_bytes(piece.encoding)
    rows = _document(raw, name_of(piece))
    yield rows if restore is None else restored(rows, restore)


def whole_file(piece: Slice) -> bytes | LongLine:
    """The file's bytes, text as UTF-8; of a file above the bound what is known of it."""
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
    return b"".join(parts) if overflow is None else overflow.close()


def name_of(piece: Slice) -> str:
    """The document's name: relative where the caller gives one."""
    return dict(piece.options).get("name", piece.path.rsplit("/", 1)[-1])


def _document(raw: bytes, name: str) -> Rows:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        detail = f"byte 0x{raw[error.start]:02x} at offset {error.start} is not valid UTF-8"
        return Rows([], [], [], [], [Reject(0, 1, "utf8", detail, raw)])
    if "\x00" in text:
        return Rows([], [], [], [], [Reject(0, 1, "nul", f"a NUL byte at offset {raw.index(0)}", raw)])
    return Rows([{"text": text, "path": name}], [0], [1], [raw])


NAMES = {
    "html": "an HTML page",
    "pdf": "a PDF document",
    "docx": "a Word document",
    "epub": "an e-book",
    "warc": "a web archive",
}
_PACKAGES = ("resiliparse", "pypdfium2", "mammoth", "warcio")
_UNPACKED_BYTES = 4 * MAX_RECORD_BYTES  # of a zip: more is a bomb
_MAX_NESTING = 2048  # of elements in a page: telling the main content takes the square of it
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
            f'{mask_url(path)}: is {NAMES[container]}. To take its text: pip install ".[docs]"; or extract it '
            "yourself, to .txt, .md or .jsonl files, and name those."
        )


def read_extracted(piece: Slice) -> Iterator[Rows]:
    """The text of the file as one row, or why there is none."""
    raw = whole_file(piece)
    if isinstance(raw, LongLine):
        yield _refused("too_long", raw.detail, raw.head)
        return
    restore = stored_bytes(piece.encoding)
    stored = raw if restore is None else restore(raw)
    try:
        text = _EXTRACTORS[piece.container](raw)
    except Exception as error:  # whatever a damaged document makes a parser throw: its neighbours are read on
        said = " ".join(str(error).split())[:200] or type(error).__name__
        yield _refused("document", f"is not readable as {NAMES[piece.container]}: {said}", stored)
        return
    if not text.strip():
        yield _refused("no_text", f"is {NAMES[piece.container]} without text: pictures or scans", stored)
        return
    yield Rows([{"text": text, "path": name_of(piece)}], [0], [None], [stored])


def _refused(reason: str, detail: str, raw: bytes) -> Rows:
    return Rows([], [], [], [], [Reject(0, None, reason, detail, raw)])


def _html(raw: bytes) -> str:
    page = raw.decode()
    return _plain(page, main_content=True) or _plain(page)


def _plain(page: str, main_content: bool = False) -> str:
    """The text of a page: paragraphs, lists and preformatted text keep their lines. Raises ValueError: nested too deep."""
    if page.count("<") > _MAX_NESTING and _nesting(page) > _MAX_NESTING:
        raise ValueError(f"elements are nested deeper than {_MAX_NESTING} levels")
    from resiliparse.extract.html2text import extract_plain_text

    text: str = extract_plain_text(page, preserve_formatting=True, main_content=main_content, alt_texts=False)
    return text.replace("\x00", "").strip()


def _nesting(page: str) -> int:
    """How deep elements may be nested; those that need no end tag do not count."""
    depth = deepest = 0
    for closes, name in _TAG.findall(page):
        if not _ENDLESS.fullmatch(name):
            depth = max(depth - 1, 0) if closes else depth + 1
            deepest = max(deepest, depth)
    return deepest


def _pdf(raw: bytes) -> str:
    import pypdfium2

    document = pypdfium2.PdfDocument(raw)
    try:
        pages = [_pdf_page(document[number]) for number in range(len(document))]
    finally:
        document.close()
    return "\n\n".join(filter(None, pages))


def _pdf_page(page: Any) -> str:
    words = page.get_textpage()
    try:
        text: str = words.get_text_bounded()
    finally:
        words.close()
        page.close()
    # PDFium writes U+FFFE where a word is divided at the end of a line.
    return (
        text.replace("\r\n", "\n").replace("\ufffe\n", "").replace("\ufffe", "").replace("\x00", "").strip()
    )


def _docx(raw: bytes) -> str:
    import mammoth

    with zipfile.ZipFile(BytesIO(raw)) as packed:
        _bounded(packed)
    no_image = mammoth.images.img_element(lambda image: {})
    return _plain(mammoth.convert_to_html(BytesIO(raw), convert_image=no_image).value)


def _epub(raw: bytes) -> str:
    """The chapters in reading order, as the book's package document lists them."""
    with zipfile.ZipFile(BytesIO(raw)) as book:
        _bounded(book)
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


def _bounded(packed: zipfile.ZipFile) -> None:
    unpacked = sum(part.file_size for part in packed.infolist())
    if unpacked > _UNPACKED_BYTES:
        raise ValueError(f"it unpacks to {unpacked} bytes, more than {_UNPACKED_BYTES >> 20} MiB")


def _decoded(raw: bytes) -> str:
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    text: str = bytes_to_str(raw, detect_encoding(raw) or "utf-8")
    return text


_EXTRACTORS: dict[str, Callable[[bytes], str]] = {"html": _html, "pdf": _pdf, "docx": _docx, "epub": _epub}


def read_warc(piece: Slice, chunk_records: int) -> Iterator[Rows]:
    """The pages of a web archive in order: responses that are HTML or text, and extracted texts (WET)."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    rows, num_bytes, record = Rows([], [], [], []), 0, 0
    with open_stream(piece.path, piece.compression, piece.state) as stream:
        pages = iter(ArchiveIterator(stream))
        while True:
            try:
                page = next(pages, None)
                if page is None:
                    break
                kind = _kind_of(page)
                if kind is None:
                    continue
                raw = page.content_stream().read(MAX_RECORD_BYTES + 1)
            except ArchiveLoadFailed as error:
                raise DataError(
                    f"{mask_url(piece.path)}: damaged: {error}. Download or copy it again."
                ) from error
            _add_page(rows, record, (raw, kind, page.rec_headers.get_header("WARC-Target-URI") or ""))
            record, num_bytes = record + 1, num_bytes + len(raw)
            if num_bytes > _CHUNK_BYTES or len(rows.values) + len(rows.rejects) >= chunk_records:
                yield rows
                rows, num_bytes = Rows([], [], [], []), 0
    if rows.values or rows.rejects:
        yield rows


def _kind_of(page: Any) -> str | None:
    """The content type of a record that is a page, else None."""
    if page.rec_type not in ("response", "resource", "conversion"):
        return None
    headers = page.http_headers or page.rec_headers
    kind = (headers.get_header("Content-Type") or "").split(";")[0].strip().lower()
    return kind if kind in _PAGES else None


def _add_page(rows: Rows, record: int, page: tuple[bytes, str, str]) -> None:
    raw, kind, url = page
    if len(raw) > MAX_RECORD_BYTES:
        detail = f"more than {MAX_RECORD_BYTES >> 20} MiB"
        rows.rejects.append(Reject(record, None, "too_long", detail, raw[:KEPT_BYTES]))
        return
    text = _decoded(raw).replace("\x00", "").strip()
    if kind != "text/plain":
        try:
            text = _plain(text, main_content=True) or _plain(text)
        except ValueError as error:
            rows.rejects.append(Reject(record, None, "document", f"{url}: {error}", raw))
            return
    if not text:
        rows.rejects.append(Reject(record, None, "no_text", f"is a page without text: {url}", raw))
        return
    rows.values.append({"text": text, "url": url})
    rows.records.append(record)
    rows.lines.append(None)
    rows.raws.append(raw)
