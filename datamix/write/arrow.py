"""Arrow: a ``datasets.save_to_disk`` folder, memory-mapped by ``datasets.load_from_disk`` without a conversion.

Each split is a dataset of its own; ``dataset_dict.json`` joins them. The features are left out of ``dataset_info.json``:
``datasets`` reads them from the files, and releases 3 to 5 name them differently. A set of several stages gets one more
dataset a stage, which names the same files: no row is written twice. Arrow is not compressed: reading it is
a page fault. Costs one chunk of rows of memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import xxhash

from datamix.records import Kind
from datamix.write.arrays import first_schema, rechunk
from datamix.write.names import make_room, split_folder, write_json
from datamix.write.sets import SetInfo

_CHUNK_ROWS = 1024
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Arrow:
    """``train/data-00000.arrow``, ``train/state.json``, ``dataset_dict.json``."""

    info: SetInfo
    split: str

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return their names."""
        return write_arrow(batches, self.info, split_folder(self.split), index, folder)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write what ``load_from_disk`` looks for."""
        return finish_arrow(shards, self.info, split_folder(self.split), folder)

    def keeps(self) -> tuple[str, ...]:
        """Read in order, everything survives."""
        return ("ratio", "order", "isolation")

    def command(self) -> str:
        """How it is read."""
        return 'datasets.load_from_disk(".")'


def by_stage(
    batches: Iterable[pa.RecordBatch], info: SetInfo, split: str
) -> Iterator[tuple[str, Iterator[pa.RecordBatch]]]:
    """Rows cut where the stage changes, each run with its name: ``""`` for validation and sets of one stage."""
    if split != "train" or len(info.stages) < 2:
        yield "", iter(batches)
        return
    runs = (run for batch in batches for run in _stage_runs(batch))
    for stage, group in groupby(runs, key=lambda run: run[0]):
        yield stage, (rows for _, rows in group)


def _stage_runs(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    codes = batch.column("stage").dictionary_encode()
    index = codes.indices.to_numpy(zero_copy_only=False)
    edges = np.flatnonzero(np.diff(index, prepend=-1, append=-1))
    for start, stop in pairwise(edges.tolist()):
        yield codes.dictionary[int(index[start])].as_py(), batch.slice(start, stop - start)


def stage_suffix(stage: str, info: SetInfo) -> str:
    """What a stage adds to a shard's name, in the order of the stages: ``-s1-sharpen``; nothing where none."""
    return f"-s{info.stages.index(stage)}-{stage}" if stage else ""


def write_arrow(
    batches: Iterable[pa.RecordBatch], info: SetInfo, split: str, index: int, folder: Path
) -> list[str]:
    """Write rows as Arrow stream files ``SPLIT/data-INDEX[-sN-STAGE].arrow``; return the names."""
    schema, rows = first_schema(batches, info.schema)
    names = []
    for stage, run in by_stage(rows, info, split):
        name = f"{split}/data-{index:05d}{stage_suffix(stage, info)}.arrow"
        _write_stream(make_room(folder, name), schema, run)
        names.append(name)
    if not names:  # a staged set's empty shard
        name = f"{split}/data-{index:05d}.arrow"
        _write_stream(make_room(folder, name), schema, [])
        names.append(name)
    return names


def _write_stream(path: Path, schema: pa.Schema, rows: Iterable[pa.RecordBatch]) -> None:
    with pa.OSFile(str(path), "wb") as raw, pa.ipc.new_stream(raw, schema) as writer:
        for table in rechunk(rows, _CHUNK_ROWS):
            writer.write_table(table)


def finish_arrow(shards: list[list[str]], info: SetInfo, split: str, folder: Path) -> list[str]:
    """Write the state of a split, of each of its stages, and the dict of all splits; return the names."""
    files = [name for names in shards for name in names]
    written = _write_state(files, split, folder)
    if split == "train" and len(info.stages) > 1:
        for stage in info.stages:
            suffix = f"{stage_suffix(stage, info)}.arrow"
            staged = [name for name in files if name.endswith(suffix)]
            if staged:
                written += _write_state(staged, f"stages/{stage}", folder)
    splits = sorted(
        (state.parent.name for state in folder.glob("*/state.json")), key=lambda name: (name != "train", name)
    )
    return [*written, write_json(folder, "dataset_dict.json", {"splits": splits})]


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
        with (folder / name).open("rb", buffering=0) as stream:
            while block := stream.read(_READ_BYTES):
                state.update(block)
    digest: str = state.hexdigest()
    return digest
