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
from typing import Any, ClassVar

import numpy as np
import orjson
import pyarrow as pa

from datamix.records import Kind
from datamix.write.jsonl import row_dicts
from datamix.write.names import make_room, shard_name
from datamix.write.sets import SetInfo

_BLOCK_BYTES, _RECORD_BYTES = 512, 10240
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class WebDataset:
    """``train/00000.tar``: ``webdataset.WebDataset("train/{00000..00009}.tar", shardshuffle=False).decode()``."""

    info: SetInfo
    split: str

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its name."""
        name = shard_name(self.split, index, ".tar")
        rows = (row for batch in batches for row in row_dicts(batch))
        num_bytes = 0
        with make_room(folder, name).open("wb", buffering=_BUFFER_BYTES) as tar:
            for number, row in enumerate(rows):
                for part in _members(f"{index:05d}-{number:08d}", row):
                    num_bytes += tar.write(part)
            tar.write(
                bytes(1024 + -(num_bytes + 1024) % _RECORD_BYTES)
            )  # two empty blocks, then whole records
        return [name]

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Nothing stands beside the shards."""
        return []

    def keeps(self) -> tuple[str, ...]:
        """Read in order of the shards, without a shuffle, everything survives."""
        return ("ratio", "order", "isolation")

    def command(self) -> str:
        """How it is read."""
        return 'webdataset.WebDataset("train/00000.tar", shardshuffle=False).decode()'


def _members(key: str, row: dict[str, Any]) -> Iterator[bytes | memoryview]:
    """The files of a row, each a block of header and its content in whole blocks."""
    rest: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, np.ndarray):
            start = _npy_header(value.dtype.str, len(value))
            yield tar_header(f"{key}.{name}.npy", len(start) + value.nbytes)
            yield start
            yield np.ascontiguousarray(value).data.cast("B") if len(value) else b""
            yield bytes(-(len(start) + value.nbytes) % _BLOCK_BYTES)
        else:
            rest[name] = value
    text = orjson.dumps(rest)
    yield tar_header(f"{key}.json", len(text))
    yield text
    yield bytes(-len(text) % _BLOCK_BYTES)


def tar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a file of ``size`` bytes (POSIX ustar): mode 644, user 0, group 0, time 0."""
    fields = b"".join(
        (
            name.encode().ljust(100, b"\0"),
            b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0",
            b" " * 8,  # where the checksum goes counts as spaces
            b"0" + bytes(100) + b"ustar\x0000",
        )
    ).ljust(_BLOCK_BYTES, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


@lru_cache(maxsize=4096)
def _npy_header(dtype: str, length: int) -> bytes:
    stream = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()
