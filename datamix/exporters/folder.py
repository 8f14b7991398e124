"""The files of a format's folder: names of shards, shards cut where the stage changes, and how small files are written.

Each stage is a list of files, so no row is written twice: the files of a set of several stages end in ``-s0-NAME``,
``-s1-NAME``, ... in the order of the stages; those of one stage, and of validation, in nothing.
"""

from __future__ import annotations

import gzip
import io
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from datamix.core.machine import files_below
from datamix.exporters.columns import first_schema, rechunk
from datamix.exporters.export_format import ExportFormat, LeftOut, SetInfo

TextCompression = Literal["none", "gzip", "zstd"]
Convert = Callable[[pa.RecordBatch], pa.RecordBatch]
_SUFFIX = {"none": "", "gzip": ".gz", "zstd": ".zst"}
_GROUP_TOKENS = 1 << 21  # a row group's tokens: 8 MiB a column of int32
_MAX_GROUP_ROWS = 4096


def split_folder(split: str) -> str:
    """The folder of a split: ``train`` -> ``train``, ``validation/medical`` -> ``validation_medical``."""
    return split.replace("/", "_")


def shard_name(split: str, index: int, suffix: str) -> str:
    """``("train", 3, ".ds")`` -> ``train/00003.ds``."""
    return f"{split_folder(split)}/{index:05d}{suffix}"


def split_names(folder: Path, pattern: str) -> dict[str, list[str]]:
    """Splits in a format's folder -> their files: ``train`` first, then ``validation_SOURCE``."""
    files = [path.relative_to(folder).as_posix() for path in files_below(folder, pattern)]
    splits = sorted({name.rsplit("/", 2)[-2] for name in files}, key=lambda s: (s != "train", s))
    return {split: [name for name in files if name.rsplit("/", 2)[-2] == split] for split in splits}


def make_room(folder: Path, name: str) -> Path:
    """The path of ``name`` below ``folder``; the folder that holds it is made."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_text(folder: Path, name: str, text: str) -> str:
    """Write ``text`` as UTF-8 with Unix line ends; return ``name``."""
    make_room(folder, name).write_bytes(text.encode())
    return name


def write_json(folder: Path, name: str, value: Any) -> str:
    """Write ``value`` as indented JSON in the order given; return ``name``."""
    return write_text(folder, name, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_yaml(folder: Path, name: str, settings: Mapping[str, Any], comments: Sequence[str] = ()) -> str:
    """Write settings as YAML, in the order given: every value as JSON, which YAML reads; lists one item a line; comments last."""
    lines = []
    for key, value in settings.items():
        if isinstance(value, list) and value:
            lines += [f"{key}:", *(f"  - {json.dumps(item, ensure_ascii=False)}" for item in value)]
        elif isinstance(value, dict):
            lines += [f"{key}:", *(f"  {k}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())]
        else:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    lines += [f"# {line}".rstrip() for line in comments]
    return write_text(folder, name, "\n".join(lines) + "\n")


def lines_suffix(compression: TextCompression) -> str:
    """``.jsonl``, ``.jsonl.gz`` or ``.jsonl.zst``."""
    return f".jsonl{_SUFFIX[compression]}"


def write_lines(path: Path, rows: Iterable[dict[str, Any]], compression: TextCompression = "none") -> None:
    """Write one JSON object a line."""
    with _open_lines(path, compression) as stream:
        for row in rows:
            stream.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))


@contextmanager
def _open_lines(path: Path, compression: TextCompression) -> Iterator[BinaryIO]:
    """A binary stream into ``path``; the same bytes in give the same file (no time, no name in its header)."""
    with path.open("wb") as raw:
        if compression == "none":
            yield raw
            return
        packed: Any
        if compression == "gzip":
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6)
        else:
            packed = zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False)
        with io.BufferedWriter(packed, 1 << 20) as stream:
            yield stream


def write_parquet(
    path: Path,
    batches: Iterable[pa.RecordBatch],
    info: SetInfo,
    empty: pa.Schema,
    compression: str = "zstd",
) -> None:
    """Write rows into one file, of schema ``empty`` where there are none, in groups of about two million tokens."""
    schema, rows = first_schema(batches, empty)
    size = _MAX_GROUP_ROWS // 4
    if info.max_length is not None:
        size = max(1, min(_MAX_GROUP_ROWS, _GROUP_TOKENS // info.max_length))
    with pq.ParquetWriter(
        path,
        schema,
        compression=compression,
        compression_level=1 if compression == "zstd" else None,
        # few values, long runs
        use_dictionary=[name for name in ("source", "stage") if name in schema.names],
        write_statistics=False,
    ) as writer:
        for table in rechunk(rows, size):
            writer.write_table(table, row_group_size=size)


def by_stage(
    batches: Iterable[pa.RecordBatch], info: SetInfo, split: str
) -> Iterator[tuple[str, Iterator[pa.RecordBatch]]]:
    """Runs of rows of one stage, each with what it adds to a shard's name; an empty shard is one empty run."""
    if split != "train" or len(info.stages) < 2:
        yield "", iter(batches)
        return

    def runs() -> Iterator[tuple[str, pa.RecordBatch]]:
        for batch in batches:
            codes = batch.column("stage").dictionary_encode()
            index = codes.indices.to_numpy(zero_copy_only=False)
            for start, stop in pairwise(np.flatnonzero(np.diff(index, prepend=-1, append=-1)).tolist()):
                yield codes.dictionary[int(index[start])].as_py(), batch.slice(start, stop - start)

    empty = True
    for stage, group in groupby(runs(), key=lambda run: run[0]):
        yield _stage_suffix(stage, info), (rows for _, rows in group)
        empty = False
    if empty:
        yield _stage_suffix(info.stages[0], info), iter(())


def _stage_suffix(stage: str, info: SetInfo) -> str:
    """``sharpen``, the second of two stages -> ``-s1-sharpen``."""
    return f"-s{info.stages.index(stage)}-{stage}"


def stage_files(files: Iterable[str], info: SetInfo, split: str) -> dict[str, list[str]]:
    """The files of each stage, in order of the stages; empty for validation and sets of one stage."""
    if split != "train" or len(info.stages) < 2:
        return {}
    names = list(files)
    staged = {s: [n for n in names if f"{_stage_suffix(s, info)}." in n] for s in info.stages}
    return {stage: group for stage, group in staged.items() if group}


def write_left_out(folder: Path, split: str, index: int, left: Sequence[LeftOut]) -> list[str]:
    """Name the records of a shard that a format does not hold, if any; return the names of files."""
    name = f"left_out/{split_folder(split)}-{index:05d}.jsonl"
    if left:
        write_lines(make_room(folder, name), (record._asdict() for record in left))
    return [name] if left else []


def held(lines: Iterable[dict[str, Any] | LeftOut], left: list[LeftOut]) -> Iterator[dict[str, Any]]:
    """The lines; the records that are left out are added to ``left``."""
    for line in lines:
        if isinstance(line, LeftOut):
            left.append(line)
        else:
            yield line


@dataclass(frozen=True)
class StagedLines(ExportFormat):
    """A format of JSON Lines, a file a stage."""

    @abstractmethod
    def lines(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any] | LeftOut]:
        """The objects that the rows of a batch become."""

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return the names."""
        names: list[str] = []
        left: list[LeftOut] = []
        for suffix, run in by_stage(batches, self.info, self.split):
            names.append(shard_name(self.split, index, f"{suffix}.jsonl"))
            lines = (line for batch in run for line in self.lines(batch))
            write_lines(make_room(folder, names[-1]), held(lines, left))
        return names + write_left_out(folder, self.split, index, left)


@dataclass(frozen=True)
class StagedParquet(ExportFormat):
    """A format of Parquet, a file a stage."""

    @abstractmethod
    def convert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of a batch in the columns that the trainer reads."""

    def left_out(self, batch: pa.RecordBatch) -> dict[int, LeftOut]:
        """Rows of a batch that the format cannot hold."""
        return {}

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return the names."""
        empty = self.convert(self.info.empty).schema
        names: list[str] = []
        left: list[LeftOut] = []

        def held_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
            if less := self.left_out(batch):
                left.extend(less.values())
                batch = batch.filter(pa.array([i not in less for i in range(len(batch))], pa.bool_()))
            return self.convert(batch)

        for suffix, run in by_stage(batches, self.info, self.split):
            names.append(shard_name(self.split, index, f"{suffix}.parquet"))
            write_parquet(make_room(folder, names[-1]), map(held_rows, run), self.info, empty)
        return names + write_left_out(folder, self.split, index, left)
