"""WebDataset: tar files, one file a column and row, read as a stream.

Row i of a shard is ``SHARD-ROW.input_ids.npy`` and so on for lists of numbers, and ``SHARD-ROW.json`` for everything else.
Headers hold no time, user or mode of this machine: the same rows give the same tar. Costs one row of memory.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from datamix.records import Kind
from datamix.write.jsonl import row_dicts
from datamix.write.names import make_room, shard_name
from datamix.write.sets import SetInfo


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
        with (
            make_room(folder, name).open("wb") as raw,
            tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for number, row in enumerate(rows):
                _add_row(tar, f"{index:05d}-{number:08d}", row)
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


def _add_row(tar: tarfile.TarFile, key: str, row: dict[str, Any]) -> None:
    rest: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, np.ndarray):
            _add(tar, f"{key}.{name}.npy", _npy(value))
        else:
            rest[name] = value
    _add(tar, f"{key}.json", orjson.dumps(rest))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its defaults: mode 644, user 0, group 0, time 0
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _npy(values: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, version=(1, 0))
    return stream.getvalue()
