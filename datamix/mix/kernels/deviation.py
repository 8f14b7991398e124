"""Kernel: the recount of a schedule. See ``mix/deviation.py``."""

from __future__ import annotations

from datamix.core.jit import kernel


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
