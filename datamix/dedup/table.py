"""``dedupe``: the same engine on one Arrow table in memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from datamix.core.errors import RecipeError
from datamix.dedup.decide import Decision, Signed, decide_columns
from datamix.dedup.kernels import EXACT, STAYS
from datamix.dedup.signatures import sign
from datamix.dedup.spec import DedupeSpec, NearSpec
from datamix.dedup.text_columns import Columns, flat_texts, numbers

_SLICE_ROWS = 2048
_METHODS = pa.Array.from_buffers(  # ["exact", "near"]
    pa.string(), 2, [None, pa.py_buffer(np.array([0, 5, 9], np.int32)), pa.py_buffer(b"exactnear")]
)


@dataclass(frozen=True)
class Deduplicated:
    """What ``dedupe`` made of a table; no text is copied before ``kept`` is asked for."""

    table: pa.Table  # as it came
    stays: pa.BooleanArray  # [num_rows]
    removed: pa.Table  # row, method (exact | near), kept_row, similarity

    @property
    def kept(self) -> pa.Table:
        """The rows that stay, in order."""
        return self.table.filter(self.stays)


def dedupe(
    table: pa.Table,
    column: str = "text",
    spec: DedupeSpec | None = None,
    *,
    threads: int | None = None,
) -> Deduplicated:
    """Remove duplicate rows of a table by the text in one column; the default is exact and near at 0.8, verified.

    Raises RecipeError where there is no such column, TypeError where it is not text.
    """
    if column not in table.column_names:
        raise RecipeError(f"dedupe: no column {column!r}; the table has {', '.join(table.column_names)}.")
    spec = spec or DedupeSpec(near=NearSpec())
    num_threads = threads or len(os.sched_getaffinity(0))
    parts = [
        chunk.slice(start, _SLICE_ROWS)
        for chunk in flat_texts(table.column(column))
        for start in range(0, len(chunk), _SLICE_ROWS)
    ]

    def signed(part: pa.Array) -> pa.RecordBatch:
        return sign(pa.RecordBatch.from_arrays([part], ["text"]), "text", spec)

    with ThreadPoolExecutor(num_threads) as pool:
        signatures = list(pool.map(signed, parts))
    source = Signed("table", (), (), "text", 0)
    columns = Columns(signatures, parts)
    return _told(table, decide_columns([source], [columns], spec, threads=num_threads)[0])


def _told(table: pa.Table, decision: Decision) -> Deduplicated:
    removed = np.flatnonzero(decision.fate)
    audit = {
        "row": numbers(removed),
        "method": _METHODS.take(numbers(decision.fate[removed] - EXACT)),
        "kept_row": numbers(decision.kept_record[removed]),
        "similarity": numbers(decision.similarity[removed]),
    }
    return Deduplicated(table, numbers(decision.fate == STAYS), pa.table(audit))
