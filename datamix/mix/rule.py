"""The mixing rule, "earliest due, half a row ahead", as a kernel.

Each row of source s is due to begin when the total reaches the inverse of its quota at what s has given so far, F, and
due to end at the inverse at F + c. Among the sources due to begin within half a row (the largest row, L), the one due
to end first gives its next row. With a constant share w the two are F / w and (F + c) / w.

It is worst-case fair queueing (WF2Q, Bennett and Zhang 1996) moved ahead by half a row. docs/mixing.md proves that after
every row each source is within max(its largest row, L / 2) of its quota. Costs and totals are int64 and each due time is
a handful of float64 operations on them: no error builds up, and all machines agree. About 60 ns a row over 12 sources.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Why ``emit`` returned; 0 and above: that source needs its next pass.
FULL, DONE, USED_UP = -1, -2, -3

_NEAR = 0.5  # units: totals are whole, so a quota this close is met
_AT_CAP, _AT_CAP_EARLY = -2.0, -1.0  # instead of when the next row is due to end: there is none


class Track(NamedTuple):
    """Quotas of a stretch of stages, in cost from its beginning; the last piece goes on for ever.

    On piece i, source s has the share ``weight + slope * (T - knot)`` and has got ``quota`` at the knot.
    """

    knot: NDArray[np.float64]  # [num_pieces]
    weight: NDArray[np.float64]  # [num_pieces, num_sources]
    slope: NDArray[np.float64]  # [num_pieces, num_sources]
    quota: NDArray[np.float64]  # [num_pieces, num_sources]


class Supply(NamedTuple):
    """The current pass over each source: its rows in order and their costs."""

    begin: NDArray[np.int64]  # [num_sources] where its rows lie in ``row`` and ``cost``
    size: NDArray[np.int64]  # [num_sources] rows of this pass that may be used
    at: NDArray[np.int64]  # [num_sources] rows of it used
    row: NDArray[np.int32]
    cost: NDArray[np.int32]  # or int64


class State(NamedTuple):
    """Where a stretch stands. Index a is a place in ``source``, the sources that have a part in it."""

    source: NDArray[np.int64]  # [num_active]
    given: NDArray[np.int64]  # [num_active] cost
    piece: NDArray[np.int64]  # [num_active] of the track
    begin: NDArray[np.float64]  # [num_active] total at which the next row is due to begin; inf: gives no more
    end: NDArray[
        np.float64
    ]  # [num_active] total at which it is due to end; -1: wanted, but its cap is reached


@njit(cache=True, nogil=True)
def emit(track, supply, state, span, out, renewed):  # type: ignore[no-untyped-def]
    """Append rows to ``out`` until the total reaches ``stop``, ``out`` is full or a source needs its next pass.

    A source whose cap is its quota at the end of the stretch gives no more; the others fill up to there. ``span``: (total
    so far, stop, length of the stretch, half the largest row), in cost from its beginning. ``out``: (source uint16[n],
    row int64[n], rows in it). ``renewed``: the active source whose pass just ended, -1 for none. Returns (reason, rows,
    total).
    """
    total, stop, length, half = span
    out_source, out_row, n = out
    # Plain arrays and no calls: passing the tuples on costs reference counts, more than the work of the rule.
    knot, share, slope, quota = track
    first, size, at, row, cost = supply
    source, given, piece, begin, end = state
    last = len(knot) - 1
    best = renewed
    while True:
        if best >= 0:
            s = source[best]
            place, has_next = first[s] + at[s], at[s] < size[s]
            p = piece[best]
            for is_end in range(2):
                x = given[best] + is_end * (cost[place] if has_next else _NEAR)
                while p < last and x >= quota[p + 1, s]:
                    p += 1
                owed, root, rise = max(0.0, x - quota[p, s]), share[p, s], slope[p, s]
                if rise != 0.0:
                    # weight * t + rise * t^2 / 2 = owed, in the form that loses no digits.
                    root = (root + np.sqrt(max(0.0, root * root + 2.0 * rise * owed))) / 2.0
                when = knot[p] + (0.0 if owed == 0.0 else owed / root if root > 0.0 else np.inf)
                if is_end:
                    end[best] = when
                else:
                    piece[best], begin[best] = p, when
            if not has_next:
                end[best] = _AT_CAP if end[best] >= length else _AT_CAP_EARLY
        if total >= stop:
            return DONE, n, total
        if n == len(out_source):
            return FULL, n, total
        best, soonest, limit, is_capped = -1, np.inf, total + half, False
        for a in range(len(source)):
            if begin[a] <= limit:
                if end[a] == _AT_CAP:
                    is_capped = True
                elif end[a] < soonest or best < 0:
                    best, soonest = a, end[a]
        if best < 0 or soonest < 0.0:
            return USED_UP, n, total
        s = source[best]
        place = first[s] + at[s]
        if is_capped and soonest > length + _NEAR and total + cost[place] > length + _NEAR:
            return DONE, n, total  # a row beyond the end would put the capped source behind
        out_source[n], out_row[n] = s, row[place]
        n += 1
        at[s] += 1
        given[best] += cost[place]
        total += cost[place]
        if at[s] == size[s]:
            return best, n, total
