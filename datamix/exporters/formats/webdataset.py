"""WebDataset: tar files, one file a column and row, read as a stream.

Row i of a shard is ``SHARD-ROW.input_ids.npy`` and so on for lists of numbers, and ``SHARD-ROW.json`` for everything else.
Headers hold no time, user or mode of this machine: the same rows give the same tar. Costs one row of memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import orjson
import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.export_format import ExportFormat
from datamix.exporters.folder import make_room, shard_name
from datamix.exporters.samples import Cell, cells, is_numbers, json_cells, write_parts

_BLOCK_BYTES, _RECORD_BYTES = 512, 10240


@dataclass(frozen=True)
class WebDataset(ExportFormat):
    """``train/00000.tar``: ``webdataset.WebDataset("train/{00000..00009}.tar", shardshuffle=False).decode()``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its name."""
        name = shard_name(self.split, index, ".tar")
        with make_room(folder, name).open("wb") as tar:
            num_bytes = write_parts(tar, _members(batches, index))
            # two empty blocks, then whole records
            tar.write(bytes(1024 + -(num_bytes + 1024) % _RECORD_BYTES))
        return [name]

    def command(self) -> str:
        """How it is read."""
        return 'webdataset.WebDataset("train/00000.tar", shardshuffle=False).decode()'


def _members(batches: Iterable[pa.RecordBatch], index: int) -> Iterator[Cell]:
    """The files of all rows, each a header, its content and zeros up to a whole block."""
    number = 0
    for batch in batches:
        numbers = [f for f in batch.schema if is_numbers(f.type) and not batch.column(f.name).null_count]
        columns = [
            (f".{f.name}.npy", np.dtype(f.type.value_type.to_pandas_dtype()), cells(batch, f.name))
            for f in numbers
        ]
        objects = _objects(batch, [f.name for f in batch.schema if f not in numbers])
        for i, text in enumerate(objects):
            key = b"%05d-%08d" % (index, number)
            for suffix, dtype, arrays in columns:
                array = arrays[i]
                start = _npy_start(dtype.str, len(array) // dtype.itemsize)
                size = len(start) + len(array)
                yield _tar_header(key, suffix, size) + start
                yield array
                yield bytes(-size % _BLOCK_BYTES)
            yield _tar_header(key, ".json", len(text))
            yield text + bytes(-len(text) % _BLOCK_BYTES)
            number += 1


def _objects(batch: pa.RecordBatch, names: list[str]) -> list[bytes]:
    """What ``orjson.dumps`` makes of some columns of each row."""
    columns = [json_cells(batch, name) for name in names]
    form = b"{" + b",".join(orjson.dumps(name).replace(b"%", b"%%") + b":%b" for name in names) + b"}"
    return [form % row for row in zip(*columns, strict=True)] if names else [b"{}"] * len(batch)


def _tar_header(key: bytes, suffix: str, size: int) -> bytes:
    """The 512 bytes before the file ``key + suffix`` (POSIX ustar): mode 644, user 0, group 0, time 0."""
    middle, end, total = _tar_fields(len(key), suffix, size)
    return b"%b%b%06o%b" % (key, middle, total + sum(key), end)


@lru_cache(maxsize=4096)
def _tar_fields(key_bytes: int, suffix: str, size: int) -> tuple[bytes, bytes, int]:
    """A header without its key and checksum: what is between them, what follows, and their sum."""
    middle = (
        suffix.encode().ljust(100 - key_bytes, b"\0")
        + b"0000644\0"
        + b"0000000\0" * 2
        + b"%011o\0" % size
        + b"00000000000\0"
    )
    end = (b"\0 0" + bytes(100) + b"ustar\x0000").ljust(_BLOCK_BYTES - 154, b"\0")
    # the checksum's eight bytes count as spaces, two of them are in `end`
    spaces = sum(b" " * 6) + sum(b" ")
    return middle, end, sum(middle) + sum(end) + spaces


@lru_cache(maxsize=4096)
def _npy_start(dtype: str, length: int) -> bytes:
    stream = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()
