"""Passes over the sources: the seeded order of rows within each epoch, and the rows drawn from it until a
cap.

Seeds go by name, so a source that is added or removed moves no other's order. An epoch takes 16 bytes a row
while it is sorted and 4 afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamix.core.hashing import mix64, salt

Costs = NDArray[np.int32] | NDArray[np.int64]  # [num_rows] of one source, each at least 1

_BLOCK_ROWS = 1 << 20


def epoch_order(num_rows: int, seed: int, name: str, epoch: int) -> NDArray[np.int32]:
    """Rows of source ``name`` in the order of its pass ``epoch`` (from 0), a permutation."""
    key = salt(seed, "order", name, epoch)
    ranks = np.empty(num_rows, np.uint64)
    for first in range(0, num_rows, _BLOCK_ROWS):  # ``hashing.permutation`` in blocks: half the memory
        places = np.arange(first, min(first + _BLOCK_ROWS, num_rows), dtype=np.uint64)
        ranks[first : first + len(places)] = mix64(places ^ key)
    order = np.argsort(ranks)
    del ranks
    return order.astype(np.int32)


def rotated_if_equal(order: NDArray[np.int32], previous: NDArray[np.int32]) -> NDArray[np.int32]:
    """``order``, turned by one place where it equals the pass before (which small sources meet by chance)."""
    return np.roll(order, 1) if np.array_equal(order, previous) else order


def rows_allowed(num_rows: int, max_epochs: float) -> int:
    """Rows that ``max_epochs`` passes hold: 2.5 passes over 4 rows -> 10."""
    return int(np.floor(num_rows * max_epochs + 1e-9))


def caps(
    costs: Sequence[Costs], max_epochs: Sequence[float], seed: int, names: Sequence[str]
) -> tuple[int, ...]:
    """The exact cost that ``max_epochs`` allows each source: whole passes and the first rows of one more."""
    out = []
    for cost, epochs, name in zip(costs, max_epochs, names, strict=True):
        whole, rest = divmod(rows_allowed(len(cost), epochs), max(1, len(cost)))
        total = whole * int(cost.sum(dtype=np.int64))
        if rest:
            total += int(cost[pass_order(len(cost), seed, name, whole)[:rest]].sum(dtype=np.int64))
        out.append(total)
    return tuple(out)


def pass_order(num_rows: int, seed: int, name: str, epoch: int) -> NDArray[np.int32]:
    """``epoch_order`` as a schedule uses it: rotated where it equals the pass before."""
    order = epoch_order(num_rows, seed, name, 0)
    for later in range(1, epoch + 1):
        order = rotated_if_equal(epoch_order(num_rows, seed, name, later), order)
    return order


class Supply(NamedTuple):
    """The current pass over each source: its rows in order and their costs."""

    begin: NDArray[np.int64]  # [num_sources] where its rows are in ``row`` and ``cost``
    size: NDArray[np.int64]  # [num_sources] rows of this pass that may be used
    at: NDArray[np.int64]  # [num_sources] rows of it used
    row: NDArray[np.int32]
    cost: NDArray[np.int32]  # or int64


class Passes:
    """One pass after the other over each source, its rows and costs in order, until its cap."""

    def __init__(self, costs: Sequence[Costs], num_left: list[int], seed: int, names: Sequence[str]) -> None:
        self.costs, self.num_left, self.seed, self.names = costs, num_left, seed, names
        self.epoch = [0] * len(costs)
        sizes = np.array([len(c) if left else 0 for c, left in zip(costs, num_left, strict=True)], np.int64)
        wide = any(int(c.max()) >= 2**31 for c in costs if len(c))
        zeros = np.zeros(len(costs), np.int64)
        self.supply = Supply(
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
            order = rotated_if_equal(order, supply.row[begin : begin + num_rows])
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
