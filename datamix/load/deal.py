"""Which rank trains which rows: a seeded permutation inside each global batch.

If rank r of W took every W-th row, an interleaved mixture could show it one source only. Dealing the rows
of each window of ``batch_size * world_size`` by a permutation breaks that lock and moves no row across a window, so
every bound of the mixture holds at every global batch. The order depends on the first row of the window alone:
whatever the number of ranks, the rows before a window are done and the rows after it are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from datamix.core.hashing import mix64, permutation, salt

_STEPS_AT_ONCE = 64


@dataclass(frozen=True)
class Deal:
    """How the rows of a set are dealt."""

    num_rows: int
    batch_size: int  # rows a rank and step
    world_size: int
    seed: int

    @property
    def window(self) -> int:
        """Rows of a global batch."""
        return self.batch_size * self.world_size

    @cached_property
    def _salt(self) -> np.uint64:
        return salt(self.seed, "deal")

    def num_steps(self, start: int) -> int:
        """Steps from row ``start`` to the end. Fewer rows than ranks make no step: they cannot be dealt."""
        full, rest = divmod(max(0, self.num_rows - start), self.window)
        return full + (rest >= self.world_size)

    def places(self, start: int, rank: int) -> NDArray[np.int64]:
        """Rows that ``rank`` trains of the window at ``start``; a last, smaller window is dealt evenly."""
        size = min(self.window, self.num_rows - start)
        order = permutation(size, mix64(np.array([start], np.uint64) ^ self._salt)[0])
        low, high = rank * size // self.world_size, (rank + 1) * size // self.world_size
        return start + order[low:high]

    def walk(self, start: int, steps: range, rank: int) -> Iterator[NDArray[np.int64]]:
        """``places`` of some steps counted from row ``start``, many at once: ``[num_steps, num_rows]``."""
        for low in range(0, len(steps), _STEPS_AT_ONCE):
            begin = start + np.array(steps[low : low + _STEPS_AT_ONCE], np.int64) * self.window
            whole = begin[begin + self.window <= self.num_rows]
            if len(whole):
                seeds = mix64(whole.astype(np.uint64) ^ self._salt)
                orders = np.argsort(mix64(np.arange(self.window, dtype=np.uint64) ^ seeds[:, None]), axis=1)
                yield whole[:, None] + orders[:, rank * self.batch_size : (rank + 1) * self.batch_size]
            for last in begin[len(whole) :].tolist():
                yield self.places(last, rank)[None]


def in_order(start: int, stop: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Rows ``start..stop`` as they stand, many batches at once: ``[num_batches, num_rows]``; the last may be smaller."""
    for low in range(start, stop, _STEPS_AT_ONCE * batch_size):
        places = np.arange(low, min(low + _STEPS_AT_ONCE * batch_size, stop), dtype=np.int64)
        whole = len(places) - len(places) % batch_size
        for part in (places[:whole].reshape(-1, batch_size), places[None, whole:]):
            if part.size:
                yield part
