"""Records to tokens, once: full length first, then what is longer than ``max_length`` is fitted.

``encode`` leaves ``tokens.arrow`` (one batch, row for row with its window of records) and is keyed without
``max_length``; ``fit`` re-encodes only the records that are too long and leaves them beside. So another length costs
only what its truncation reaches, and for pretrain (split as integers later) nothing.
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
from datamix.core.records import TOKENS, RecordKind
from datamix.pipeline.prepare import Window
from datamix.tokenize import EncodeSpec, load
from datamix.tokenize import fit as truncate_records

_VERSION = 1


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


def encode_tasks(
    source: str, windows: Sequence[Window], kind: RecordKind, spec: EncodeSpec, home: Path
) -> list[Task]:
    """One task for each window."""
    return [
        Task(
            f"encode {source}",
            digest("encode", _VERSION, w.prepared.key, w.start, w.stop, kind, spec.identity()),
            encode,
            EncodeWindow(w, kind, spec),
            home,
            w.num_bytes,
        )
        for w in windows
    ]


def fit_tasks(
    source: str, encoded: Sequence[tuple[Task, Receipt]], max_length: int | None, overlong: str, home: Path
) -> list[Task]:
    """One task for each encoded window that holds a record longer than ``max_length``; no task elsewhere."""
    made: list[Task] = []
    for task, receipt in encoded:
        spec: EncodeWindow = task.spec
        if max_length is None or overlong == "split" or receipt.counts["longest"] <= max_length:
            continue
        work = FitWindow(
            spec.window, spec.record_kind, spec.encode, receipt.folder / "tokens.arrow", max_length, overlong
        )
        key = digest("fit", _VERSION, receipt.key, max_length, overlong)
        made.append(Task(f"fit {source}", key, fit, work, home, 1 + receipt.counts["tokens"]))
    return made


def warm(spec: EncodeSpec) -> None:
    """Load the tokenizer and the chat template into this process, before there is anything to encode."""
    load(spec).make_ready()


def encode(spec: EncodeWindow, folder: Path) -> dict[str, Any]:
    """Encode a window; counts hold the sums that plans need."""
    encoder = load(spec.encode)
    counts: Counter[str] = Counter()
    batches: list[pa.RecordBatch] = []
    for batch in spec.window.batches():
        tokens, found = encoder.encode(batch, spec.record_kind)
        counts.update(found)
        batches.append(tokens)
    schema = TOKENS[spec.encode.kind]
    table = _one_batch(batches, schema)
    write_batch(folder / "tokens.arrow", table)
    usable = table.select(["length", "loss"]).filter(pc.is_null(table.column("reason")))
    return {
        "rows": table.num_rows,
        "usable": usable.num_rows,
        "tokens": int(pc.sum(usable.column("length")).as_py() or 0),
        "loss": int(pc.sum(usable.column("loss")).as_py() or 0),
        "longest": int(pc.max(usable.column("length")).as_py() or 0),
        "engine": encoder.engine,
        "found": dict(sorted(counts.items())),
    }


def fit(spec: FitWindow, folder: Path) -> dict[str, Any]:
    """Fit the records that are too long; ``row`` says which of the window they are."""
    encoder = load(spec.encode)
    with pa.memory_map(str(spec.encoded)) as source:
        tokens = pa.ipc.open_file(source).get_batch(0)
        lengths = tokens.column("length").to_numpy()
        long = (lengths > spec.max_length) & tokens.column("reason").is_null().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(long)
    fitted: list[pa.RecordBatch] = []
    begin = 0
    for batch in spec.window.batches():
        here = rows[(rows >= begin) & (rows < begin + batch.num_rows)] - begin
        if len(here):
            fitted.append(
                truncate_records(
                    encoder, batch.take(pa.array(here)), spec.record_kind, spec.max_length, spec.overlong
                )
            )
        begin += batch.num_rows
    table = _one_batch(fitted, TOKENS[spec.encode.kind])
    schema = table.schema.insert(0, pa.field("row", pa.int64(), False))
    whole = pa.RecordBatch.from_arrays([pa.array(rows, pa.int64()), *table.columns], schema=schema)
    write_batch(folder / "fitted.arrow", whole)
    return {"rows": whole.num_rows}


def _one_batch(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    table = pa.Table.from_batches(list(batches), schema=schema).combine_chunks()
    found = table.to_batches()
    return found[0] if found else pa.RecordBatch.from_pylist([], schema=schema)
