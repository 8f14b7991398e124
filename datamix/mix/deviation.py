"""Recount what the schedule promises: after every row, how far is each source from its quota?

Between two rows of a source its deviation only falls, so it is largest just before or just after one of its own rows, or
where a stretch ends: one pass over the rows looks at every prefix. About 100 million rows a second over the integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from datamix.contracts import Schedule
from datamix.mix.order import Costs
from datamix.mix.quota import Quota, segments
from datamix.mix.schedule import make_track


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
    for segment in segments(quota.stages):
        stages = quota.stages[segment.first : segment.last]
        last = int(schedule.stage_ends[segment.last - 1])
        rows = schedule.source[first:last], schedule.row[first:last], first
        total += _recount(make_track(stages, total - nominal), rows, (flat, begin), worst, places)
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


@njit(cache=True, nogil=True)
def _quota(track, piece, source, total):  # type: ignore[no-untyped-def]
    x = total - track.knot[piece]
    return (
        track.quota[piece, source] + (track.weight[piece, source] + track.slope[piece, source] * x / 2.0) * x
    )


@njit(cache=True, nogil=True)
def _recount(track, rows, supply, worst, places):  # type: ignore[no-untyped-def]
    """Raise ``worst`` by what the rows of one stretch show; returns their total."""
    source, row, first = rows
    cost, begin = supply
    given = np.zeros(len(worst), np.int64)
    total, piece = 0, 0
    for n in range(len(source)):
        s = source[n]
        for after in range(2):
            if after:
                given[s] += cost[begin[s] + row[n]]
                total += cost[begin[s] + row[n]]
                while piece + 1 < len(track.knot) and total >= track.knot[piece + 1]:
                    piece += 1
            off = abs(given[s] - _quota(track, piece, s, total))
            if off > worst[s]:
                worst[s], places[s] = off, first + n
    for s in range(len(worst)):
        off = abs(given[s] - _quota(track, piece, s, total))
        if off > worst[s]:
            worst[s], places[s] = off, first + len(source)
    return total
