"""Which files a source has, what is in them, and their sha256: read before any work is planned.

A file is hashed once; a later run trusts the hash while size, mtime, ctime and inode are unchanged. Cost: one read of
every new byte (sha256 runs at 1-2 GB/s), and the first few hundred records of each file.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datamix.core.contracts import Receipt, Reject, Slice, Task
from datamix.core.errors import DataError, RecipeError, shown_name
from datamix.core.hashing import digest
from datamix.formats import RECORD_FORMATS, TURN_PARTS, Detection, detect, unknown_roles
from datamix.pipeline.grouping import group_files
from datamix.read import DOCUMENTS, Sniff, cut, file_state, find, name_files, read, sha256_of, sniff

_VERSION = 5
_TICK_NS = 20_000_000  # file times move in steps of at most 10 ms (a kernel at 100 Hz)
SAMPLE_RECORDS = 300
_MORE_RECORDS, _ENOUGH_RECORDS = 100_000, 100  # read where nulls leave a format open; that then decide it
_GROUP_BYTES = 256 << 20
_FILE_BYTES = 4 << 20  # a file counts at least so much: a group holds 64 files at most
CONTAINERS = ("jsonl", "json", "csv", "parquet", "arrow", "arrow_stream", "text", "lines")
_PROSE = (*DOCUMENTS, "lines", "warc")


@dataclass(frozen=True)
class SourceRequest:
    """What the recipe says of the files of one source."""

    source: str
    paths: tuple[str, ...]
    base: str
    format: str = "auto"
    encoding: str | None = None
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class InputFile:
    """One input file: what it is and what is in it."""

    source: str
    path: str  # as it is opened
    label: str  # as the manifest names it: see `name_files`
    sha256: str
    num_bytes: int
    container: str
    compression: str | None
    encoding: str
    options: tuple[tuple[str, str], ...]
    format: str | None  # record format; None where no known format was recognised or the file is empty
    kind: str | None  # what the records natively are
    columns: tuple[tuple[str, str], ...]
    state: tuple[int, ...]

    def slices(self) -> list[Slice]:
        """The constant cuts of this file."""
        options = self.options
        if self.container in DOCUMENTS:
            options = tuple(sorted((*options, ("name", self.label))))  # what `keep_meta: [path]` gives
        seen = Sniff(self.container, self.compression, self.encoding, options, self.num_bytes)
        return [replace(piece, state=self.state) for piece in cut(self.path, self.sha256, seen)]


@dataclass(frozen=True)
class ScanSpec:
    """A group of files to scan, and what the recipe says of them."""

    paths: tuple[str, ...]
    states: tuple[tuple[int, ...], ...]
    container: str | None
    format: str | None
    encoding: str | None
    columns: tuple[tuple[str, str], ...]


def tasks(request: SourceRequest, home: Path, is_own: Callable[[str, Sequence[str]], bool]) -> list[Task]:
    """One task for each group of files of a source, less those of the set that is built (``is_own``, of a path and the
    places that the source names).

    Raises RecipeError where a path matches nothing.
    """
    places = [p if "://" in p else os.path.join(request.base, os.path.expanduser(p)) for p in request.paths]
    found = [path for path in find(request.paths, request.base) if not is_own(path, places)]
    paths = [path for path, _ in name_files(found, request.paths, request.base)]
    if not paths:
        raise RecipeError(
            f"Source {request.source}: {', '.join(request.paths)} holds only files of the set that is built, of its folder or of its cache. "
            "Name the folder of the data, or choose another folder with -o."
        )
    declared = None if request.format == "auto" else request.format
    container = declared if declared in CONTAINERS else None
    format_ = None if declared in CONTAINERS and declared not in RECORD_FORMATS else declared
    states = _settled_states(paths)
    made: list[Task] = []
    for group in group_files(paths, [max(_FILE_BYTES, size) for size, *_ in states], _GROUP_BYTES):
        names, known = tuple(paths[group.start : group.stop]), tuple(states[group.start : group.stop])
        spec = ScanSpec(names, known, container, format_, request.encoding, request.columns)
        key = digest("survey", _VERSION, spec)
        made.append(
            Task(f"scan {request.source}", key, scan_files, spec, home, 1 + sum(s for s, *_ in known))
        )
    return made


def _settled_states(paths: Sequence[str]) -> list[tuple[int, ...]]:
    """The state of each file, taken when no file was changed within the last tick of the clock that stamps them.

    A file that changes later has another state then: a change within the same tick could keep it.
    """
    states = [_state(path) for path in paths]
    newest = max((state[2] for state in states), default=0)
    if 0 <= (age := time.time_ns() - newest) < _TICK_NS:
        time.sleep((_TICK_NS - age) / 1e9)
        states = [_state(path) for path in paths]
    return states


def _state(path: str) -> tuple[int, ...]:
    try:
        return tuple(file_state(path))
    except OSError as error:
        raise DataError(
            f"{shown_name(path)} cannot be read: {error.strerror or error}. Check that it exists and may be read."
        ) from None


@dataclass(frozen=True)
class Recognised:
    """One file as one slice, and what its first records are."""

    path: str
    piece: Slice
    num_bytes: int
    values: list[Any]  # the first records
    rejects: list[Reject]  # those among them that could not be read
    detection: Detection | None  # None: no known format, or nothing could be read
    is_certain: bool = True  # False: fields that are null in every record leave the format open

    def fields(self) -> str:
        """The fields of the first record, for a sentence."""
        if not self.values:
            return (
                "it holds no records" if not self.rejects else f"its first record: {self.rejects[0].detail}"
            )
        first = self.values[0]
        if not isinstance(first, dict):
            return f"its first record is a {type(first).__name__}"
        fields = f"its first record has the fields {', '.join(map(str, first))}"[:200]
        if (turns := unknown_roles(self.values)) is None:
            return fields
        field, words = turns
        roles = ", ".join(map(repr, words[:6]))
        mapping = f"messages: {field}, turn.user: ROLE, turn.assistant: ROLE"
        return (
            f"{fields}; turns in {field} have the unknown roles {roles} (map them: `columns: {{{mapping}}}`)"
        )


def recognise(
    path: str,
    columns: tuple[tuple[str, str], ...] = (),
    seen: Sniff | None = None,
    encoding: str | None = None,
    state: tuple[int, ...] = (),
) -> Recognised:
    """Read the first few hundred records of a file; more where nulls in all of them leave its format open.

    Raises DataError: it is missing, damaged or of no readable kind.
    """
    seen = seen or sniff(path)
    piece = Slice(
        path, "", seen.container, seen.compression, encoding or seen.encoding, seen.options, state=state
    )
    values: list[Any] = []
    rejects: list[Reject] = []
    for rows in read(piece, limit=SAMPLE_RECORDS):
        values += rows.values
        rejects += rows.rejects
    if seen.container in _PROSE and values:
        return Recognised(path, piece, seen.num_bytes, values, rejects, Detection("text", "text"))
    detection, is_certain = _detected(values, columns)
    if not is_certain and len(values) + len(rejects) >= SAMPLE_RECORDS:
        for rows in read(piece, limit=_MORE_RECORDS):
            later, is_certain = _detected(rows.values, columns)
            if is_certain and later is not None:
                values, detection = rows.values[-SAMPLE_RECORDS:], later
                break
    return Recognised(path, piece, seen.num_bytes, values, rejects, detection, is_certain)


def _detected(values: Sequence[Any], columns: tuple[tuple[str, str], ...]) -> tuple[Detection | None, bool]:
    """The format of a sample, and whether nulls leave it open.

    Records before the first in which a field is set do not count; nor do fields that are null in all of them, if a text
    there would give another format.
    """
    rows = _not_null(values)
    objects = [row for row in rows if isinstance(row, dict)]
    first: dict[str, int] = {}  # field -> the first record in which it is set
    for i, row in enumerate(objects):
        first |= {key: i for key, cell in row.items() if cell is not None and key not in first}
    nulls = {key for row in objects for key in row} - first.keys()
    start = max(first.values(), default=0)
    if len(rows) - start < min(_ENOUGH_RECORDS, len(rows) / 2):
        return detect(rows, columns), False
    detection = detect(rows[start:], columns)
    if rows and not nulls:
        return detection, True
    filled = detect([{**row, **dict.fromkeys(nulls & row.keys(), "x")} for row in objects[start:]], columns)
    return detection, detection is not None and filled is not None and detection.format == filled.format


def _not_null(values: Sequence[Any]) -> list[Any]:
    """The rows in which any field is set."""
    return [v for v in values if not isinstance(v, dict) or any(cell is not None for cell in v.values())]


def scan_files(spec: ScanSpec, folder: Path) -> dict[str, Any]:
    """Hash and sniff each file, and detect the record format in its first records."""
    return {"files": [_scan(path, state, spec) for path, state in zip(spec.paths, spec.states, strict=True)]}


def _scan(path: str, state: tuple[int, ...], spec: ScanSpec) -> dict[str, Any]:
    seen = sniff(path, spec.container, state)
    entry: dict[str, Any] = {**asdict(seen), "sha256": sha256_of(path, state)}
    entry |= {"encoding": spec.encoding or seen.encoding, "format": spec.format, "kind": None, "columns": []}
    entry |= {"fields": ["text"], "turn_fields": None, "certain": True}
    if seen.container in ("text", "lines") and spec.format in (None, "text"):
        return {**entry, "format": "text", "kind": "text", "message": ""}
    first = recognise(path, spec.columns, seen, spec.encoding, state)
    if spec.columns:
        entry["fields"], entry["turn_fields"] = _fields(
            first, [theirs for ours, theirs in spec.columns if "." not in ours]
        )
    if spec.format is not None and spec.format in RECORD_FORMATS:
        entry["kind"] = RECORD_FORMATS[spec.format].kinds[0]
    elif spec.format is None and first.detection is not None:
        columns = [list(pair) for pair in first.detection.columns]
        entry |= {"format": first.detection.format, "kind": first.detection.kind, "columns": columns}
    if spec.format is None:
        entry["certain"] = first.is_certain or not first.values
    is_unknown = entry["format"] is None and bool(_not_null(first.values))
    return {**entry, "message": first.fields() if is_unknown else ""}


def _fields(first: Recognised, mapped: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """The fields of a file's first records, and of turns in them (None: they are texts), sorted.

    A mapped field may come later: where the file is plain JSON its bytes are searched for the name.
    """
    rows = [value for value in first.values if isinstance(value, dict)]
    fields = {str(key) for row in rows for key in row}
    lists = [value for row in rows for value in row.values() if isinstance(value, (list, str))]
    turns = [turn for value in lists if isinstance(value, list) for turn in value if isinstance(turn, dict)]
    piece = first.piece
    if piece.container in ("json", "jsonl") and piece.compression is None and "://" not in first.path:
        for name in sorted(set(mapped) - fields - {""}):
            spellings = (name.encode(piece.encoding, "replace"), json.dumps(name)[1:-1].encode())
            with (
                open(first.path, "rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                if any(content.find(b'"%b"' % spelling) >= 0 for spelling in spellings):
                    fields.add(name)
    as_text = any(isinstance(value, str) and value.lstrip()[:2] == "[{" for value in lists)
    return sorted(fields), None if as_text else sorted({str(key) for turn in turns for key in turn})


def check_columns(request: SourceRequest, scanned: Sequence[dict[str, Any]]) -> None:
    """Raise RecipeError where a mapped field is in no file of the source, or is never read."""
    with_records = [seen for seen in scanned if seen["fields"]]
    if not request.columns or not with_records:
        return
    where = f"sources.{request.source}.columns"
    fields = sorted({name for seen in with_records for name in seen["fields"]})
    of_turns = [seen["turn_fields"] for seen in with_records]
    known_turns = None if None in of_turns else {name for names in of_turns for name in names}
    formats = {seen["format"] for seen in with_records} - {None}
    read = {field for name in formats & RECORD_FORMATS.keys() for field in RECORD_FORMATS[name].fields}
    for ours, theirs in request.columns:
        place, _, part = ours.partition(".")
        if place == "turn" and part not in TURN_PARTS:
            raise RecipeError(f"{where}: {ours} is no part of a turn. Parts: {', '.join(TURN_PARTS)}.")
        available = known_turns if place == "turn" else set(fields)
        is_field = place != "turn" or part in ("role", "content", "train")
        if theirs and is_field and available is not None and theirs not in available:
            of = "turn" if place == "turn" else "file"
            raise RecipeError(
                f"{where}.{ours}: no {of} of the source has a field {theirs!r}. Fields there: "
                f"{', '.join(sorted(available))[:300] or 'none'}."
            )
        if theirs and place != "turn" and formats and ours not in read:
            raise RecipeError(
                f"{where}.{ours} is never read: the records are read as {', '.join(sorted(formats))}, which reads "
                f"{', '.join(sorted(read))[:300]}. Map one of these, or name another format."
            )
    mapped = {ours for ours, theirs in request.columns if theirs and "." not in ours}
    if mapped and any(seen["format"] is None for seen in with_records):
        fitting = [name for name, format in RECORD_FORMATS.items() if mapped <= format.fields]
        raise RecipeError(
            f"{where}: the records fit no known format that reads {', '.join(sorted(mapped))}. Fields there: "
            f"{', '.join(fields)[:300]}. Formats that read what is mapped: {', '.join(fitting) or 'none'}; map every field that "
            "one of them needs, or name the format."
        )


def files(request: SourceRequest, done: Sequence[tuple[Task, Receipt]]) -> list[InputFile]:
    """The files of a source, sorted by path, from the receipts of its scan.

    Raises DataError for an unknown format, RecipeError where a column map does not fit them.
    """
    scanned = [[dict(seen) for seen in receipt.counts["files"]] for _, receipt in done]
    entries = [seen for group in scanned for seen in group]
    decided = [seen for seen in entries if seen["certain"] and seen["format"] is not None]
    if len({str([seen["format"], seen["columns"]]) for seen in decided}) == 1:
        for seen in entries:  # nulls in every record of a file do not decide its format
            if not seen["certain"]:
                seen.update({key: decided[0][key] for key in ("format", "kind", "columns")})
    check_columns(request, entries)
    result: list[InputFile] = []
    paths = [path for task, _ in done for path in task.spec.paths]
    labels = dict(name_files(paths, request.paths, request.base))
    for (task, _), group in zip(done, scanned, strict=True):
        spec: ScanSpec = task.spec
        for path, state, seen in zip(spec.paths, spec.states, group, strict=True):
            if seen["format"] is None and seen["message"]:
                raise DataError(
                    f"{shown_name(path)} (source {request.source}): the format of its records was not recognised: {seen['message']}. "
                    f"Name the format (`format: alpaca`, one of {', '.join(RECORD_FORMATS)}) or map the fields "
                    "(`columns: {instruction: THEIR_FIELD, output: THEIR_FIELD}`)."
                )
            plain = {
                name: seen[name] for name in ("sha256", "num_bytes", "container", "compression", "encoding")
            }
            options = tuple((a, b) for a, b in seen["options"])
            columns = request.columns or tuple((a, b) for a, b in seen["columns"])
            result.append(
                InputFile(request.source, path, labels[path], **plain, options=options, format=seen["format"],
                          kind=seen["kind"], columns=columns, state=state)
            )  # fmt: skip
    return result


def unchanged(files: Sequence[InputFile]) -> None:
    """Raise DataError where a file changed since it was scanned."""
    for file in files:
        if _state(file.path) != tuple(file.state):
            raise DataError(
                f"{shown_name(file.path)} (source {file.source}) changed while it was being read. Nothing built from it can be trusted: "
                "wait until it is written, and run the same command again."
            )
