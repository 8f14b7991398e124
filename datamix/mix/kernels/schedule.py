"""Kernels: the rule that chooses the rows (``mix/rule.py``), and the recount of a schedule
(``mix/schedule.py``).
"""

from __future__ import annotations

import numpy as np

from datamix.core.jit import kernel
from datamix.mix.kernels import DONE, FULL, USED_UP

_NEAR = 0.5  # units: totals are whole, so a quota this close is met
_AT_CAP, _AT_CAP_EARLY = (
    -2.0,
    -1.0,
)  # instead of when the next row is due to end: there is none; early by more than the slack


@kernel
def emit(track, supply, state, span, out, renewed, reached):  # type: ignore[no-untyped-def]
    """See ``StageRunner``; writes (rows, total) to ``reached`` and returns the reason."""
    total, stop, length, half, slack = span
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
                x = given[best] + is_end * (cost[place] if has_next else slack + _NEAR)
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
            reached[0], reached[1] = n, total
            return DONE
        if n == len(out_source):
            reached[0], reached[1] = n, total
            return FULL
        best, soonest, limit, is_capped = -1, np.inf, total + half, False
        for a in range(len(source)):
            if begin[a] <= limit:
                if end[a] == _AT_CAP:
                    is_capped = True
                elif end[a] < soonest or best < 0:
                    best, soonest = a, end[a]
        if best < 0 or soonest < 0.0:
            reached[0], reached[1] = n, total
            return USED_UP
        s = source[best]
        place = first[s] + at[s]
        if is_capped and soonest > length + _NEAR and total + cost[place] > length + _NEAR:
            reached[0], reached[1] = n, total  # a row beyond the end would put the capped source behind
            return DONE
        out_source[n], out_row[n] = s, row[place]
        n += 1
        at[s] += 1
        given[best] += cost[place]
        total += cost[place]
        if at[s] == size[s]:
            reached[0], reached[1] = n, total
            return best


@kernel
def _quota(track, piece, source, total):  # type: ignore[no-untyped-def]
    x = total - track.knot[piece]
    return (
        track.quota[piece, source] + (track.weight[piece, source] + track.slope[piece, source] * x / 2.0) * x
    )


@kernel
def recount(track, rows, supply, given, worst, places):  # type: ignore[no-untyped-def]
    """Raise ``worst`` by what the rows of one run show; returns their total. ``given`` holds zeros."""
    source, row, first = rows
    cost, begin = supply
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
