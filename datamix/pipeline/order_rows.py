"""Order the rows of all sources under the quota: source and row at each place. Integers only.

Cost: 10 bytes a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix import mix
from datamix.core.arrays import offsets_from_lengths, open_batch, write_batch
from datamix.core.contracts import Task
from datamix.core.hashing import digest

_VERSION = 2
_SHARD_TOKENS = 1 << 23


@dataclass(frozen=True)
class ScheduleSpec:
    """Which rows are dealt into which order."""

    names: tuple[str, ...]
    bins: tuple[Path, ...]
    unit: str
    quota: mix.Quota
    max_epochs: tuple[float, ...]
    seed: int
    scale: float = 1.0  # the part of each source's rows that is dealt at all


def schedule_task(spec: ScheduleSpec, packed: Sequence[str], home: Path) -> Task:
    """The one task that makes the order; ``packed`` are the keys of the bins."""
    asked = [spec.names, spec.unit, spec.quota, spec.max_epochs, spec.seed, spec.scale]
    key = digest("schedule", _VERSION, list(packed), asked)
    return Task("order", key, schedule, spec, home)


def row_costs(bins: Path, unit: str) -> NDArray[np.int64]:
    """What each row of a source costs in a unit, memory-mapped."""
    costs: NDArray[np.int64] = open_batch(bins).column(unit).to_numpy()
    return costs


def costs_in_order(
    source: NDArray[Any], row: NDArray[np.int64], bins: Sequence[Path], unit: str
) -> NDArray[np.int64]:
    """What each row of an order costs in a unit: row ``row[i]`` of source ``source[i]``."""
    costs = np.zeros(len(source), np.int64)
    for number, file in enumerate(bins):
        of_source = source == number
        costs[of_source] = row_costs(file, unit)[row[of_source]]
    return costs


def dealt_rows(bins: Path, scale: float, seed: int, name: str) -> NDArray[np.int64]:
    """The rows of a source that a mixture of this scale deals: all, or a seeded part. ``[num_dealt]``."""
    num_rows = open_batch(bins).num_rows
    return np.arange(num_rows) if scale == 1.0 else mix.scaled_rows(num_rows, scale, seed, name)


def schedule(spec: ScheduleSpec, folder: Path) -> dict[str, Any]:
    """Deal the rows; leave ``order.arrow`` and what the mixture came to, counted from it."""
    rows = [dealt_rows(b, spec.scale, spec.seed, name) for b, name in zip(spec.bins, spec.names, strict=True)]
    costs = [row_costs(b, spec.unit)[r] for b, r in zip(spec.bins, rows, strict=True)]
    plan = mix.schedule(costs, spec.quota, spec.max_epochs, spec.seed, spec.names)
    row_of = np.empty(len(plan.row), np.int64)
    for number, dealt in enumerate(rows):
        of_source = plan.source == number
        row_of[of_source] = dealt[plan.row[of_source]]
    write_batch(folder / "order.arrow", pa.record_batch({"source": plan.source, "row": row_of}))
    recount = mix.deviation(plan, costs, spec.quota)
    return {
        "rows": len(plan.source),
        "stage_ends": plan.stage_ends.tolist(),
        "bound": recount.bound,
        "max_prefix_deviation": recount.max_prefix,
        "shards": shard_ends(costs_in_order(plan.source, row_of, spec.bins, "tokens")),
    }


def shard_ends(tokens: NDArray[np.int64]) -> list[int]:
    """Where output shards end: about eight million tokens each, cut by a constant. Rows -> places."""
    total = offsets_from_lengths(tokens)
    ends: list[int] = []
    start = 0
    while start < len(tokens):
        stop = int(np.searchsorted(total, total[start] + _SHARD_TOKENS, side="right")) - 1
        start = min(max(stop, start + 1), len(tokens))
        ends.append(start)
    return ends
