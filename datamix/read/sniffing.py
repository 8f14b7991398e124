"""What a file holds, by its first 256 KiB after decompression and not by its name; and its slices.

Magic bytes first (compression, Parquet, Arrow, what cannot be read at all), then the encoding, then the
shape of the text: objects on lines, an array, one object, a table, prose. The name decides only what the
content leaves open: an empty file, a table of one column, a text that could be either. Cost: one open and
one read a file; for a file whose head is ASCII and that is longer, four more short reads, since its first
Chinese character may come further down.
"""

from __future__ import annotations

import codecs
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import orjson

from datamix.core.contracts import Slice
from datamix.core.errors import DataError, shown_name
from datamix.read.charset import detect_encoding
from datamix.read.columnar import num_parts
from datamix.read.decompress import compression_of, open_stream
from datamix.read.documents import NAMES, require_extractor
from datamix.read.lines import codec_of, is_wide
from datamix.read.storage import State, explained, open_file, size_of
from datamix.read.tables import detect_dialect

HEAD_BYTES = 256 << 10
_PROBE_BYTES = 64 << 10
_MAX_LINES = 64  # lines of the head that are parsed to recognise JSON Lines
SLICE_BYTES = 32 << 20
_SUFFIXES = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "json",
    "csv": "csv",
    "tsv": "csv",
    "tab": "csv",
    "psv": "csv",
}
_COMPRESSED = {"gz", "gzip", "zst", "zstd", "xz", "bz2", "lz4"}
_PROSE = {"md", "markdown", "rst", "tex", "html", "htm", "py"}
_TEXT_FIRST = "Extract its text first, to .txt, .md or .jsonl files, and name those."
_UNPACK_FIRST = "Unpack it first and name the files in it."
_CONTAINERS = (
    (b"PAR1", "parquet"),
    (b"ARROW1\x00\x00", "arrow"),
    (b"%PDF-", "pdf"),
    (b"WARC/1.", "warc"),
)
_CANNOT = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the data it refers to",
        "Run `git lfs pull` where it was cloned.",
    ),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", _TEXT_FIRST),
    (b"{\\rtf", "an RTF document", _TEXT_FIRST),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK_FIRST),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK_FIRST),
    (b"SQLite format 3\x00", "an SQLite database", "Export the table to CSV or JSON Lines first."),
    (b"\x89HDF\r\n", "an HDF5 file", "Export it to Parquet or JSON Lines first."),
    (b"ORC", "an ORC file", "Convert it to Parquet first."),
    (b"Obj\x01", "an Avro file", "Convert it to Parquet or JSON Lines first."),
    (b"\x93NUMPY", "a NumPy array", "datamix reads text, not arrays."),
    (b"\x89PNG", "an image", "datamix reads text."),
    (b"\xff\xd8\xff", "an image", "datamix reads text."),
)
_PAGE = re.compile(
    r"\s*+(?:<\?xml[^>]*+>\s*+)?+(?:<!--(?:[^-]|-(?!->))*+-->\s*+)*+(?:<!doctype html|<html)", re.IGNORECASE
)
_FIELD = re.compile(r'[\s,]*"((?:[^"\\]|\\.)*+)"\s*:\s*')
_FIRST_OBJECT = re.compile(r"\[\s*\{")
_FIRST_EVENT = re.compile(r'\s*\[?\s*\{\s*"(id|timestamp|source|kind|action|observation|message|cause)"')
_RECORD_FIELDS = {
    *(
        "text",
        "instruction",
        "prompt",
        "question",
        "query",
        "input",
        "output",
        "answer",
        "response",
        "completion",
    ),
    *("chosen", "rejected", "completions", "responses", "choices", "tools", "functions", "tool_calls"),
    *("preferred_output", "non_preferred_output", "chosen_messages", "rejected_messages"),
    *("history", "trajectory", "events", "steps", "contents"),
}
_CONTROL = bytes(b for b in range(32) if b not in b"\t\n\r\f\x1b\x08")


@dataclass(frozen=True)
class Sniff:
    """What a file holds and how to read it."""

    # jsonl | json | csv | parquet | arrow | arrow_stream | text | lines | html | pdf | docx | epub | warc
    container: str
    compression: str | None  # gzip | zstd | xz | bz2 | lz4
    # as Python names it; utf-8-sig where there is a byte order mark; utf-8 for binary containers
    encoding: str
    options: tuple[tuple[str, str], ...]  # of a CSV: delimiter, quotechar, ...; sorted
    num_bytes: int  # as stored


def sniff(path: str, declared: str | None = None, state: State = ()) -> Sniff:
    """What the file holds; ``declared``: the container the recipe names; ``state`` as in ``open_file``.

    ``lines`` is never detected; ``text`` yields where the file is plainly JSON, Parquet or Arrow.

    Raises DataError where the file cannot be read, is empty of data (an LFS pointer) or is of no readable
    kind.
    """
    with explained(path):
        with open_file(path, state) as stored:
            num_bytes = size_of(path, stored)
            head = _fill(stored, HEAD_BYTES)
            compression = compression_of(head)
            probes = b"" if compression or not head.isascii() else _probes(stored, len(head), num_bytes)
        if compression is not None:
            with open_stream(path, compression, state) as stream:
                head = _fill(stream, HEAD_BYTES)
            if compression_of(head) is not None:
                raise DataError(f"{shown_name(path)}: is compressed twice. Decompress it once.")
    binary = _binary_container(path, head)
    if binary in NAMES:
        require_extractor(path, binary)
    if binary is not None:
        return Sniff(binary, compression, "utf-8", (), num_bytes)
    is_whole = len(head) < HEAD_BYTES
    encoding = detect_encoding(head + probes, shown_name(path))
    decoder = codecs.getincrementaldecoder(codec_of(encoding))("replace")
    text = decoder.decode(head).removeprefix("\ufeff")
    container = _text_container(path, text, is_whole, declared)
    if container == "text":
        raw = text.encode("utf-8", "replace")[:HEAD_BYTES]
        control = len(raw) - len(raw.translate(None, _CONTROL))
        if control * 100 > 2 * len(raw) and control > 1:
            raise DataError(
                f"{shown_name(path)}: is neither text nor a known container: {control} of its first {len(raw)} "
                "bytes are control characters. Leave it out of the recipe's paths."
            )
        if _PAGE.match(text):
            container = "html"
            require_extractor(path, container)
    options: tuple[tuple[str, str], ...] = ()
    if container == "csv":
        prefer = "\t" if _suffix(path) in ("tsv", "tab") else ","
        options = detect_dialect(text, is_whole, prefer).options
    elif container in ("json", "jsonl") and _FIRST_EVENT.match(text) and _holds_events(text):
        container, options = "json", (("whole", "events"),)
    elif container == "json" and (field := _array_field(text)) is not None:
        options = (("array", field),)
    return Sniff(container, compression, encoding, options, num_bytes)


def _fill(stream: object, num_bytes: int) -> bytes:
    head = b""
    while len(head) < num_bytes and (block := stream.read(num_bytes - len(head))):  # type: ignore[attr-defined]
        head += block
    return head


def _probes(stored: object, start: int, num_bytes: int) -> bytes:
    """Lines from further down an ASCII-headed file, at fixed shares of its length."""
    probes = []
    for quarter in (1, 2, 3, 4) if num_bytes > start else ():
        position = max(num_bytes * quarter // 4 - _PROBE_BYTES, start)
        stored.seek(position)  # type: ignore[attr-defined]
        block = _fill(stored, _PROBE_BYTES)
        probes.append(b"\n" + block[block.find(b"\n") + 1 : block.rfind(b"\n") + 1])
    return b"".join(probes)


def _binary_container(path: str, head: bytes) -> str | None:
    """The container of a binary file, None for text. Raises DataError where it is not one we read."""
    for magic, container in _CONTAINERS:
        if head.startswith(magic):
            return container
    if head.startswith(b"\xff\xff\xff\xff") and 0 < int.from_bytes(head[4:8], "little") < 1 << 28:
        return "arrow_stream"
    problem = next((f"{kind}. {advice}" for magic, kind, advice in _CANNOT if head.startswith(magic)), None)
    if head.startswith(b"PK\x03\x04"):
        if b"mimetypeapplication/epub" in head[30:200]:
            return "epub"
        if b"word/document.xml" in head:
            return "docx"
        is_office = b"[Content_Types].xml" in head or b"mimetypeapplication/vnd" in head[30:200]
        problem = f"an Office document. {_TEXT_FIRST}" if is_office else f"a zip archive. {_UNPACK_FIRST}"
    elif head[257:262] == b"ustar":
        problem = f"a tar archive. {_UNPACK_FIRST}"
    elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        problem = "a Python pickle by its first bytes, which runs code when read. Export it as JSON Lines."
    if problem is not None:
        raise DataError(f"{shown_name(path)}: is {problem}")
    return None


def _suffix(path: str) -> str:
    parts = path.rsplit("/", 1)[-1].lower().split("?")[0].split(".")
    while len(parts) > 2 and parts[-1] in _COMPRESSED:
        parts.pop()
    return parts[-1] if len(parts) > 1 else ""


def _text_container(path: str, text: str, is_whole: bool, declared: str | None) -> str:
    if declared in ("lines", "csv"):
        return declared
    by_name = _SUFFIXES.get(_suffix(path))
    json_kind = _json_container(text, is_whole, by_name)
    if declared in ("json", "jsonl"):
        return json_kind or declared
    if json_kind is not None and (declared != "text" or by_name in ("json", "jsonl") or not _suffix(path)):
        return json_kind
    if by_name is not None:
        return by_name
    if declared == "text" or _suffix(path) in _PROSE:
        return "text"
    return "csv" if detect_dialect(text, is_whole).is_table else "text"


def _json_container(text: str, is_whole: bool, by_name: str | None) -> str | None:
    """jsonl, json, or None where the text is not JSON."""
    start = text.lstrip(" \t\r\n")
    if not start or start[0] not in "[{":
        return "jsonl" if start and _any_object(text.split("\n")[1:_MAX_LINES]) else None
    first, _, rest = start.partition("\n")
    one_line = not rest.strip()
    if not one_line and _parses(first):
        return "jsonl"
    if start[0] == "[":
        is_array = (is_whole and _parses(start)) or re.match(r'\[\s*[\[{"]', start) or by_name == "json"
        return "json" if is_array else None
    if _any_object(rest.split("\n")[:_MAX_LINES]):
        return "jsonl"
    if one_line and (not is_whole or _parses(first)):
        return by_name if by_name == "json" else "jsonl"
    return "json" if re.match(r'\{\s*("|\}|$)', start) else None


def _array_field(text: str) -> str | None:
    """The field of a top-level object whose array holds the records, as it is written; None where there is none.

    ``{"version": 1, "data": [{...}, ...]}``. A record may hold a list of objects too: turns, tools, answers. They
    are known by their keys, by the field's name and by the texts beside them.
    """
    decoder = json.JSONDecoder()
    position = len(text) - len(text.lstrip(" \t\r\n")) + 1
    field = None
    with suppress(ValueError, RecursionError):  # the head ends inside a value
        while match := _FIELD.match(text, position):
            name, position = match[1], match.end()
            if name in _RECORD_FIELDS:
                return None
            if field is None and (first := _FIRST_OBJECT.match(text, position)):
                keys: set[str] = set()
                with suppress(ValueError):
                    keys = set(decoder.raw_decode(text, first.end() - 1)[0])
                if "role" in keys or {"from", "value"} <= keys or {"speaker", "text"} <= keys:
                    return None
                field = name
            _, position = decoder.raw_decode(text, position)
    return field


def _holds_events(text: str) -> bool:
    """Whether an array or lines hold events of an agent's run: its actions and what was observed, or their kinds."""
    try:
        event, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
    except (ValueError, RecursionError):
        return False
    kind = event.get("kind")
    is_kind = isinstance(kind, str) and kind.endswith("Event")
    return "source" in event and (is_kind or isinstance(event.get("action", event.get("observation")), str))


def _any_object(lines: list[str]) -> bool:
    """Whether any line that begins with a brace is an object in itself."""
    return any(line.startswith("{") and _parses(line) for line in lines)


def _parses(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def cut(path: str, sha256: str, sniffed: Sniff, slice_bytes: int = SLICE_BYTES) -> list[Slice]:
    """Slices of about ``slice_bytes`` stored bytes that together hold every record once, in order.

    Raises DataError where a Parquet or Arrow file is damaged.
    """
    ranges: list[tuple[int, int | None]] = [(0, None)]
    if sniffed.compression is None and sniffed.num_bytes > slice_bytes:
        if sniffed.container in ("jsonl", "lines") and not is_wide(sniffed.encoding):
            starts = range(0, sniffed.num_bytes, slice_bytes)
            ranges = [(start, min(start + slice_bytes, sniffed.num_bytes)) for start in starts]
        elif sniffed.container in ("parquet", "arrow"):
            with explained(path):
                count, sizes = num_parts(path, sniffed.container)
            sizes = sizes or [sniffed.num_bytes // max(count, 1)] * count
            ends = [0]
            filled = 0
            for part, size in enumerate(sizes, 1):
                filled += size
                if filled >= slice_bytes or part == count:
                    ends.append(part)
                    filled = 0
            ranges = list(pairwise(ends)) or ranges
    whole = (path, sha256, sniffed.container, sniffed.compression, sniffed.encoding, sniffed.options)
    return [Slice(*whole, start=start, stop=stop) for start, stop in ranges]
