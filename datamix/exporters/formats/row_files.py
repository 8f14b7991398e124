"""The rows as they are: Parquet that any reader opens, Arrow that ``datasets.load_from_disk`` maps, JSON Lines for eyes and scripts.

*Parquet* holds no reader's private metadata (files with the ``huggingface`` key fail in older ``datasets``). Row groups are a
fixed number of rows, so the bytes do not depend on how rows came cut. zstd at level 1: level 3 makes files 6 % smaller
for 1.5 times the processor time. *Arrow*: each split is a dataset of its own, which ``dataset_dict.json`` joins. The features
are left out of ``dataset_info.json``: ``datasets`` reads them from the files, and releases 3 to 5 name them differently. A set
of several stages gets one more dataset a stage, which names the same files. It is not compressed: reading it is a page
fault. *JSON Lines*: one row a line, about twice the size of the tokens it holds. Each costs one chunk of rows of memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import xxhash

from datamix.core.arrays import row_dicts
from datamix.core.machine import files_below
from datamix.core.records import Kind
from datamix.exporters.columns import first_schema, rechunk
from datamix.exporters.export_format import ExportFormat, SetInfo
from datamix.exporters.folder import (
    Convert,
    TextCompression,
    by_stage,
    lines_suffix,
    make_room,
    shard_name,
    split_folder,
    stage_files,
    write_json,
    write_lines,
    write_parquet,
)

_LINE_ROWS = 256  # row dicts alive at once
_CHUNK_TOKENS = 1 << 18  # a chunk stays in the processor's cache between its copy and its file
_MAX_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Parquet(ExportFormat):
    """``train/00000.parquet``, ``validation/SOURCE-00000.parquet``."""

    compression: Literal["zstd", "snappy", "lz4", "gzip", "none"] = "zstd"

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its name."""
        name = f"{self.split}{'-' if '/' in self.split else '/'}{index:05d}.parquet"
        write_parquet(make_room(folder, name), batches, self.info, self.info.schema, self.compression)
        return [name]

    def command(self) -> str:
        """How it is read."""
        return 'datasets.load_dataset("parquet", data_files="train/*.parquet", split="train")'


@dataclass(frozen=True)
class JsonLines(ExportFormat):
    """``train/00000.jsonl``, with ``.gz`` or ``.zst`` where compressed."""

    compression: TextCompression = "none"

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its name."""
        name = shard_name(self.split, index, lines_suffix(self.compression))
        parts = (b.slice(start, _LINE_ROWS) for b in batches for start in range(0, len(b), _LINE_ROWS))
        rows = (row for part in parts for row in row_dicts(part))
        write_lines(make_room(folder, name), rows, self.compression)
        return [name]

    def command(self) -> str:
        """How it is read."""
        return 'datasets.load_dataset("json", data_files="train/*.jsonl*", split="train")'


@dataclass(frozen=True)
class Arrow(ExportFormat):
    """``train/data-00000.arrow``, ``train/state.json``, ``dataset_dict.json``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return their names."""
        return ArrowFolder(self.info, self.split).write(batches, index, folder)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write what ``load_from_disk`` looks for."""
        return ArrowFolder(self.info, self.split).finish(shards, folder)

    def command(self) -> str:
        """How it is read."""
        return 'datasets.load_from_disk(".")'


@dataclass(frozen=True)
class ArrowFolder:
    """A ``save_to_disk`` folder of what ``convert`` makes of the rows (None: rows as they are); formats of trainers write theirs through it."""

    info: SetInfo
    split: str
    convert: Convert | None = None
    below: str = ""  # its folder below the format's, ending in "/"

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write Arrow stream files ``SPLIT/data-INDEX[-sN-STAGE].arrow``; return the names."""
        names = []
        for suffix, run in by_stage(batches, self.info, self.split):
            names.append(self.shard_name(index, suffix))
            self.write_stream(make_room(folder, names[-1]), run)
        return names

    def shard_name(self, index: int, suffix: str) -> str:
        """``tokenized/train/data-00000-s0-broad.arrow``."""
        return f"{self.below}{split_folder(self.split)}/data-{index:05d}{suffix}.arrow"

    def write_stream(self, path: Path, batches: Iterable[pa.RecordBatch]) -> None:
        """Write rows as one Arrow stream file, in batches of about a quarter of a million tokens at full length."""
        convert = self.convert or (lambda batch: batch)
        schema, rows = first_schema(map(convert, batches), convert(self.info.empty).schema)
        num_rows = max(1, min(_MAX_CHUNK_ROWS, _CHUNK_TOKENS // (self.info.max_length or 1)))
        with pa.OSFile(str(path), "wb") as raw, pa.ipc.new_stream(raw, schema) as writer:
            for table in rechunk(rows, num_rows):
                writer.write_table(table)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the state of the split, of each of its stages, and the dict of all splits; return the names."""
        root = folder / self.below
        files = [n.removeprefix(self.below) for names in shards for n in names if n.endswith(".arrow")]
        written = _write_state(files, split_folder(self.split), root)
        for stage, staged in stage_files(files, self.info, self.split).items():
            written += _write_state(staged, f"stages/{stage}", root)
        states = (state.parent.name for state in files_below(root, "*/state.json"))
        splits = sorted(states, key=lambda name: (name != "train", name))
        written.append(write_json(root, "dataset_dict.json", {"splits": splits}))
        return [self.below + name for name in written]


def _write_state(files: list[str], dataset: str, folder: Path) -> list[str]:
    """Write ``state.json`` of a dataset of some files, each named from the dataset's folder, and an empty info."""
    up = "../" * (dataset.count("/") + 1)
    fingerprint = (
        xxhash.xxh3_64()
    )  # what ``datasets`` keys its caches by: over the files' bytes, wherever they are
    for name in files:
        fingerprint.update(json.dumps([name, (folder / name).stat().st_size]).encode())
        with pa.memory_map(str(folder / name)) as mapped:
            fingerprint.update(mapped.read_buffer())
    prefix = f"{dataset}/"
    state: dict[str, Any] = {
        "_data_files": [
            {"filename": n.removeprefix(prefix) if n.startswith(prefix) else up + n} for n in files
        ],
        "_fingerprint": fingerprint.hexdigest(),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": dataset if re.fullmatch(r"\w+", dataset) else None,
    }
    return [
        write_json(folder, f"{dataset}/state.json", state),
        write_json(folder, f"{dataset}/dataset_info.json", {}),
    ]
