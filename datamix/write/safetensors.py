"""Safetensors: rows padded to one length, as tensors that load straight onto a GPU.

``input_ids``, ``labels`` and (where documents are packed) ``position_ids`` as int32 ``[num_rows, length]``, ``lengths`` int32
``[num_rows]`` real tokens a row. Padding carries the label -100; padded positions count up from 0, a document of their
own. Layout: ``u64 header bytes | header as JSON | tensors``. Rows are held until a file's worth of them is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.errors import DataError
from datamix.records import Kind
from datamix.write.arrays import Ragged, ragged, rechunk
from datamix.write.names import make_room, split_folder
from datamix.write.sets import SetInfo
from datamix.write.tokens import IGNORED


@dataclass(frozen=True)
class Safetensors:
    """``train/00000-000.safetensors``: ``safetensors.torch.load_file(path, device="cuda")``."""

    info: SetInfo
    split: str
    shard_bytes: int = 1 << 27

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard as one or more files; return their names."""
        written = []
        for number, tensors in enumerate(self._files(batches)):
            name = f"{split_folder(self.split)}/{index:05d}-{number:03d}.safetensors"
            with make_room(folder, name).open("wb") as stream:
                stream.write(encode_header(tensors))
                for tensor in tensors.values():
                    stream.write(np.ascontiguousarray(tensor).data)
            written.append(name)
        return written

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Nothing stands beside the shards."""
        return []

    def keeps(self) -> tuple[str, ...]:
        """Everything is there; what a program makes of it is its own."""
        return ("ratio", "order", "isolation")

    def command(self) -> str:
        """How it is read."""
        return 'safetensors.torch.load_file("train/00000-000.safetensors", device="cuda")'

    def _files(self, batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, NDArray[np.int32]]]:
        width = self.info.max_length or 1
        num_tensors = 3 if self.info.packed else 2
        num_rows = max(1, self.shard_bytes // (4 * width * num_tensors))
        empty = True
        for table in rechunk(batches, num_rows):
            (batch,) = table.to_batches()
            yield self._tensors(batch)
            empty = False
        if empty:
            yield self._tensors(pa.RecordBatch.from_pylist([], schema=self.info.schema))

    def _tensors(self, batch: pa.RecordBatch) -> dict[str, NDArray[np.int32]]:
        ids = ragged(batch, "input_ids")
        width = self.info.max_length or 1
        if len(ids.lengths) and int(ids.lengths.max()) > width:
            raise DataError(
                f"a row of {int(ids.lengths.max())} tokens stands in a set of max_length {width}; the set and its "
                "manifest do not belong together"
            )
        tensors = {
            "input_ids": _padded(ids, width, self.info.filler_id),
            "labels": _padded(ragged(batch, "labels"), width, IGNORED),
        }
        if self.info.packed:
            tensors["position_ids"] = _padded_positions(ragged(batch, "position_ids"), width)
        tensors["lengths"] = ids.lengths.astype(np.int32)
        return tensors


def _padded(column: Ragged, width: int, fill: int) -> NDArray[np.int32]:
    out = np.full((len(column.lengths), width), fill, np.int32)
    out[np.arange(width) < column.lengths[:, None]] = column.flat
    return out


def _padded_positions(column: Ragged, width: int) -> NDArray[np.int32]:
    places = np.arange(width, dtype=np.int32)
    lengths = column.lengths.astype(np.int32)[:, None]
    out = np.broadcast_to(places, (len(lengths), width)) - lengths
    out[places < lengths] = column.flat
    return out


def encode_header(tensors: dict[str, NDArray[np.int32]]) -> bytes:
    """The head of a safetensors file of int32 tensors that follow in this order, padded to 8 bytes."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        described[name] = {
            "dtype": "I32",
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
