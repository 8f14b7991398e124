"""What the schedule walks with: passes over the sources, the rows chosen so far, and a stretch of stages.

The only state of a schedule that changes. Sources lie one behind the other in two arrays (row, cost), each in the order
of its current pass, so that the rule reads memory in streams: 8 bytes a row of the sources.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datamix.mix import rule
from datamix.mix.order import Costs, epoch_order, pass_order, unlike


class Passes:
    """One pass after the other over each source, its rows and costs in order, until its cap."""

    def __init__(self, costs: Sequence[Costs], num_left: list[int], seed: int, names: Sequence[str]) -> None:
        self.costs, self.num_left, self.seed, self.names = costs, num_left, seed, names
        self.epoch = [0] * len(costs)
        sizes = np.array([len(c) if left else 0 for c, left in zip(costs, num_left, strict=True)], np.int64)
        wide = any(int(c.max()) >= 2**31 for c in costs if len(c))
        zeros = np.zeros(len(costs), np.int64)
        self.supply = rule.Supply(
            begin=np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64),
            size=zeros,
            at=zeros.copy(),
            row=np.empty(int(sizes.sum()), np.int32),
            cost=np.empty(int(sizes.sum()), np.int64 if wide else np.int32),
        )

    def refill(self, source: int) -> None:
        """Load the next pass where the current one is used up and the cap allows one."""
        supply, num_rows, epoch = self.supply, len(self.costs[source]), self.epoch[source]
        if supply.at[source] < supply.size[source] or self.num_left[source] == 0:
            return
        order = epoch_order(num_rows, self.seed, self.names[source], epoch)
        if epoch > 0:
            begin = int(supply.begin[source])
            order = unlike(order, supply.row[begin : begin + num_rows])
        self._load(source, order)

    def skip(self, source: int, num_rows: int) -> None:
        """Begin behind the first ``num_rows`` rows of all passes over the source; they count for its cap."""
        self.epoch[source], at = divmod(num_rows, max(1, len(self.costs[source])))
        self.num_left[source] = max(0, self.num_left[source] - num_rows + at)
        if num_rows == 0 or self.num_left[source] == 0:
            return
        order = pass_order(len(self.costs[source]), self.seed, self.names[source], self.epoch[source])
        self._load(source, order)
        self.supply.at[source] = min(at, int(self.supply.size[source]))

    def _load(self, source: int, order: NDArray[np.int32]) -> None:
        supply, cost = self.supply, self.costs[source]
        begin, num_rows = int(supply.begin[source]), len(cost)
        supply.row[begin : begin + num_rows] = order
        np.take(cost, order, out=supply.cost[begin : begin + num_rows], mode="clip")
        supply.size[source] = min(num_rows, self.num_left[source])
        supply.at[source] = 0
        self.num_left[source] -= int(supply.size[source])
        self.epoch[source] += 1

    def num_used(self, source: int) -> int:
        """Rows of the source chosen so far, repeats counted."""
        before = (self.epoch[source] - 1) * len(self.costs[source]) if self.epoch[source] else 0
        return before + int(self.supply.at[source])


class Rows:
    """The rows chosen so far, in arrays that grow."""

    def __init__(self, expected: int) -> None:
        self.source, self.row = np.empty(expected, np.uint16), np.empty(expected, np.int64)
        self.num_rows = 0

    def grow(self) -> None:
        room = len(self.source) // 4 + 1024
        self.source = np.concatenate([self.source, np.empty(room, np.uint16)])
        self.row = np.concatenate([self.row, np.empty(room, np.int64)])

    def arrays(self) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        source, row = self.source[: self.num_rows], self.row[: self.num_rows]
        spare = len(self.source) - self.num_rows
        return (source.copy(), row.copy()) if spare > self.num_rows // 8 else (source, row)


class Stretch:
    """Stages with the same sources, run by the rule; totals are counted from its beginning."""

    def __init__(self, track: rule.Track, active: NDArray[np.int64], passes: Passes, out: Rows) -> None:
        self.track, self.passes, self.out = track, passes, out
        self.begun = False
        self.state = rule.State(
            source=active.astype(np.int64),
            given=np.zeros(len(active), np.int64),
            piece=np.zeros(len(active), np.int64),
            begin=np.zeros(len(active)),
            end=np.zeros(len(active)),
        )

    def run(self, total: int, span: tuple[float, float, float]) -> tuple[int, bool]:
        """Choose rows until the total reaches ``span[0]``; returns the total and whether more can follow.

        ``span``: (stop, length of the stretch, half the largest row), in cost.
        """
        if not self.begun and total < span[0]:
            self.begun = True
            for a in range(len(self.state.source)):
                self._emit(total, (-1.0, *span[1:]), a)
        why, given = self._emit(total, span, -1)
        while why not in (rule.DONE, rule.USED_UP):
            if why == rule.FULL:
                self.out.grow()
            why, given = self._emit(given, span, why)
        return given, why == rule.DONE

    def _emit(self, total: int, span: tuple[float, float, float], renewed: int) -> tuple[int, int]:
        """Run the rule once; where ``renewed`` is a source, load its next pass first."""
        if renewed >= 0:
            self.passes.refill(int(self.state.source[renewed]))
        out = self.out.source, self.out.row, self.out.num_rows
        why, self.out.num_rows, total = rule.emit(
            self.track, self.passes.supply, self.state, (total, *span), out, renewed
        )
        return int(why), int(total)
