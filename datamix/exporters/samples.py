"""Rows as bytes, column by column: what MDS and LitData share.

Both store a sample as the sizes of its columns (uint32 each) and then the columns' bytes, and a file of samples as their
number, their absolute offsets (uint32) and the samples. They differ in the order of columns, in what is before an
array's values, and in what is between offsets and samples. A file is put together in memory and cut by size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import ragged
from datamix.core.errors import DataError, RecipeError
from datamix.core.records import PIECE

Cell = bytes | memoryview
MAX_SHARD_BYTES = 1 << 31  # offsets are uint32; half of it leaves room for the row that passes the limit
_PARTS_A_CALL = (
    64  # of a gathering write: what they hold stays in the processor's cache between its two passes
)
_PIECES = pa.list_(PIECE)


def is_numbers(kind: pa.DataType) -> bool:
    """Whether a column is a list of integers, stored as raw values."""
    return bool(pa.types.is_list(kind) and pa.types.is_integer(kind.value_type))


def is_words(name: str) -> bool:
    """Whether a column is stored as plain text: ``source`` and ``stage``, never null. All others become JSON."""
    return name in ("source", "stage")


def cells(batch: pa.RecordBatch, name: str) -> list[Cell]:
    """One column as bytes, ``[num_rows]``: raw little-endian values, UTF-8 text, or JSON."""
    if is_numbers(batch.schema.field(name).type):
        column = ragged(batch, name)
        view = np.ascontiguousarray(column.values).data.cast("B")
        edges = (column.offsets * column.values.itemsize).tolist()
        return [view[a:b] for a, b in pairwise(edges)]
    if is_words(name):
        return [text.encode() for text in batch.column(name).to_pylist()]
    return json_cells(batch, name)


def json_cells(batch: pa.RecordBatch, name: str) -> list[Cell]:
    """One column as JSON, ``[num_rows]``."""
    column = batch.column(name)
    if column.type != _PIECES:
        return [orjson.dumps(value) for value in column.to_pylist()]
    # the text that orjson makes of them: going through dicts would cost most of a file's time
    values = column.flatten()
    fields = [values.field(name).to_pylist() for name in PIECE.names]
    texts = [
        f'{{"file":{file},"record":{record},"start":{start},"length":{length}}}'
        for file, record, start, length in zip(*fields, strict=True)
    ]
    edges = (column.offsets.to_numpy() - column.offsets[0].as_py()).tolist()
    return [f"[{','.join(texts[a:b])}]".encode() for a, b in pairwise(edges)]


@dataclass(frozen=True)
class Sample:
    """One row: its size and the pieces that make it up, views of the rows where they can be."""

    num_bytes: int
    parts: list[Cell]


def samples(columns: Sequence[tuple[list[bytes], list[Cell]]]) -> Iterator[Sample]:
    """Samples from columns of ``(heads, bodies)``: the sizes of all columns, then each one's head (if any) and body."""
    sizes = np.array(
        [
            [len(body) + len(head) for head, body in zip(heads, bodies, strict=True)]
            if heads
            else [len(body) for body in bodies]
            for heads, bodies in columns
        ],
        np.int64,
    ).T
    starts = sizes.astype("<u4").tobytes()
    width = 4 * len(columns)
    flat = [cells for heads, bodies in columns for cells in (heads, bodies) if cells]
    totals = (sizes.sum(axis=1) + width).tolist()
    for i, row in enumerate(zip(*flat, strict=True)):
        yield Sample(totals[i], [starts[i * width : (i + 1) * width], *row])


@dataclass(frozen=True)
class SampleFile:
    """Samples that fit one file."""

    samples: list[Sample]

    def parts(self, between: bytes = b"") -> Iterator[Cell]:
        """``uint32 n | uint32[n + 1] absolute offsets | between | samples``, piece by piece."""
        num_samples = len(self.samples)
        ends = np.cumsum([0, *(sample.num_bytes for sample in self.samples)], dtype=np.int64)
        offsets: NDArray[np.int64] = ends + 4 + 4 * (num_samples + 1) + len(between)
        if offsets[-1] > np.iinfo(np.uint32).max:
            raise DataError(
                f"a file of {offsets[-1]} bytes passes what uint32 offsets can hold; lower shard_bytes"
            )
        yield np.array([num_samples, *offsets.tolist()], "<u4").tobytes()
        yield between
        for sample in self.samples:
            yield from sample.parts

    def write(self, path: Path, between: bytes = b"") -> None:
        """Write the file; rows are copied once, from their buffers to the file."""
        with path.open("wb") as stream:
            write_parts(stream, self.parts(between))


def write_parts(stream: BinaryIO, parts: Iterable[Cell]) -> int:
    """Append bytes (views of single bytes) without joining them first; returns how many."""
    rest, total = iter(parts), 0
    while some := list(islice(rest, _PARTS_A_CALL)):
        size = sum(map(len, some))
        written = os.writev(stream.fileno(), some)
        if written < size:  # the call was cut short
            stream.write(memoryview(b"".join(some))[written:])
            stream.flush()
        total += size
    return total


def by_size(stream: Iterable[Sample], shard_bytes: int) -> Iterator[SampleFile]:
    """Samples cut into files of about ``shard_bytes``; an empty stream gives one empty file."""
    waiting: list[Sample] = []
    num_bytes = 0
    for sample in stream:
        if waiting and num_bytes + sample.num_bytes > shard_bytes:
            yield SampleFile(waiting)
            waiting, num_bytes = [], 0
        waiting.append(sample)
        num_bytes += sample.num_bytes
    yield SampleFile(waiting)  # a stream that had samples leaves at least its last


def check_shard_bytes(name: str, shard_bytes: int) -> None:
    """Raises RecipeError where the format's offsets cannot hold the size: not between 1 and 2 GiB."""
    if not 0 < shard_bytes <= MAX_SHARD_BYTES:
        raise RecipeError(
            f"write: {name}.shard_bytes is {shard_bytes}; its offsets are 32 bits wide: give 1 to {MAX_SHARD_BYTES}."
        )
