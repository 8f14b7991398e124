"""Shards cut where the stage changes, so that each stage is a list of files: no row is written twice.

The files of a set of several stages end in ``-s0-NAME``, ``-s1-NAME``, ... in the order of the stages; those of one stage, and of
validation, in nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamix.exporters.formats.jsonl import write_lines
from datamix.exporters.formats.parquet import write_parquet
from datamix.exporters.paths import TextCompression, compressed_suffix, make_room, shard_name, split_folder
from datamix.exporters.target import SetInfo

Convert = Callable[[pa.RecordBatch], pa.RecordBatch]
StagedLines = Callable[[pa.RecordBatch], Iterator[dict[str, Any]]]


def by_stage(
    batches: Iterable[pa.RecordBatch], info: SetInfo, split: str
) -> Iterator[tuple[str, Iterator[pa.RecordBatch]]]:
    """Runs of rows of one stage, each with what it adds to a shard's name; an empty shard is one empty run."""
    if split != "train" or len(info.stages) < 2:
        yield "", iter(batches)
        return
    runs = (run for batch in batches for run in _stage_runs(batch))
    empty = True
    for stage, group in groupby(runs, key=lambda run: run[0]):
        yield stage_suffix(stage, info), (rows for _, rows in group)
        empty = False
    if empty:
        yield stage_suffix(info.stages[0], info), iter(())


def stage_suffix(stage: str, info: SetInfo) -> str:
    """``sharpen``, the second of two stages -> ``-s1-sharpen``."""
    return f"-s{info.stages.index(stage)}-{stage}"


def stage_files(files: Iterable[str], info: SetInfo, split: str) -> dict[str, list[str]]:
    """The files of each stage, in order of the stages; empty for validation and sets of one stage."""
    if split != "train" or len(info.stages) < 2:
        return {}
    names = list(files)
    found = {s: [n for n in names if f"{stage_suffix(s, info)}." in n] for s in info.stages}
    return {stage: staged for stage, staged in found.items() if staged}


def _stage_runs(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    codes = batch.column("stage").dictionary_encode()
    index = codes.indices.to_numpy(zero_copy_only=False)
    edges = np.flatnonzero(np.diff(index, prepend=-1, append=-1))
    for start, stop in pairwise(edges.tolist()):
        yield codes.dictionary[int(index[start])].as_py(), batch.slice(start, stop - start)


class StagedFiles:
    """Writes the shards of one split of a set, a file a stage."""

    def __init__(self, info: SetInfo, split: str, index: int, folder: Path) -> None:
        self.info, self.split, self.index, self.folder = info, split, index, folder

    def lines(
        self, batches: Iterable[pa.RecordBatch], lines: StagedLines, compression: TextCompression = "none"
    ) -> list[str]:
        """JSON Lines of what ``lines`` makes of each batch; return the names."""
        names = []
        for suffix, run in by_stage(batches, self.info, self.split):
            name = self._name(suffix, f".jsonl{compressed_suffix(compression)}")
            rows = (row for batch in run for row in lines(batch))
            write_lines(make_room(self.folder, name), rows, compression)
            names.append(name)
        return names

    def parquet(self, batches: Iterable[pa.RecordBatch], convert: Convert, below: str = "") -> list[str]:
        """Parquet of what ``convert`` makes of each batch, in the folder ``below``; return the names."""
        empty = convert(pa.RecordBatch.from_pylist([], schema=self.info.schema)).schema
        names = []
        for suffix, run in by_stage(batches, self.info, self.split):
            name = below + self._name(suffix, ".parquet")
            write_parquet(make_room(self.folder, name), map(convert, run), self.info, empty=empty)
            names.append(name)
        return names

    def _name(self, suffix: str, ending: str) -> str:
        return shard_name(self.split, self.index, suffix + ending)


def split_names(folder: Path, pattern: str) -> dict[str, list[str]]:
    """Splits that stand in a format's folder -> their files: ``train`` first, then ``validation_SOURCE``."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern))
    splits = sorted(
        {name.rsplit("/", 2)[-2] for name in files}, key=lambda s: (s != split_folder("train"), s)
    )
    return {split: [name for name in files if name.rsplit("/", 2)[-2] == split] for split in splits}
