"""What is derived from prepared records, a window at a time: tokens, tokens of truncated records, keys for dedupe.

``encode`` leaves ``tokens.arrow`` (one batch, row for row with its window of records) and is keyed without
``max_length``; ``fit`` re-encodes only the records that are too long and leaves them beside. So another length costs
only what its truncation reaches, and for pretrain (split as integers later) nothing. ``make_keys`` leaves the keys of
dedupe and decontamination.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamix.core.arrays import write_batch
from datamix.core.contracts import Receipt, Task
from datamix.core.hashing import digest
from datamix.core.records import MESSAGES, TOKENS, RecordKind
from datamix.dedup import DedupeSpec, sign
from datamix.pipeline.prepare import Window
from datamix.tokenize import EncodeSpec, load
from datamix.tokenize import fit as truncate_records

_VERSION = 2
_FIT_VERSION = 4
_SIGN_VERSION = 2
_FIT_VERSION = 3


@dataclass(frozen=True)
class EncodeWindow:
    window: Window
    record_kind: RecordKind
    encode: EncodeSpec


@dataclass(frozen=True)
class FitWindow:
    window: Window
    record_kind: RecordKind
    encode: EncodeSpec
    encoded: Path  # tokens.arrow of the window
    max_length: int
    overlong: str


@dataclass(frozen=True)
class SignWindow:
    window: Window
    record_kind: RecordKind
    dedupe: DedupeSpec


def encode_tasks(
    source: str, windows: Sequence[Window], kind: RecordKind, spec: EncodeSpec, home: Path
) -> list[Task]:
    """One task for each window."""
    tasks: list[Task] = []
    for w in windows:
        key = digest("encode", _VERSION, w.prepared.key, w.start, w.stop, kind, spec.identity())
        tasks.append(Task(f"encode {source}", key, encode, EncodeWindow(w, kind, spec), home, w.num_bytes))
    return tasks


def fit_tasks(
    source: str, encoded: Sequence[tuple[Task, Receipt]], max_length: int | None, overlong: str, home: Path
) -> list[Task]:
    """One task for each encoded window that holds a record longer than ``max_length``; no task elsewhere."""
    tasks: list[Task] = []
    for task, receipt in encoded:
        spec: EncodeWindow = task.spec
        if max_length is None or overlong == "split" or receipt.counts["longest"] <= max_length:
            continue
        tokens = receipt.folder / "tokens.arrow"
        work = FitWindow(spec.window, spec.record_kind, spec.encode, tokens, max_length, overlong)
        key = digest("fit", _FIT_VERSION, receipt.key, max_length, overlong)
        tasks.append(Task(f"fit {source}", key, fit, work, home, 1 + receipt.counts["tokens"]))
    return tasks


def sign_tasks(
    source: str, windows: Sequence[Window], kind: RecordKind, spec: DedupeSpec, home: Path
) -> list[Task]:
    """One task for each window."""
    signs = (spec.exact, spec.near, spec.normalize, spec.fields)
    tasks: list[Task] = []
    for w in windows:
        key = digest("sign", _SIGN_VERSION, w.prepared.key, w.start, w.stop, kind, *signs)
        tasks.append(Task(f"sign {source}", key, make_keys, SignWindow(w, kind, spec), home, w.num_bytes))
    return tasks


def warm(spec: EncodeSpec) -> None:
    """Load the tokenizer and the chat template into this process, before there is anything to encode."""
    load(spec).make_ready()


def encode(spec: EncodeWindow, folder: Path) -> dict[str, Any]:
    """Encode a window; counts hold the sums that plans need."""
    encoder = load(spec.encode)
    whole_before = encoder.plain.long_texts.num_whole
    counts: Counter[str] = Counter()
    batches: list[pa.RecordBatch] = []
    for batch in spec.window.batches():
        tokens, noticed = encoder.encode(batch, spec.record_kind)
        counts.update(noticed)
        batches.append(tokens)
    table = _one_batch(batches, TOKENS[spec.encode.kind])
    write_batch(folder / "tokens.arrow", table)
    usable = table.select(["length", "loss"]).filter(pc.is_null(table.column("reason")))
    return {
        "rows": table.num_rows,
        "usable": usable.num_rows,
        "tokens": int(pc.sum(usable.column("length")).as_py() or 0),
        "loss": int(pc.sum(usable.column("loss")).as_py() or 0),
        "longest": int(pc.max(usable.column("length")).as_py() or 0),
        "engine": encoder.engine,
        "whole": encoder.plain.long_texts.num_whole - whole_before,
        "found": dict(sorted(counts.items())),
    }


def fit(spec: FitWindow, folder: Path) -> dict[str, Any]:
    """Fit the records that are too long; ``row`` is their place in the window, ``messages`` what is left of them."""
    encoder = load(spec.encode)
    with pa.memory_map(str(spec.encoded)) as source:
        tokens = pa.ipc.open_file(source).get_batch(0)
        lengths = tokens.column("length").to_numpy()
        long = (lengths > spec.max_length) & tokens.column("reason").is_null().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(long)
    fitted: list[pa.RecordBatch] = []
    begin = 0
    for batch in spec.window.batches():
        at = rows[(rows >= begin) & (rows < begin + batch.num_rows)] - begin
        if len(at):
            overlong = batch.take(pa.array(at))
            result = truncate_records(encoder, overlong, spec.record_kind, spec.max_length, spec.overlong)
            fitted.append(result.tokens.append_column("messages", result.messages))
        begin += batch.num_rows
    table = _one_batch(fitted, TOKENS[spec.encode.kind].append(pa.field("messages", MESSAGES)))
    schema = table.schema.insert(0, pa.field("row", pa.int64(), False))
    whole = pa.RecordBatch.from_arrays([pa.array(rows, pa.int64()), *table.columns], schema=schema)
    write_batch(folder / "fitted.arrow", whole)
    return {"rows": whole.num_rows}


def _one_batch(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    whole = pa.Table.from_batches(list(batches), schema=schema).combine_chunks().to_batches()
    return whole[0] if whole else pa.RecordBatch.from_pylist([], schema=schema)


def make_keys(spec: SignWindow, folder: Path) -> dict[str, Any]:
    """Sign every batch of a window."""
    keys = [sign(batch, spec.record_kind, spec.dedupe) for batch in spec.window.batches()]
    with (
        pa.OSFile(str(folder / "signatures.arrow"), "wb") as file,
        pa.ipc.new_file(file, keys[0].schema) as writer,
    ):
        for batch in keys:
            writer.write_batch(batch)
    return {"rows": sum(batch.num_rows for batch in keys)}
