"""Keys for dedupe and decontamination, one small file for each window of records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from datamix.core.contracts import Task
from datamix.core.hashing import digest
from datamix.core.records import RecordKind
from datamix.dedup import DedupeSpec, sign
from datamix.pipeline.prepare import Window

_VERSION = 2


@dataclass(frozen=True)
class SignWindow:
    window: Window
    record_kind: RecordKind
    dedupe: DedupeSpec


def tasks(
    source: str, windows: Sequence[Window], kind: RecordKind, spec: DedupeSpec, home: Path
) -> list[Task]:
    """One task for each window."""
    signs = (spec.exact, spec.near, spec.normalize, spec.fields)
    return [
        Task(
            f"sign {source}",
            digest("sign", _VERSION, w.prepared.key, w.start, w.stop, kind, *signs),
            make_keys,
            SignWindow(w, kind, spec),
            home,
            w.num_bytes,
        )
        for w in windows
    ]


def make_keys(spec: SignWindow, folder: Path) -> dict[str, Any]:
    """Sign every batch of a window."""
    writer: pa.ipc.RecordBatchFileWriter | None = None
    rows = 0
    with pa.OSFile(str(folder / "signatures.arrow"), "wb") as file:
        for batch in spec.window.batches():
            keys = sign(batch, spec.record_kind, spec.dedupe)
            writer = writer or pa.ipc.new_file(file, keys.schema)
            writer.write_batch(keys)
            rows += keys.num_rows
        if writer is not None:
            writer.close()
    return {"rows": rows}
