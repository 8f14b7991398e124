"""MDS, the format of MosaicML Streaming: samples of named columns in files of about 64 MiB, with an index.

Layout (``streaming/base/format/mds``, version 2): ``uint32 n | uint32[n+1] offsets | config as JSON | samples``; a sample
is the sizes of its columns in the order of their names, then their bytes. Lists of numbers are ``ndarray:int32`` of any
length, so nothing is padded. Costs one file of memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import zstandard

from datamix.core.arrays import ragged
from datamix.core.records import Kind
from datamix.exporters.export_format import ExportFormat
from datamix.exporters.folder import make_room, split_folder, write_json
from datamix.exporters.samples import Cell, by_size, cells, check_shard_bytes, is_numbers, is_words, samples

_ZSTD_LEVEL = 3


@dataclass(frozen=True)
class Mds(ExportFormat):
    """``train/00000-000.mds``, ``train/index.json``: ``StreamingDataset(local=FOLDER, split="train")``."""

    compression: Literal["none", "zstd"] = "none"
    shard_bytes: int = 1 << 26

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")

    def __post_init__(self) -> None:
        check_shard_bytes("mds", self.shard_bytes)

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard as one or more files; return their names."""
        config = json.dumps(self._config(), sort_keys=True).encode()
        names = sorted(self.info.schema.names)
        stream = (s for batch in batches for s in samples([_column(batch, name) for name in names]))
        written = []
        for number, part in enumerate(by_size(stream, self.shard_bytes)):
            name = f"{split_folder(self.split)}/{index:05d}-{number:03d}.mds{self._suffix}"
            path = make_room(folder, name)
            if self._suffix:
                raw = b"".join(part.parts(config))
                path.write_bytes(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(raw))
            else:
                part.write(path, config)
            written.append(name)
        return written

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the index of a split."""
        entries = [self._entry(folder / name) for names in shards for name in names]
        index = {"version": 2, "shards": entries}
        return [write_json(folder, f"{split_folder(self.split)}/index.json", index)]

    def command(self) -> str:
        """How it is read."""
        return 'streaming.StreamingDataset(local=".", split="train", shuffle=False, batch_size=8)'

    @property
    def _suffix(self) -> str:
        return ".zstd" if self.compression == "zstd" else ""

    def _config(self) -> dict[str, Any]:
        schema = self.info.schema
        names = sorted(schema.names)
        kinds = [schema.field(name).type for name in names]
        return {
            "column_encodings": [
                f"ndarray:{k.value_type}" if is_numbers(k) else "str" if is_words(n) else "json"
                for n, k in zip(names, kinds, strict=True)
            ],
            "column_names": names,
            "column_sizes": [None] * len(names),
            "compression": f"zstd:{_ZSTD_LEVEL}" if self._suffix else None,
            "format": "mds",
            "hashes": [],
            "size_limit": self.shard_bytes,
        }

    def _entry(self, path: Path) -> dict[str, Any]:
        with path.open("rb") as stream:
            head = stream.read(64)
            if self._suffix:
                raw_bytes = int(zstandard.frame_content_size(head))
                stream.seek(0)
                head = zstandard.ZstdDecompressor().stream_reader(stream).read(4)
            else:
                raw_bytes = path.stat().st_size
        raw = {"basename": path.name.removesuffix(".zstd"), "bytes": raw_bytes, "hashes": {}}
        packed = {"basename": path.name, "bytes": path.stat().st_size, "hashes": {}}
        return {
            **self._config(),
            "raw_data": raw,
            "samples": int.from_bytes(head[:4], "little"),
            "version": 2,
            "zip_data": packed if self._suffix else None,
        }


def _column(batch: pa.RecordBatch, name: str) -> tuple[list[bytes], list[Cell]]:
    """The heads of one column's values (none where they are no arrays) and their bytes."""
    arrays = is_numbers(batch.schema.field(name).type)
    heads = [_shape(length) for length in ragged(batch, name).lengths.tolist()] if arrays else []
    return heads, cells(batch, name)


@lru_cache(maxsize=1 << 16)
def _shape(length: int) -> bytes:
    """One dimension: a byte of ``ndim * 4 + width code``, then the length in the smallest unsigned width."""
    code = (length > 0xFF) + (length > 0xFFFF)
    return bytes([4 + code]) + length.to_bytes(1 << code, "little")
