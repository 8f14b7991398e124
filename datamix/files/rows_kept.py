"""Copy the records of a file that stay, as they stood: raw lines, array elements, table rows, row groups."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.contracts import Rows, Slice

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
