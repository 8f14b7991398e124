"""Rows of foreign formats to files: JSON Lines, JSON, CSV, TSV, Parquet, by the file's name; gzip, zstd, xz, bz2, lz4 of text.

Tables hold less than JSON: in a CSV every cell is text, so lists and objects are written as JSON text where a reader
parses them, and conversations of one turn as that turn's text. In Parquet, calls and tools are JSON text, because a
column of objects with different fields would give each the fields of all. What still cannot be held is counted as lost.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import lz4.frame
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from numpy.typing import NDArray

from datamix.core.contracts import Rows, Slice
from datamix.core.errors import RecipeError

OutputRow = dict[str, Any]
_PARSED = {
    "messages",
    "conversations",
    "history",
    "tools",
    "chosen_messages",
    "rejected_messages",
    "completions",
}
_PARSED |= {"instances", "responses", "chat_template_kwargs", "rewards_armorm"}
_EMPTY_IS_NONE = {"system", "input", "history", "tools", "chat_template_kwargs", "reasoning", "margin"}
_SPOKEN = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
_NAMES = "jsonl, json, csv, tsv or parquet (jsonl, json, csv and tsv also with .gz, .zst, .xz, .bz2 or .lz4)"


class RowWriter(Protocol):
    """Takes rows in chunks; ``lost`` says what the container could not hold."""

    num_rows: int
    lost: Counter[str]

    def write(self, rows: list[OutputRow]) -> None: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def open_writer(path: Path, name: str, format: str) -> Iterator[RowWriter]:
    """A writer to ``path`` of the container that ``name`` says. Raises RecipeError: the name says none."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes[-2:]]
    compressed = bool(suffixes) and suffixes[-1] in _OPENERS
    container = (suffixes[:-1] if compressed else suffixes)[-1:]
    codec = suffixes[-1] if compressed else ""
    if container == [".parquet"] and not codec:
        writer: RowWriter = _Parquet(path)
    elif container in ([".jsonl"], [".ndjson"]):
        writer = _Json(_text(path, codec), lines=True)
    elif container == [".json"]:
        writer = _Json(_text(path, codec), lines=False)
    elif container in ([".csv"], [".tsv"]):
        writer = _Csv(_text(path, codec), path, "," if container == [".csv"] else "\t", format)
    else:
        raise RecipeError(f"{name}: its name does not say what to write. Known are {_NAMES}.")
    with contextlib.closing(writer):
        yield writer


def _gzip(path: Path, mode: str) -> Any:
    """gzip without a time and a name, so that equal rows give equal bytes."""
    stream = open(path, mode)  # noqa: SIM115 - closed with the archive, as its `myfileobj`
    archive = gzip.GzipFile("", mode, fileobj=stream, mtime=0)
    archive.myfileobj = stream  # type: ignore[assignment]
    return archive


_OPENERS: dict[str, Any] = {
    "": open,
    ".gz": _gzip,
    ".zst": zstandard.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".lz4": lz4.frame.open,
}


def _text(path: Path, codec: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(_OPENERS[codec](path, "wb"), encoding="utf-8", newline="")


def _dumps(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class _Json:
    """JSON Lines, or one array with a record a line."""

    def __init__(self, stream: io.TextIOWrapper, lines: bool) -> None:
        self.num_rows = 0
        self.lost: Counter[str] = Counter()
        self._stream = stream
        self._lines = lines

    def write(self, rows: list[OutputRow]) -> None:
        for row in rows:
            if not self._lines:
                self._stream.write(",\n" if self.num_rows else "[\n")
            self._stream.write(_dumps(row))
            if self._lines:
                self._stream.write("\n")
            self.num_rows += 1

    def close(self) -> None:
        if not self._lines:
            self._stream.write("\n]\n" if self.num_rows else "[]\n")
        self._stream.close()


class _Csv:
    """Comma or tab separated. The header is known when all rows are: until then they wait in a file beside the target."""

    def __init__(self, stream: io.TextIOWrapper, path: Path, delimiter: str, format: str) -> None:
        self.num_rows = 0
        self.lost: Counter[str] = Counter()
        self._stream = stream
        self._delimiter = delimiter
        self._spoken = _SPOKEN if format in ("preference", "prompt_completion", "prompt", "kto") else {}
        self._waiting = _Waiting(path)
        self._num_cells: Counter[str] = Counter()  # in the order in which fields appear

    def write(self, rows: list[OutputRow]) -> None:
        for row in rows:
            cells = {field: self._cell(field, value) for field, value in row.items()}
            self._num_cells.update(cells.keys())
            self._waiting.add(cells)
            self.num_rows += 1

    def _cell(self, field: str, value: Any) -> str:
        if isinstance(value, str):
            return value
        role = self._spoken.get(field)
        if role and isinstance(value, list) and len(value) == 1 and set(value[0]) == {"role", "content"}:
            return str(value[0]["content"])
        if role:
            self.lost[f"turns in {field} (CSV holds one text)"] += 1
        elif field not in _PARSED and not isinstance(value, (bool, int, float)):
            self.lost[f"the structure of {field} (CSV holds text)"] += 1
        elif field not in _PARSED and field not in ("label", "margin"):
            self.lost[f"that {field} is not text (CSV holds text)"] += 1
        return _dumps(value)

    def close(self) -> None:
        with contextlib.closing(self._stream):
            for field, num in self._num_cells.items():
                if num < self.num_rows and field not in _EMPTY_IS_NONE:
                    self.lost[f"where {field} is absent (CSV holds an empty text)"] += self.num_rows - num
            table = csv.writer(self._stream, delimiter=self._delimiter, lineterminator="\n")
            if self._num_cells:
                table.writerow(self._num_cells)
            for cells in self._waiting.rows():
                table.writerow([cells.get(field, "") for field in self._num_cells])


class _Parquet:
    """Parquet with the schema of all rows; until it is known they wait in a file beside the target."""

    def __init__(self, path: Path) -> None:
        self.num_rows = 0
        self.lost: Counter[str] = Counter()
        self._path = path
        self._waiting = _Waiting(path)
        self._schema = pa.schema([])

    def write(self, rows: list[OutputRow]) -> None:
        flat = [{field: self._column(field, value) for field, value in row.items()} for row in rows]
        if not flat:
            return
        fields = dict.fromkeys(field for row in flat for field in row)
        table = pa.table({field: pa.array([row.get(field) for row in flat]) for field in fields})
        self._schema = pa.unify_schemas([self._schema, table.schema], promote_options="permissive")
        for row in flat:
            self._waiting.add(row)
        self.num_rows += len(flat)

    def _column(self, field: str, value: Any) -> Any:
        if field in ("tools", "chat_template_kwargs") and not isinstance(value, str):
            return _dumps(value)
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            return [_flat_turn(item) if isinstance(item, dict) else item for item in value]
        if isinstance(value, dict) and not {"from", "value"} >= value.keys():
            self.lost[f"the structure of {field} (written as JSON text)"] += 1
            return _dumps(value)
        return value

    def close(self) -> None:
        with pq.ParquetWriter(self._path, self._schema, compression="zstd") as writer:
            chunk: list[OutputRow] = []
            for row in self._waiting.rows():
                chunk.append(row)
                if len(chunk) == 1024:
                    writer.write_table(pa.Table.from_pylist(chunk, self._schema))
                    chunk = []
            if chunk:
                writer.write_table(pa.Table.from_pylist(chunk, self._schema))


def _flat_turn(turn: OutputRow) -> OutputRow:
    """A turn with its calls' arguments as JSON text."""
    if not turn.get("tool_calls"):
        return turn
    calls = [
        {**call, "function": {**call["function"], "arguments": _arguments(call["function"]["arguments"])}}
        for call in turn["tool_calls"]
    ]
    return {**turn, "tool_calls": calls}


def _arguments(value: Any) -> str:
    return value if isinstance(value, str) else _dumps(value)


class _Waiting:
    """Rows as JSON Lines in a file beside the target, gone when they were read."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".rows")
        self._stream = self._path.open("w", encoding="utf-8")

    def add(self, row: OutputRow) -> None:
        self._stream.write(_dumps(row))
        self._stream.write("\n")

    def rows(self) -> Iterator[OutputRow]:
        self._stream.close()
        try:
            with self._path.open(encoding="utf-8", newline="\n") as stream:
                for line in stream:
                    yield json.loads(line)
        finally:
            self._path.unlink()


_WIDE = ("utf-16", "utf-32")
_BUFFER_BYTES = 1 << 20


class KeptWriter:
    """One text file that records are copied to, compressed as its suffix says (.gz, .zst, .bz2, .lz4).

    JSON Lines, JSON and text keep their bytes; tables come out as UTF-8.
    """

    def __init__(self, path: Path, piece: Slice) -> None:
        self.path = path
        self._piece = piece
        self._stream = pa.output_stream(str(path), compression="detect", buffer_size=_BUFFER_BYTES)
        self._num_written = 0

    def copy(self, chunks: Iterable[Rows], gone: set[int]) -> int:
        """Copy all but the records in ``gone``; returns how many records were read, broken ones included."""
        total = 0
        for rows in chunks:
            read = [*zip(rows.records, rows.raws, rows.values, strict=True)]
            read += [(reject.record, reject.raw, None) for reject in rows.rejects]
            for record, raw, value in sorted(read, key=lambda item: item[0]):
                if record not in gone:
                    self._write(raw, value)
            total += len(read)
        return total

    def _write(self, raw: bytes, value: object) -> None:
        container = self._piece.container
        if container == "csv":
            raw = self._table_row(value) if isinstance(value, dict) else raw + b"\n"
        elif value is not None and self._piece.encoding.startswith(_WIDE):
            raw = orjson.dumps(value)
        if container == "json":
            raw = (b",\n" if self._num_written else b"[\n") + raw
        elif container in ("jsonl", "lines"):
            raw += b"\n"
        self._stream.write(raw)
        self._num_written += 1

    def _table_row(self, value: dict[str, object]) -> bytes:
        text = io.StringIO(newline="")
        options = dict(self._piece.options)
        rows = csv.writer(text, delimiter=options.get("delimiter", ","), lineterminator="\n")
        if not self._num_written:
            rows.writerow(list(value))
        rows.writerow(["" if cell is None else cell for cell in value.values()])
        return text.getvalue().encode()

    def close(self) -> None:
        if self._piece.container == "json":
            self._stream.write(b"\n]\n" if self._num_written else b"[]\n")
        self._stream.close()


def copied_columns(source: str, container: str, target: Path, gone: NDArray[np.int64]) -> int:
    """Copy a Parquet or Arrow file without the rows in ``gone``, its schema as it is; returns the rows read."""
    total = 0
    with pa.OSFile(source, "rb") as stream:
        batches, schema = _opened(stream, container)
        with _sink(target, container, schema) as sink:
            for batch in batches:
                rows = np.arange(total, total + len(batch))
                sink.write_batch(batch.filter(pa.array(~np.isin(rows, gone))))
                total += len(batch)
    return total


def _opened(stream: pa.NativeFile, container: str) -> tuple[Iterable[pa.RecordBatch], pa.Schema]:
    if container == "parquet":
        parquet = pq.ParquetFile(stream)
        return parquet.iter_batches(), parquet.schema_arrow
    if container == "arrow_stream":
        reader = pa.ipc.open_stream(stream)
        return reader, reader.schema
    file = pa.ipc.open_file(stream)
    return (file.get_batch(i) for i in range(file.num_record_batches)), file.schema


def _sink(
    target: Path, container: str, schema: pa.Schema
) -> pq.ParquetWriter | pa.ipc.RecordBatchFileWriter | pa.ipc.RecordBatchStreamWriter:
    if container == "parquet":
        return pq.ParquetWriter(target, schema, compression="zstd")
    open_ipc = pa.ipc.new_file if container == "arrow" else pa.ipc.new_stream
    return open_ipc(str(target), schema)
