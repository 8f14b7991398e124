"""The order of rows inside a source: a seeded permutation an epoch, by the source's name.

Seeds go by name, so a source that is added or removed moves no other's order. An epoch takes 16 bytes a row while it is
sorted and 4 afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datamix.identity import mix64, salt

Costs = NDArray[np.int32] | NDArray[np.int64]  # [num_rows] of one source, each at least 1

_BLOCK_ROWS = 1 << 20


def epoch_order(num_rows: int, seed: int, name: str, epoch: int) -> NDArray[np.int32]:
    """Rows of source ``name`` in the order of its pass number ``epoch`` (from 0): a permutation of ``0..num_rows-1``."""
    key = salt(seed, "order", name, epoch)
    ranks = np.empty(num_rows, np.uint64)
    for first in range(0, num_rows, _BLOCK_ROWS):  # ``identity.permutation`` in blocks: half the memory
        places = np.arange(first, min(first + _BLOCK_ROWS, num_rows), dtype=np.uint64)
        ranks[first : first + len(places)] = mix64(places ^ key)
    order = np.argsort(ranks)
    del ranks
    return order.astype(np.int32)


def unlike(order: NDArray[np.int32], previous: NDArray[np.int32]) -> NDArray[np.int32]:
    """``order``, turned by one place where it equals the pass before (which small sources meet by chance)."""
    return np.roll(order, 1) if np.array_equal(order, previous) else order


def num_allowed(num_rows: int, max_epochs: float) -> int:
    """Rows that ``max_epochs`` passes hold: 2.5 passes over 4 rows -> 10."""
    return int(np.floor(num_rows * max_epochs + 1e-9))


def caps(
    costs: Sequence[Costs], max_epochs: Sequence[float], seed: int, names: Sequence[str]
) -> tuple[int, ...]:
    """The exact cost that ``max_epochs`` allows each source: whole passes and the first rows of one more."""
    out = []
    for cost, epochs, name in zip(costs, max_epochs, names, strict=True):
        whole, rest = divmod(num_allowed(len(cost), epochs), max(1, len(cost)))
        total = whole * int(cost.sum(dtype=np.int64))
        if rest:
            total += int(cost[pass_order(len(cost), seed, name, whole)[:rest]].sum(dtype=np.int64))
        out.append(total)
    return tuple(out)


def pass_order(num_rows: int, seed: int, name: str, epoch: int) -> NDArray[np.int32]:
    """The order of pass ``epoch`` as a schedule uses it: ``epoch_order``, made ``unlike`` the pass before."""
    order = epoch_order(num_rows, seed, name, 0)
    for later in range(1, epoch + 1):
        order = unlike(epoch_order(num_rows, seed, name, later), order)
    return order
