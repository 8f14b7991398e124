"""The files of a set: which tasks write them, and how shards are linked into OUT."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamix.core.contracts import Receipt, Task
from datamix.core.hashing import digest, file_sha256
from datamix.exporters import SetInfo, command, keeps, needs_records, open_sink
from datamix.pipeline import write_shards
from datamix.pipeline.order_rows import shard_ends
from datamix.pipeline.rows import RecordTexts, RowReader, RowSet

_VERSION = 4
FormatChoice = tuple[str, tuple[tuple[str, Any], ...]]  # name, options


def format_folder(out: Path, name: str) -> Path:
    """Where a format's files stand: Parquet is OUT itself."""
    return out if name == "parquet" else out / name


def shard_tasks(
    splits: Mapping[str, RowSet], formats: Sequence[FormatChoice], key: str, home: Path
) -> list[Task]:
    """One task a shard, format and split; ``key`` fingerprints the rows. Raises RecipeError for a wrong option."""
    made: list[Task] = []
    for name, options in formats:
        for split, rows in splits.items():
            open_sink(name, options, rows.info, split)
            for index, (start, stop) in enumerate(_shards(rows)):
                plain = [split, name, options, index, start, stop, rows.info]
                spec = write_shards.ShardSpec(name, options, split, index, rows, start, stop)
                label = f"write {name} {split}"
                made.append(
                    Task(
                        label,
                        digest("emit", _VERSION, key, plain),
                        write_shards.write_shard,
                        spec,
                        home,
                        stop - start,
                    )
                )
    return made


def _shards(rows: RowSet) -> Iterator[tuple[int, int]]:
    """Output shards: about eight million tokens each, cut by a constant."""
    start = 0
    for stop in shard_ends(RowReader(rows).num_tokens(np.arange(rows.num_rows))):
        yield start, stop
        start = stop


def commands(formats: Sequence[FormatChoice], info: SetInfo) -> dict[str, str]:
    """What trains from each format's folder, or reads it; Parquet is what everything reads."""
    return {name: command(name, options, info) for name, options in formats if name != "parquet"}


def link(out: Path, done: Sequence[tuple[Task, Receipt]]) -> list[dict[str, Any]]:
    """Give every shard its name in OUT; say of each file what it is."""
    listed: list[dict[str, Any]] = []
    for task, receipt in done:
        spec: write_shards.ShardSpec = task.spec
        base, kept = format_folder(out, spec.format), keeps(spec.format, spec.options, spec.rows.info)
        for number, name in enumerate(receipt.counts["names"]):
            target = base / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(receipt.folder / name, target)
            rows = receipt.counts["rows"] if number == 0 else 0
            listed.append(
                output(out, target, spec.format, spec.split, rows, kept, receipt.counts["sha256"][name])
            )
    return listed


def _place(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def finish(out: Path, done: Sequence[tuple[Task, Receipt]]) -> list[dict[str, Any]]:
    """Let each format write what stands once beside its shards."""
    shards: dict[tuple[str, Any, str], list[list[str]]] = {}
    rows: dict[str, RowSet] = {}
    for task, receipt in done:
        spec: write_shards.ShardSpec = task.spec
        shards.setdefault((spec.format, spec.options, spec.split), []).append(receipt.counts["names"])
        rows[spec.split] = spec.rows
    found: dict[Path, tuple[str, str, tuple[str, ...]]] = {}
    for (name, options, split), names in shards.items():
        info = rows[split].info
        words = RecordTexts(rows[split].sources) if needs_records(name) else None
        base = format_folder(out, name)
        for file in open_sink(name, options, info, split, words).finish(names, base):
            found[base / file] = (name, split, keeps(name, options, info))
    return [output(out, path, name, split, 0, kept) for path, (name, split, kept) in sorted(found.items())]


def output(
    out: Path,
    path: Path,
    name: str,
    split: str,
    rows: int,
    kept: Sequence[str] = (),
    sha256: str | None = None,
) -> dict[str, Any]:
    """One entry of the manifest's ``outputs``."""
    return {
        "path": path.relative_to(out).as_posix(),
        "format": name,
        "split": split,
        "rows": rows,
        "bytes": path.stat().st_size,
        "sha256": sha256 or file_sha256(path),
        "keeps": list(kept),
    }
