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

_MET = 0.5  # units: a capped source this close to its quota has met it


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


@njit(cache=True, nogil=True, inline="always")
def due(track, piece, source, given):  # type: ignore[no-untyped-def]
    """The total at which ``source`` should have ``given``, looking from ``piece`` on; inf for never."""
    while piece + 1 < len(track.knot) and given >= track.quota[piece + 1, source]:
        piece += 1
    owed = given - track.quota[piece, source]
    if owed <= 0.0:
        return track.knot[piece]
    weight, slope = track.weight[piece, source], track.slope[piece, source]
    if slope == 0.0:
        return track.knot[piece] + owed / weight if weight > 0.0 else np.inf
    # weight * x + slope * x^2 / 2 = owed, in the form that loses no digits.
    root = weight + np.sqrt(max(0.0, weight * weight + 2.0 * slope * owed))
    return track.knot[piece] + 2.0 * owed / root if root > 0.0 else np.inf


@njit(cache=True, nogil=True)
def look_ahead(track, supply, state, a, length):  # type: ignore[no-untyped-def]
    """Set when the next row of active source ``a`` is due, in a stretch of ``length``."""
    source, given = state.source[a], state.given[a]
    while state.piece[a] + 1 < len(track.knot) and given >= track.quota[state.piece[a] + 1, source]:
        state.piece[a] += 1
    state.begin[a] = due(track, state.piece[a], source, given)
    if supply.at[source] < supply.size[source]:
        cost = supply.cost[supply.begin[source] + supply.at[source]]
        state.end[a] = due(track, state.piece[a], source, given + cost)
    elif due(track, state.piece[a], source, given + _MET) >= length:
        state.begin[a] = np.inf
    else:
        state.end[a] = -1.0


@njit(cache=True, nogil=True)
def emit(track, supply, state, span, out):  # type: ignore[no-untyped-def]
    """Append rows to ``out`` until the total reaches ``stop``, ``out`` is full or a source needs its next pass.

    ``span``: (total so far, stop, length of the stretch, half the largest row), in cost from the stretch's beginning.
    ``out``: (source uint16[n], row int64[n], rows in it). Returns (reason, rows in ``out``, total).
    """
    total, stop, length, half = span
    out_source, out_row, n = out
    while True:
        if total >= stop:
            return DONE, n, total
        if n == len(out_source):
            return FULL, n, total
        best, soonest, limit = -1, np.inf, total + half
        for a in range(len(state.source)):
            if state.begin[a] <= limit and (state.end[a] < soonest or best < 0):
                best, soonest = a, state.end[a]
        if best < 0 or soonest < 0.0:
            return USED_UP, n, total
        source = state.source[best]
        place = supply.begin[source] + supply.at[source]
        cost = supply.cost[place]
        out_source[n], out_row[n] = source, supply.row[place]
        n += 1
        supply.at[source] += 1
        state.given[best] += cost
        total += cost
        if supply.at[source] == supply.size[source]:
            return best, n, total
        look_ahead(track, supply, state, best, length)
