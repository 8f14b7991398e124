"""Plain numpy: one-dimensional ``.npy`` files that ``np.load(..., mmap_mode="r")`` maps.

``input_ids`` end to end in the smallest dtype that holds the vocabulary, ``rows`` and ``documents`` where each ends
(int64, from 0), ``loss_mask`` one byte a token where its label counts: ``labels = where(loss_mask, input_ids, -100)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.columns import pour, token_dtype
from datamix.exporters.paths import make_room, shard_name
from datamix.exporters.target import SetInfo


@dataclass(frozen=True)
class Npy:
    """``train/00000.input_ids.npy``, ``.loss_mask.npy``, ``.rows.npy``, ``.documents.npy``."""

    info: SetInfo
    split: str

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its names."""
        parts = ("input_ids", "loss_mask", "rows", "documents")
        names = [shard_name(self.split, index, f".{part}.npy") for part in parts]
        dtype = token_dtype(self.info.vocab_size)
        with ExitStack() as stack:
            tokens, mask, *borders = [
                stack.enter_context(make_room(folder, name).open("w+b")) for name in names
            ]
            for stream, kind in ((tokens, dtype), (mask, np.dtype(np.uint8))):
                _write_header(stream, kind, 0)
            ends = pour(batches, tokens, dtype, mask)
            for stream, kind in ((tokens, dtype), (mask, np.dtype(np.uint8))):
                stream.seek(0)
                _write_header(stream, kind, int(ends.rows[-1]))
            np.lib.format.write_array(borders[0], ends.rows, version=(1, 0))
            np.lib.format.write_array(borders[1], ends.documents, version=(1, 0))
        return names

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """No extra files."""
        return []

    def keeps(self) -> tuple[str, ...]:
        """Everything is there; what a program makes of it is its own."""
        return ("ratio", "order", "isolation")

    def command(self) -> str:
        """How it is read."""
        return 'np.load("train/00000.input_ids.npy", mmap_mode="r")'


def _write_header(stream: BinaryIO, dtype: np.dtype[Any], length: int) -> None:
    """numpy pads the header so that any length fits the same 128 bytes: it is written again when the length is known."""
    described = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(stream, described)
