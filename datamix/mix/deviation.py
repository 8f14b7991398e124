"""Recount what the schedule promises: after every row, how far is each source from its quota?

Between two rows of a source its deviation only falls, so it is largest just before or just after one of its own rows, or
where a run of stages ends: one pass over the rows looks at every prefix. About 100 million rows a second over the integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamix.core.contracts import Schedule
from datamix.core.kernels import Kernel
from datamix.mix.passes import Costs
from datamix.mix.quota import Quota, stage_runs
from datamix.mix.schedule import make_track

_recount = Kernel("mix", "deviation", "recount")


@dataclass(frozen=True)
class Deviation:
    """The largest distance of a source from its quota over every prefix, in the mixture's unit."""

    bound: float  # the largest row: what is promised
    max_prefix: float
    per_source: tuple[float, ...]  # largest distance of each source
    bounds: tuple[float, ...]  # of each source: max(its largest row, half the largest row of all)
    place: int  # row after which (or before which) the largest distance stands


def deviation(schedule: Schedule, costs: Sequence[Costs], quota: Quota) -> Deviation:
    """Largest ``|emitted_s - Q_s(emitted)|`` over every prefix of the schedule and every source."""
    flat = np.concatenate(list(costs))
    begin = np.cumsum([0, *(len(c) for c in costs)])[:-1].astype(np.int64)
    worst, places = np.zeros(len(costs)), np.zeros(len(costs), np.int64)
    nominal, total, first = 0.0, 0, 0
    for run in stage_runs(quota.stages):
        stages = quota.stages[run.first : run.last]
        last = int(schedule.stage_ends[run.last - 1])
        rows = schedule.source[first:last], schedule.row[first:last], first
        given = np.zeros(len(costs), np.int64)
        total += _recount(make_track(stages, total - nominal), rows, (flat, begin), given, worst, places)
        nominal += sum(s.length for s in stages)
        first = last
    largest = [int(c.max()) if w > 0 else 0 for c, w in zip(costs, quota.shares, strict=True)]
    at = int(np.argmax(worst))
    return Deviation(
        bound=float(max(largest)),
        max_prefix=float(worst[at]),
        per_source=tuple(float(w) for w in worst),
        bounds=tuple(max(float(x), max(largest) / 2) for x in largest),
        place=int(places[at]),
    )
