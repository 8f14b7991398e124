"""LitData: rows as items of named tensors, or tokens alone for its ``TokensLoader``.

Layout (``litdata/streaming/writer.py``): ``uint32 n | uint32[n+1] offsets | items`` in chunks of about 64 MiB, with an
index. ``rows`` keeps our rows as they are: an item is the sizes of its columns, then their bytes. ``tokens`` holds ids
only: its reader joins a chunk's documents, cuts blocks of another length and drops what is left of each chunk.
Costs one chunk of memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from datamix.core.arrays import ragged
from datamix.core.errors import RecipeError
from datamix.core.records import Kind
from datamix.exporters.columns import as_tokens
from datamix.exporters.export_format import ExportFormat
from datamix.exporters.folder import make_room, split_folder, write_json
from datamix.exporters.samples import Sample, by_size, cells, check_shard_bytes, is_numbers, samples

_TORCH_CODES = {"int8": 12, "int32": 16, "uint16": 20}  # litdata's numbers for torch dtypes
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


@dataclass(frozen=True)
class LitData(ExportFormat):
    """``train/chunk-00000-000.bin``, ``train/index.json``: ``litdata.StreamingDataset(FOLDER + "/train")``."""

    layout: Literal["rows", "tokens"] = "rows"
    shard_bytes: int = 1 << 26

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")

    def __post_init__(self) -> None:
        check_shard_bytes("litdata", self.shard_bytes)
        if self.layout == "tokens" and self.info.kind != "pretrain":
            raise RecipeError(
                f"write: litdata.layout tokens holds ids without labels, and this set is of kind {self.info.kind}; "
                "leave `layout` out (rows)."
            )

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard as one or more chunks; return their names."""
        items = (item for batch in batches for item in self._items(batch))
        written = []
        for number, part in enumerate(by_size(items, self.shard_bytes)):
            name = f"{split_folder(self.split)}/chunk-{index:05d}-{number:03d}.bin"
            part.write(make_room(folder, name))
            written.append(name)
        return written

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the index of a split."""
        chunks = []
        for name in (name for names in shards for name in names):
            size = (folder / name).stat().st_size
            with (folder / name).open("rb") as stream:
                count = int.from_bytes(stream.read(4), "little")
            dim = (size - 4 - 4 * (count + 1)) // self._dtype.itemsize if self.layout == "tokens" else None
            entry = {"chunk_bytes": size, "chunk_size": count, "dim": dim, "filename": Path(name).name}
            chunks.append(entry)
        index = {"chunks": chunks, "config": self._config(), "updated_at": "0"}
        return [write_json(folder, f"{split_folder(self.split)}/index.json", index)]

    def keeps(self) -> tuple[str, ...]:
        """Rows keep everything without a shuffle; blocks of tokens run across documents."""
        return ("ratio", "order", "isolation") if self.layout == "rows" else ("ratio", "order")

    def command(self) -> str:
        """How it is read."""
        loader = f", item_loader=litdata.TokensLoader(block_size={self.info.max_length})"
        return f'litdata.StreamingDataset("train", shuffle=False{loader if self.layout == "tokens" else ""})'

    def _items(self, batch: pa.RecordBatch) -> Iterator[Sample]:
        if self.layout == "rows":
            yield from samples([([], cells(batch, name)) for name in self.info.schema.names])
            return
        ids = ragged(batch, "input_ids")
        tokens = as_tokens(ids.flat, self._dtype)
        view = tokens.data.cast("B")
        edges = (ids.offsets - ids.offsets[0]) * self._dtype.itemsize
        for a, b in pairwise(edges.tolist()):
            yield Sample(b - a, [view[a:b]])

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype("<u2") if self.info.vocab_size <= 1 << 16 else np.dtype("<i4")  # it has no uint32

    def _config(self) -> dict[str, Any]:
        schema = self.info.schema
        if self.layout == "tokens":
            formats = [f"no_header_tensor:{_TORCH_CODES[self._dtype.name]}"]
            tree: dict[str, Any] = _LEAF
        else:
            formats = [
                f"no_header_tensor:{_TORCH_CODES[str(field.type.value_type)]}"
                if is_numbers(field.type)
                else "str"
                for field in schema
            ]
            tree = {
                "type": "builtins.dict",
                "context": json.dumps(schema.names),
                "children_spec": [_LEAF] * len(schema.names),
            }
        return {
            "chunk_bytes": self.shard_bytes,
            "chunk_size": None,
            "compression": None,
            "data_format": formats,
            "data_spec": json.dumps([1, tree]),
            "encryption": None,
            "item_loader": "PyTreeLoader" if self.layout == "rows" else "TokensLoader",
        }
