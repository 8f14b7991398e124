"""The files of a set: one task for each output shard of each format, and how their files are linked into OUT.

The order and the bins are integers on disk; a task carries their names and a range of places. Each task recounts what it
really wrote, from the labels, and hashes the rows of training as they pass. Memory: one batch of about two million tokens,
and what the format keeps open.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.arrays import IGNORE_INDEX, list_buffers, offsets_from_lengths
from datamix.core.content import ContentDigest
from datamix.core.contracts import Receipt, Task
from datamix.core.hashing import digest, file_sha256
from datamix.exporters import EXPORT_FORMATS, SetInfo, command, keeps, needs_records, open_sink
from datamix.pipeline.order_rows import shard_ends
from datamix.pipeline.record_texts import RecordTexts
from datamix.pipeline.rows import RowReader, RowSet

_VERSION = 5
FormatChoice = tuple[str, tuple[tuple[str, Any], ...]]  # name, options


@dataclass(frozen=True)
class ShardSpec:
    """Rows ``start..stop`` of one split, into one shard of one format."""

    format: str
    options: tuple[tuple[str, Any], ...]
    split: str
    index: int
    rows: RowSet
    start: int
    stop: int


def shard_tasks(
    splits: Mapping[str, RowSet], formats: Sequence[FormatChoice], key: str, home: Path
) -> list[Task]:
    """One task a shard, format and split; ``key`` fingerprints the rows. Raises RecipeError for a wrong option."""
    tasks: list[Task] = []
    for name, options in formats:
        for split, rows in splits.items():
            open_sink(name, options, rows.info, split)
            start = 0
            ends = shard_ends(RowReader(rows).num_tokens(np.arange(rows.num_rows)))
            for index, stop in enumerate(ends):
                plain = [split, name, options, index, start, stop, rows.info]
                spec = ShardSpec(name, options, split, index, rows, start, stop)
                shard_key = digest("emit", _VERSION, key, plain)
                tasks.append(Task(f"write {name} {split}", shard_key, write_shard, spec, home, stop - start))
                start = stop
    return tasks


def write_shard(spec: ShardSpec, folder: Path) -> dict[str, Any]:
    """Write one shard; counts are recounted from the rows themselves, by stage and source."""
    info = spec.rows.info
    texts = RecordTexts(spec.rows) if needs_records(spec.format) else None
    sink = open_sink(spec.format, spec.options, info, spec.split, texts)
    recount: dict[str, list[int]] = {}
    batches = _counted(RowReader(spec.rows).batches(spec.start, spec.stop), info.kind, recount)
    content = ContentDigest() if is_training(spec) else None
    names = sink.write(batches if content is None else content.watch(batches), spec.index, folder)
    return {
        "names": names,
        "rows": sum(amounts[0] for amounts in recount.values()),
        "recount": recount,
        "sha256": {name: file_sha256(folder / name) for name in names},
        "content": content and content.hexdigest(),
    }


def is_training(spec: ShardSpec) -> bool:
    """Whether these are rows of train/ themselves: what the manifest counts and hashes."""
    return spec.split == "train" and spec.format == "parquet"


def _counted(
    batches: Iterator[pa.RecordBatch], kind: str, recount: dict[str, list[int]]
) -> Iterator[pa.RecordBatch]:
    """Count rows as they pass: ``recount["stage|source"] = [rows, records, tokens, loss_tokens]``."""
    for batch in batches:
        numbers = [np.ones(batch.num_rows, np.int64), _lengths(batch, "records"), *_costs(batch, kind)]
        names = pc.binary_join_element_wise(batch.column("stage"), batch.column("source"), "|")
        codes = names.dictionary_encode()
        for code, name in enumerate(codes.dictionary.to_pylist()):
            rows = codes.indices.to_numpy() == code
            before = recount.get(name, [0, 0, 0, 0])
            recount[name] = [a + int(n[rows].sum()) for a, n in zip(before, numbers, strict=True)]
        yield batch


def _costs(batch: pa.RecordBatch, kind: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens and loss tokens of each row, counted from its columns."""
    if kind in ("pretrain", "sft"):
        labels, offsets = list_buffers(batch.column("labels"))
        trained = offsets_from_lengths(labels != IGNORE_INDEX)
        return _lengths(batch, "input_ids"), trained[offsets[1:]] - trained[offsets[:-1]]
    prompt = _lengths(batch, "prompt_ids")
    if kind == "prompt":
        return prompt, prompt
    answers = [name for name in batch.schema.names if name.endswith("completion_ids")]
    loss = sum((_lengths(batch, name) for name in answers), np.zeros(batch.num_rows, np.int64))
    return prompt + loss, loss


def _lengths(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    lengths = pc.fill_null(pc.list_value_length(batch.column(name)), 0).to_numpy(zero_copy_only=False)
    result: NDArray[np.int64] = lengths.astype(np.int64)
    return result


def format_folder(out: Path, name: str) -> Path:
    """Where a format's files are: Parquet is OUT itself."""
    return out if name == "parquet" else out / name


def commands(formats: Sequence[FormatChoice], info: SetInfo) -> dict[str, str]:
    """What trains from each format's folder, or reads it; Parquet is what everything reads."""
    return {name: command(name, options, info) for name, options in formats if name != "parquet"}


def listed_exports(formats: Sequence[FormatChoice]) -> list[dict[str, Any]]:
    """The manifest's ``exports``: formats that the recipe does not name, with the options they were written with."""
    return [{"format": name, "options": dict(options)} for name, options in sorted(set(formats))]


def further_formats(manifest: dict[str, Any]) -> tuple[FormatChoice, ...]:
    """The formats that OUT holds beside those of its recipe; of sets that do not list them, without options."""
    recipe = [
        entry if isinstance(entry, str) else entry.get("name", "") for entry in manifest["recipe"]["write"]
    ]
    listed = {e["format"]: tuple(sorted(e["options"].items())) for e in manifest.get("exports", ())}
    for entry in manifest["outputs"]:
        name = entry["format"]
        is_virtual = manifest.get("virtual") and name == "parquet" and entry["path"].startswith("train/")
        if is_virtual or (name in EXPORT_FORMATS and entry["path"].split("/")[0] == name):
            listed.setdefault(name, ())
    return tuple((name, options) for name, options in sorted(listed.items()) if name not in recipe)


def link(out: Path, done: Sequence[tuple[Task, Receipt]]) -> list[dict[str, Any]]:
    """Give every shard its name in OUT, and let each format write what is beside its shards; list every file."""
    listed: list[dict[str, Any]] = []
    shards: dict[tuple[str, Any, str], list[list[str]]] = {}
    rows: dict[str, RowSet] = {}
    files: dict[str, list[str]] = {}
    for task, receipt in done:
        files.setdefault(task.spec.format, []).extend(receipt.counts["names"])
    for task, receipt in done:
        spec: ShardSpec = task.spec
        names, info = receipt.counts["names"], spec.rows.info
        shards.setdefault((spec.format, spec.options, spec.split), []).append(names)
        rows[spec.split] = spec.rows
        for number, name in enumerate(names):
            target = format_folder(out, spec.format) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(receipt.folder / name, target)
            except OSError:  # a file system without links
                shutil.copyfile(receipt.folder / name, target)
            num_rows = receipt.counts["rows"] if number == 0 else 0
            kept = keeps(spec.format, spec.options, info, files[spec.format], name)
            sha256 = receipt.counts["sha256"][name]
            listed.append(output(out, target, spec.format, spec.split, num_rows, kept, sha256))
    finished: dict[Path, tuple[str, str, tuple[str, ...]]] = {}
    for (format_, options, split), written in shards.items():
        info, base = rows[split].info, format_folder(out, format_)
        texts = RecordTexts(rows[split]) if needs_records(format_) else None
        for file in open_sink(format_, options, info, split, texts).finish(written, base):
            finished[base / file] = (format_, split, keeps(format_, options, info, files[format_], file))
    for path, (format_, split, kept) in sorted(finished.items()):
        listed.append(output(out, path, format_, split, 0, kept))
    return listed


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
