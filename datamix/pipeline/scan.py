"""Which files a source has, what is in them, and their sha256: read before any work is planned.

A file is hashed once; a later run trusts the hash while size, mtime, ctime and inode are unchanged. Cost: one read of
every new byte (sha256 runs at 1-2 GB/s), and a look at the first few hundred records of each file.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from datamix.core.contracts import Receipt, Slice, Task
from datamix.core.errors import DataError, RecipeError, mask_url
from datamix.core.hashing import digest
from datamix.formats import RECORD_FORMATS, detect
from datamix.pipeline.grouping import group_files
from datamix.read import DOCUMENTS, cut, file_state, find, read, sha256_of, sniff

_VERSION = 2
_TICK_NS = 20_000_000  # file times move in steps of at most 10 ms (a kernel at 100 Hz)
_SAMPLE_RECORDS = 200
_GROUP_BYTES = 256 << 20
_FILE_BYTES = 4 << 20  # a file counts at least so much: a group holds 64 files at most
CONTAINERS = ("jsonl", "json", "csv", "parquet", "arrow", "arrow_stream", "text", "lines")


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
    label: str  # as the manifest names it: relative to the recipe
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
        from datamix.read import Sniff

        options = self.options
        if self.container in DOCUMENTS:
            options = tuple(sorted((*options, ("name", self.label))))  # what a kept `path` says
        seen = Sniff(self.container, self.compression, self.encoding, options, self.num_bytes)
        return [replace(piece, state=self.state) for piece in cut(self.path, self.sha256, seen)]


@dataclass(frozen=True)
class ScanSpec:
    """A group of files to look at, and what the recipe says of them."""

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
    paths = [path for path in find(request.paths, request.base) if not is_own(path, places)]
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
        spec = ScanSpec(
            tuple(paths[group.start : group.stop]),
            tuple(states[group.start : group.stop]),
            container,
            format_,
            request.encoding,
            request.columns,
        )
        weight = 1 + sum(size for size, *_ in spec.states)
        made.append(
            Task(f"scan {request.source}", digest("survey", _VERSION, spec), scan_files, spec, home, weight)
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
            f"{path} cannot be read: {error.strerror or error}. Check that it exists and may be read."
        ) from None


def scan_files(spec: ScanSpec, folder: Path) -> dict[str, Any]:
    """Hash and sniff each file, and detect the record format in its first records."""
    return {"files": [_scan(path, state, spec) for path, state in zip(spec.paths, spec.states, strict=True)]}


def _scan(path: str, state: tuple[int, ...], spec: ScanSpec) -> dict[str, Any]:
    seen = sniff(path, spec.container, state)
    sha256 = sha256_of(path, state)
    encoding = spec.encoding or seen.encoding
    piece = Slice(path, sha256, seen.container, seen.compression, encoding, seen.options, state=state)
    found: dict[str, Any] = {**asdict(seen), "sha256": sha256, "encoding": encoding}
    found |= {"format": spec.format, "kind": None, "columns": [], "message": ""}
    if seen.container in ("text", "lines") and spec.format in (None, "text"):
        return {**found, "format": "text", "kind": "text"}
    values: list[Any] = []
    for rows in islice(read(piece, limit=_SAMPLE_RECORDS), 8):
        values += rows.values
    detected = detect(values, spec.columns) if values else None
    if spec.format is None and detected is not None:
        found |= {
            "format": detected.format,
            "kind": detected.kind,
            "columns": [list(c) for c in detected.columns],
        }
    elif spec.format is not None and spec.format in RECORD_FORMATS:
        found |= {"kind": RECORD_FORMATS[spec.format].kinds[0]}
    if found["format"] is None and values:
        keys = sorted(values[0]) if isinstance(values[0], dict) else [type(values[0]).__name__]
        found["message"] = f"its first record has the fields {', '.join(map(str, keys))[:200]}"
    return found


def files(request: SourceRequest, done: Sequence[tuple[Task, Receipt]]) -> list[InputFile]:
    """The files of a source, sorted by path, from the receipts of its survey."""
    result: list[InputFile] = []
    for task, receipt in done:
        spec: ScanSpec = task.spec
        for path, state, seen in zip(spec.paths, spec.states, receipt.counts["files"], strict=True):
            result.append(_found(request, path, state, seen))
    names = Counter(file.label for file in result)
    if max(names.values(), default=1) > 1:  # URLs that differ only in what is masked
        result = [
            replace(f, label=f"{f.label}#{n}") if names[f.label] > 1 else f for n, f in enumerate(result)
        ]
    return result


def _found(request: SourceRequest, path: str, state: tuple[int, ...], seen: dict[str, Any]) -> InputFile:
    if seen["format"] is None and seen["message"]:
        raise DataError(
            f"{path} (source {request.source}): the format of its records was not recognised: {seen['message']}. Name the "
            f"format (`format: alpaca`, one of {', '.join(RECORD_FORMATS)}) or map the fields "
            "(`columns: {instruction: THEIR_FIELD, output: THEIR_FIELD}`)."
        )
    return InputFile(
        source=request.source,
        path=path,
        label=_label(path, request.base),
        sha256=seen["sha256"],
        num_bytes=seen["num_bytes"],
        container=seen["container"],
        compression=seen["compression"],
        encoding=seen["encoding"],
        options=tuple((a, b) for a, b in seen["options"]),
        format=seen["format"],
        kind=seen["kind"],
        columns=request.columns or tuple((a, b) for a, b in seen["columns"]),
        state=state,
    )


def _label(path: str, base: str) -> str:
    """A file's name relative to the recipe; URLs are masked."""
    return mask_url(path) if "://" in path else Path(os.path.relpath(path, base)).as_posix()


def unchanged(found: Sequence[InputFile]) -> None:
    """Raise DataError where a file changed since it was surveyed."""
    for file in found:
        if _state(file.path) != tuple(file.state):
            raise DataError(
                f"{file.path} (source {file.source}) changed while it was being read. Nothing built from it can be trusted: "
                "wait until it is written, and run the same command again."
            )
