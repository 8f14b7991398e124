"""Arrow: a ``datasets.save_to_disk`` folder, memory-mapped by ``datasets.load_from_disk`` without a conversion.

Each split is a dataset of its own; ``dataset_dict.json`` joins them. The features are left out of ``dataset_info.json``:
``datasets`` reads them from the files, and releases 3 to 5 name them differently. A set of several stages gets one more
dataset a stage, which names the same files: no row is written twice. Arrow is not compressed: reading it is
a page fault. Costs one chunk of rows of memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import xxhash

from datamix.core.records import Kind
from datamix.exporters.columns import first_schema, rechunk
from datamix.exporters.paths import make_room, split_folder, write_json
from datamix.exporters.staged import Convert, by_stage, stage_files
from datamix.exporters.target import SetInfo

_CHUNK_TOKENS = 1 << 18  # a chunk stays in the processor's cache between its copy and its file
_MAX_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Arrow:
    """``train/data-00000.arrow``, ``train/state.json``, ``dataset_dict.json``."""

    info: SetInfo
    split: str

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return their names."""
        return ArrowFolder(self.info, self.split).write(batches, index, folder)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write what ``load_from_disk`` looks for."""
        return ArrowFolder(self.info, self.split).finish(shards, folder)

    def keeps(self) -> tuple[str, ...]:
        """Read in order, everything survives."""
        return ("ratio", "order", "isolation")

    def command(self) -> str:
        """How it is read."""
        return 'datasets.load_from_disk(".")'


def same(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows as they are."""
    return batch


@dataclass(frozen=True)
class ArrowFolder:
    """A ``save_to_disk`` folder of what ``convert`` makes of the rows: trainers' formats write theirs through it."""

    info: SetInfo
    split: str
    convert: Convert = same
    below: str = ""  # folder of its own below the format's, ending in "/"

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write Arrow stream files ``SPLIT/data-INDEX[-sN-STAGE].arrow``; return the names."""
        empty = self.convert(pa.RecordBatch.from_pylist([], schema=self.info.schema)).schema
        names = []
        for suffix, run in by_stage(batches, self.info, self.split):
            name = f"{self.below}{split_folder(self.split)}/data-{index:05d}{suffix}.arrow"
            schema, rows = first_schema(map(self.convert, run), empty)
            with (
                pa.OSFile(str(make_room(folder, name)), "wb") as raw,
                pa.ipc.new_stream(raw, schema) as writer,
            ):
                for table in rechunk(rows, chunk_rows(self.info)):
                    writer.write_table(table)
            names.append(name)
        return names

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the state of the split, of each of its stages, and the dict of all splits; return the names."""
        root = folder / self.below
        files = [
            name.removeprefix(self.below) for names in shards for name in names if name.endswith(".arrow")
        ]
        written = _write_state(files, split_folder(self.split), root)
        for stage, staged in stage_files(files, self.info, self.split).items():
            written += _write_state(staged, f"stages/{stage}", root)
        found = (state.parent.name for state in root.glob("*/state.json"))
        splits = sorted(found, key=lambda name: (name != "train", name))
        written.append(write_json(root, "dataset_dict.json", {"splits": splits}))
        return [self.below + name for name in written]


def chunk_rows(info: SetInfo) -> int:
    """Rows a record batch of the file: about a quarter of a million tokens at full length."""
    return max(1, min(_MAX_CHUNK_ROWS, _CHUNK_TOKENS // (info.max_length or 1)))


def write_stream(path: Path, batches: Iterable[pa.RecordBatch], empty: pa.Schema, num_rows: int) -> None:
    """Write rows as one Arrow stream file of batches of ``num_rows``, of schema ``empty`` where there are none."""
    schema, rows = first_schema(batches, empty)
    with pa.OSFile(str(path), "wb") as raw, pa.ipc.new_stream(raw, schema) as writer:
        for table in rechunk(rows, num_rows):
            writer.write_table(table)


def _write_state(files: list[str], dataset: str, folder: Path) -> list[str]:
    up = "../" * (dataset.count("/") + 1)
    state: dict[str, Any] = {
        "_data_files": [{"filename": name.removeprefix(f"{dataset}/")} for name in files],
        "_fingerprint": _fingerprint(files, folder),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": dataset if re.fullmatch(r"\w+", dataset) else None,
    }
    for entry, name in zip(state["_data_files"], files, strict=True):
        if entry["filename"] == name:  # lies in another dataset's folder
            entry["filename"] = up + name
    return [
        write_json(folder, f"{dataset}/state.json", state),
        write_json(folder, f"{dataset}/dataset_info.json", {}),
    ]


def _fingerprint(files: list[str], folder: Path) -> str:
    """What ``datasets`` keys its caches by: 16 hex digits over the files' bytes, equal wherever they lie."""
    state = xxhash.xxh3_64()
    for name in files:
        state.update(json.dumps([name, (folder / name).stat().st_size]).encode())
        with pa.memory_map(str(folder / name)) as mapped:
            state.update(mapped.read_buffer())
    digest: str = state.hexdigest()
    return digest
