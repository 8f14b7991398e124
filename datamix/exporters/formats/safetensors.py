"""Safetensors: rows padded to one length, as tensors that load straight onto a GPU.

``input_ids``, ``labels`` and (where documents are packed) ``position_ids`` as int32 ``[num_rows, length]``, ``lengths`` int32
``[num_rows]`` real tokens a row. Padding carries the label -100; padded positions count up from 0, a document of their
own. Layout: ``u64 header bytes | header as JSON | tensors``. Rows are held until they fill a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import IGNORE_INDEX, Ragged, ragged
from datamix.core.errors import DataError
from datamix.core.records import Kind
from datamix.exporters.columns import regroup
from datamix.exporters.export_format import ExportFormat
from datamix.exporters.folder import make_room, split_folder

_BUFFER_VALUES = 1 << 18


@dataclass(frozen=True)
class Safetensors(ExportFormat):
    """``train/00000-000.safetensors``: ``safetensors.torch.load_file(path, device="cuda")``."""

    shard_bytes: int = 1 << 27

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard as one or more files; return their names."""
        width = 4 * (self.info.max_length or 1) * len(self._columns)
        groups = regroup(batches, max(1, self.shard_bytes // width))
        first = next(groups, [self.info.empty])
        written = []
        for number, rows in enumerate(chain([first], groups)):
            name = f"{split_folder(self.split)}/{index:05d}-{number:03d}.safetensors"
            with make_room(folder, name).open("wb") as stream:
                self._write(rows, stream)
            written.append(name)
        return written

    def command(self) -> str:
        """How it is read."""
        return 'safetensors.torch.load_file("train/00000-000.safetensors", device="cuda")'

    @property
    def _columns(self) -> dict[str, int | None]:
        """The padded columns and what fills them; None: places that count up."""
        filled: dict[str, int | None] = {"input_ids": self.info.filler_id, "labels": IGNORE_INDEX}
        return filled | {"position_ids": None} if self.info.packed else filled

    def _write(self, rows: list[pa.RecordBatch], stream: BinaryIO) -> None:
        """One tensor after another, a few rows at a time through one buffer: pages are touched once."""
        width = self.info.max_length or 1
        lengths = np.concatenate([ragged(batch, "input_ids").lengths for batch in rows])
        if len(lengths) and int(lengths.max()) > width:
            raise DataError(
                f"a row has {int(lengths.max())} tokens in a set of max_length {width}; the set and its manifest "
                "do not belong together"
            )
        shapes: dict[str, tuple[int, ...]] = {name: (len(lengths), width) for name in self._columns}
        shapes |= {"lengths": (len(lengths),)}
        stream.write(encode_header(shapes))
        step = max(1, _BUFFER_VALUES // width)
        for name, fill in self._columns.items():
            for batch in rows:
                for start in range(0, len(batch), step):
                    stream.write(_padded(ragged(batch.slice(start, step), name), width, fill).data)
        stream.write(lengths.astype("<i4").data)


def _padded(column: Ragged, width: int, fill: int | None) -> NDArray[np.int32]:
    """Rows ``[num_rows, width]``: filled up with ``fill``, or with 0, 1, 2, ..."""
    lengths = column.lengths.astype(np.int32)[:, None]
    values: NDArray[np.int32] = column.flat.astype(np.int32, copy=False)
    if (lengths == width).all():
        return values.reshape(-1, width)
    places = np.arange(width, dtype=np.int32)
    out = np.full((len(lengths), width), fill, np.int32) if fill is not None else places - lengths
    out[places < lengths] = values
    return out


def encode_header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """The head of a safetensors file of int32 tensors that follow in this order, padded to 8 bytes."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + 4 * math.prod(shape)
        described[name] = {"dtype": "I32", "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
