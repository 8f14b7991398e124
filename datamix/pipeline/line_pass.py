"""Repeated lines: counted over every document of all sources, then cut from each. Runs only where a recipe asks for it.

Three kinds of task: ``count`` (a window of texts -> distinct lines and how many documents hold each), ``common`` (all counts -> the
lines that are too common; 24 bytes a distinct line), ``cut`` (a prepared file -> the same without them). What ``cut`` leaves looks as
if ``prepare`` had left it, so no later phase knows. A document of which nothing is left is cleaned away as ``repeated_lines``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamix.core.contracts import Receipt, Task
from datamix.core.hashing import content_keys, digest
from datamix.dedup import LineCounts, LineSpec, count_lines, cut_lines, repeated
from datamix.pipeline.prepare import CLEANED, Window, open_ipc, read_batches

_VERSION = 2
REASON = "repeated_lines"


@dataclass(frozen=True)
class CountSpec:
    window: Window
    lines: LineSpec


@dataclass(frozen=True)
class CommonSpec:
    counts: tuple[Path, ...]
    lines: LineSpec


@dataclass(frozen=True)
class CutSpec:
    prepared: Receipt
    common: Path
    lines: LineSpec


def count_tasks(windows: Sequence[Window], spec: LineSpec, home: Path) -> list[Task]:
    """One task a window of texts."""
    tasks: list[Task] = []
    for w in windows:
        key = digest("lines.count", _VERSION, w.prepared.key, w.start, w.stop, spec)
        tasks.append(Task("count lines", key, count, CountSpec(w, spec), home, w.num_bytes))
    return tasks


def common_task(counted: Sequence[Receipt], spec: LineSpec, home: Path) -> Task:
    """The one task that joins all counts."""
    key = digest("lines.common", _VERSION, [r.key for r in counted], spec)
    counts = tuple(r.folder / "lines.npz" for r in counted)
    return Task("common lines", key, common, CommonSpec(counts, spec), home)


def cut_tasks(
    prepared: Sequence[Receipt], windows: Sequence[Window], joined: Receipt, spec: LineSpec, home: Path
) -> list[Task]:
    """One task a prepared file, keyed by the common lines that it holds: others, as a new file brings them, do not touch it."""
    held: dict[str, list[str]] = {receipt.key: [] for receipt in prepared}
    for window, lines in zip(windows, joined.counts["held"], strict=True):
        if window.prepared.key in held:
            held[window.prepared.key].append(lines)
    tasks: list[Task] = []
    for receipt in prepared:
        key = digest("lines.cut", _VERSION, receipt.key, held[receipt.key], spec)
        work = CutSpec(receipt, joined.folder / "common.npy", spec)
        weight = 1 + sum(size for _, size in receipt.counts["batches"])
        tasks.append(Task("cut lines", key, cut, work, home, weight))
    return tasks


def count(spec: CountSpec, folder: Path) -> dict[str, Any]:
    """Count the lines of a window."""
    parts = [count_lines(batch.column("text"), spec.lines) for batch in spec.window.batches()]
    keys = np.concatenate([p.keys for p in parts])
    documents = np.concatenate([p.documents for p in parts])
    distinct, places = np.unique(keys, return_inverse=True)
    total = np.zeros(len(distinct), np.int64)
    np.add.at(total, places, documents)
    np.savez(folder / "lines.npz", keys=distinct, documents=total)
    return {"lines": len(distinct)}


def common(spec: CommonSpec, folder: Path) -> dict[str, Any]:
    """Find the lines that too many documents hold; ``held`` is a digest of those that each window holds."""
    counts = []
    for path in spec.counts:
        with np.load(path) as held:
            counts.append(LineCounts(held["keys"], held["documents"]))
    keys = repeated(counts, spec.lines)
    np.save(folder / "common.npy", keys)
    held = [sha256(part.keys[np.isin(part.keys, keys)].tobytes()).hexdigest() for part in counts]
    return {"common": len(keys), "held": held}


def cut(spec: CutSpec, folder: Path) -> dict[str, Any]:
    """Write a prepared file again without the common lines."""
    keys = np.load(spec.common)
    with pa.memory_map(str(spec.prepared.folder / "records.arrow")) as source:
        schema = pa.ipc.open_file(source).schema
    batches: list[list[int]] = []
    mended = dropped = 0
    shutil.copyfile(spec.prepared.folder / "rejects.arrow", folder / "rejects.arrow")
    with (
        open_ipc(folder / "records.arrow", schema) as records,
        open_ipc(folder / "cleaned.arrow", CLEANED) as cleaned,
    ):
        for batch in read_batches(str(spec.prepared.folder / "cleaned.arrow")):
            cleaned.write_batch(batch)
        for batch in read_batches(str(spec.prepared.folder / "records.arrow")):
            done = cut_lines(batch.column("text"), keys, spec.lines)
            mended += int((done.num_lines > 0).sum())
            texts = done.texts.cast(pa.string())
            empty = pc.and_(pc.equal(pc.utf8_trim_whitespace(texts), ""), pa.array(done.num_lines > 0))
            whole = pa.RecordBatch.from_arrays(
                [
                    texts if name == "text" else content_keys(texts) if name == "key" else batch.column(name)
                    for name in schema.names
                ],
                schema=schema,
            )
            removed = whole.filter(empty)
            if removed.num_rows:
                dropped += removed.num_rows
                reasons = pa.array([REASON] * removed.num_rows, pa.string())
                columns = [removed.column("slice"), removed.column("record"), reasons]
                cleaned.write_batch(pa.RecordBatch.from_arrays(columns, schema=CLEANED))
            left = whole.filter(pc.invert(empty))
            if left.num_rows:
                records.write_batch(left)
                batches.append([left.num_rows, left.nbytes])
    counts = dict(spec.prepared.counts)
    cleaned_by = {**counts["cleaned_by"], **({REASON: dropped} if dropped else {})}
    mended_by = {**counts["mended_by"], **({REASON: mended} if mended else {})}
    return {**counts, "batches": batches, "cleaned_by": cleaned_by, "mended_by": mended_by}
