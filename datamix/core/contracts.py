"""The nouns that all rooms share. No logic lives here.

Every phase is one sentence: read a shard, pass it through stages, write a shard, sign a receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

UNITS = ("records", "tokens", "loss_tokens")  # what weights and sizes may count


@dataclass(frozen=True)
class Slice:
    """A part of one input file: the records that begin in ``[start, stop)``.

    ``stop`` is None for "to the end" (the only choice for files that cannot be cut). For line formats the
    unit is bytes; for Parquet and Arrow it is row groups / record batches.
    """

    path: str  # as it is opened
    sha256: str  # of the whole file: identifies the slice, whatever the path
    container: str  # jsonl | json | csv | parquet | arrow | text | ...
    compression: str | None = None  # gzip | zstd | xz | bz2 | lz4
    encoding: str = "utf-8"
    options: tuple[tuple[str, str], ...] = ()  # CSV dialect and the like, sorted
    start: int = 0
    stop: int | None = None
    # of the file when ``sha256`` was taken: what is read must have it; no part of any key
    state: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reject:
    """A record that could not be read or shaped: why, and its original bytes."""

    record: int  # ordinal inside its slice, counting every record that was read
    line: int | None  # 1-based line inside its slice where the container has lines
    reason: str  # a short code: json_syntax, utf8, missing_field, ...
    detail: str  # one sentence for a person: which field, what it holds
    raw: bytes


@dataclass(frozen=True)
class FastRows:
    """Lines of a chunk that the caller of ``read`` turned into a batch before they were parsed."""

    batch: pa.RecordBatch
    num_records: int  # of the slice up to the last of them, as with ``num_lines``
    num_lines: int
    num_bytes: int  # of them, as stored


@dataclass(frozen=True)
class Rows:
    """A chunk of parsed foreign rows, in file order, and what could not be parsed among them."""

    values: list[Any]  # dicts as a rule; text documents are {"text": ...}
    records: list[int]  # ordinal inside the slice of each value
    lines: list[int | None]
    raws: list[bytes]  # original bytes of each value (b"" where the container is binary: Parquet, Arrow)
    rejects: list[Reject] = field(default_factory=list)
    taken: FastRows | None = None  # those of the chunk's lines that were not parsed


@dataclass(frozen=True)
class Shaped:
    """Foreign rows in our own shape: a batch of ``records.SCHEMAS[kind]`` and what did not fit."""

    batch: pa.RecordBatch
    rejects: list[Reject]


@dataclass(frozen=True)
class Cleaned:
    """A batch after a list of cleaning steps."""

    batch: pa.RecordBatch  # the rows that stay, fixed
    dropped: dict[int, str]  # row of the batch that came in -> reason
    fixed: dict[str, int]  # step -> number of rows it changed


@dataclass(frozen=True)
class Receipt:
    """The proof that a task is done, written last and keyed by what went in."""

    key: str
    files: dict[str, int]  # name -> bytes
    counts: dict[str, Any]  # JSON only
    folder: Path  # where ``files`` are
    replaced_damage: bool = False  # a damaged result had this key: it was removed and computed again
    was_found: bool = False  # it was done before this run


@dataclass(frozen=True)
class Task:
    """One unit of work, picklable and small: it carries names, never data.

    ``call(spec, folder)`` writes files into the empty ``folder`` and returns JSON counts. ``key`` is the
    fingerprint of everything that can change a byte of them.
    """

    label: str  # for people: "encode medical 2/5"
    key: str
    call: Callable[[Any, Path], dict[str, Any]]
    spec: Any  # a frozen dataclass
    home: Path  # the store of the result
    weight: int = 1  # expected work, in bytes: for progress only


class Engine(Protocol):
    """Runs tasks anywhere; never looks inside one. The same tasks give the same bytes on every engine."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Receipt]]:
        """Yield ``(index of the task, receipt)`` as tasks end, in any order."""
        ...

    def warm(self, call: Callable[[Any], Any], spec: Any) -> None:
        """Announce upcoming work: ``call(spec)`` may be called for all workers, and keeps what that work
        needs.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Bins:
    """Rows of the training set as integers: which pieces of which records each row holds.

    Row ``r`` holds pieces ``offsets[r]..offsets[r+1]``; a piece is tokens ``start..start+length`` of a
    record.
    """

    offsets: NDArray[np.int64]  # [num_rows + 1]
    record: NDArray[np.int64]  # [num_pieces] ordinal of the record inside its source
    start: NDArray[np.int32]  # [num_pieces] tokens
    length: NDArray[np.int32]  # [num_pieces] tokens

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Schedule:
    """The order of the whole training set: row ``row[i]`` of source ``source[i]`` comes at place i."""

    source: NDArray[np.uint16]  # [num_rows]
    row: NDArray[np.int64]  # [num_rows]
    stage_ends: NDArray[np.int64]  # [num_stages] places where each stage ends


class Sink(Protocol):
    """One output format. ``write`` may run anywhere in parallel, once a shard; ``finish`` runs once."""

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write shard ``index`` below ``folder``; return the names of the files it wrote."""
        ...

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write what belongs once beside the shards (indexes, READMEs, ...); return the names."""
        ...
