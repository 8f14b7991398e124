"""Rows as bytes, column by column: what MDS and LitData share.

Both store a sample as the sizes of its columns (uint32 each) and then the columns' bytes, and a file of samples as their
number, their absolute offsets (uint32) and the samples. They differ in the order of columns, in what stands before an
array's values, and in what stands between offsets and samples. A file is put together in memory and cut by size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from datamix.errors import DataError, RecipeError
from datamix.write.arrays import ragged

Cell = bytes | memoryview
MAX_SHARD_BYTES = 1 << 31  # offsets are uint32; half of it leaves room for the row that passes the limit


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
    return [orjson.dumps(value) for value in batch.column(name).to_pylist()]


def samples(columns: Sequence[Sequence[Cell]]) -> Iterator[bytes]:
    """Samples from their columns: sizes, then bytes."""
    sizes = np.array([[len(cell) for cell in column] for column in columns], "<u4").T
    heads = sizes.tobytes()
    width = 4 * len(columns)
    for i, row in enumerate(zip(*columns, strict=True)):
        yield b"".join((heads[i * width : (i + 1) * width], *row))


@dataclass(frozen=True)
class SampleFile:
    """Samples that fit one file."""

    samples: list[bytes]

    def encode(self, between: bytes = b"") -> bytes:
        """``uint32 n | uint32[n + 1] absolute offsets | between | samples``."""
        num_samples = len(self.samples)
        ends = np.cumsum([0, *map(len, self.samples)], dtype=np.int64)
        offsets: NDArray[np.int64] = ends + 4 + 4 * (num_samples + 1) + len(between)
        if offsets[-1] > np.iinfo(np.uint32).max:
            raise DataError(
                f"a file of {offsets[-1]} bytes passes what uint32 offsets can hold; lower shard_bytes"
            )
        head = np.array([num_samples, *offsets.tolist()], "<u4").tobytes()
        return b"".join((head, between, *self.samples))


def by_size(stream: Iterable[bytes], shard_bytes: int) -> Iterator[SampleFile]:
    """Samples cut into files of about ``shard_bytes``; an empty stream gives one empty file."""
    waiting: list[bytes] = []
    held = 0
    num_files = 0
    for sample in stream:
        if waiting and held + len(sample) > shard_bytes:
            yield SampleFile(waiting)
            num_files += 1
            waiting, held = [], 0
        waiting.append(sample)
        held += len(sample)
    if waiting or not num_files:
        yield SampleFile(waiting)


def check_shard_bytes(name: str, shard_bytes: int) -> None:
    """Refuse a size that the format's offsets cannot hold.

    Raises:
        RecipeError: not between 1 and 2 GiB.
    """
    if not 0 < shard_bytes <= MAX_SHARD_BYTES:
        raise RecipeError(
            f"write: {name}.shard_bytes is {shard_bytes}; its offsets are 32 bits wide: give 1 to {MAX_SHARD_BYTES}."
        )
