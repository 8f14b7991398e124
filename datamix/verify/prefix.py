"""How far any prefix of the training order strays from the shares that were asked.

Each stage asks for its weights; over a run of stages with the same sources (a segment) the shares add up to a quota
Q_s(T): what source s should have when T units are emitted in all. The deviation |F_s - Q_s(T)| is taken after every
row, and the deficit is carried from stage to stage as the schedule carries it; where a source enters or leaves,
counting begins anew. Cost: one cumulative sum over [num_sources, num_rows] a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Stage:
    """What one stage asks for."""

    name: str
    length: float  # units planned
    first: NDArray[np.float64]  # [num_sources] weights as it begins
    last: NDArray[np.float64]  # [num_sources] weights as it ends: others where they ramp

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which sources take part, ``[num_sources]``."""
        return (self.first > 0) | (self.last > 0)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Each source's share of the whole stage, ``[num_sources]``."""
        return (self.first + self.last) / 2


def read_stages(mixture: dict[str, Any], sources: list[str]) -> list[Stage]:
    """The stages of a manifest; a stage's length is its planned ``size``, else what it emitted."""
    stages: list[Stage] = []
    for stage in mixture["stages"]:
        last = _shares(stage["weights"], sources)
        first = _shares(stage["ramp_from"], sources) if stage.get("ramp_from") else last
        emitted = (
            stage.get("records", stage["rows"]) if mixture["unit"] == "records" else stage[mixture["unit"]]
        )
        stages.append(Stage(stage["name"], float(stage.get("size") or emitted), first, last))
    return stages


def _shares(weights: dict[str, float], sources: list[str]) -> NDArray[np.float64]:
    return np.array([float(weights.get(s, 0.0)) for s in sources])


class PrefixDeviation:
    """The largest deviation of any prefix, fed row by row in training order."""

    def __init__(self, stages: list[Stage]) -> None:
        self.worst = 0.0  # units
        self.worst_at = (0, 0)  # row, source
        self._stages = stages
        self._current = -1
        self._begin = 0.0  # units of the segment at which the current stage begins
        self._length = 0.0  # units that the current stage should last
        self._owed = np.zeros(0)  # quota as it begins
        self._emitted = np.zeros(0, np.int64)  # per source, since the segment began
        self._num_rows = 0

    def add(self, stage: int, source: NDArray[np.int64], cost: NDArray[np.int64]) -> None:
        """Take consecutive rows of one stage: their sources and costs, ``[num_rows]`` each."""
        while self._current < stage:
            self._enter(self._current + 1)
        if not len(cost):
            return
        steps = np.zeros((len(self._emitted), len(cost)), np.int64)
        steps[source, np.arange(len(cost))] = cost
        emitted = self._emitted[:, None] + np.cumsum(steps, axis=1)
        deviation = np.abs(emitted - self._quota(emitted.sum(axis=0)))
        worst = np.unravel_index(int(np.argmax(deviation)), deviation.shape)
        if deviation[worst] > self.worst:
            self.worst = float(deviation[worst])
            self.worst_at = (self._num_rows + int(worst[1]), int(worst[0]))
        self._emitted = emitted[:, -1]
        self._num_rows += len(cost)

    def _quota(self, total: NDArray[np.int64]) -> NDArray[np.float64]:
        """What each source should have at each total, ``[num_sources, num_rows]``."""
        stage = self._stages[self._current]
        since = total - self._begin
        slope = (
            (stage.last - stage.first) / (2 * self._length) if self._length > 0 else np.zeros(len(stage.last))
        )
        inside = np.minimum(since, self._length)  # past its end a ramp stays where it arrived
        ramped = stage.first[:, None] * inside + slope[:, None] * inside * np.abs(inside)
        quota: NDArray[np.float64] = self._owed[:, None] + ramped + stage.last[:, None] * (since - inside)
        return quota

    def _enter(self, index: int) -> None:
        stage = self._stages[index]
        end = self._begin + self._length
        before = self._stages[index - 1] if index else None
        if before is None or not np.array_equal(before.present, stage.present):
            overshoot = float(self._emitted.sum()) - end if before is not None else 0.0
            self._begin, self._length = 0.0, stage.length - overshoot
            self._owed = np.zeros(len(stage.last))
            self._emitted = np.zeros(len(stage.last), np.int64)
        else:
            self._owed = self._owed + before.shares * self._length
            self._begin, self._length = end, stage.length
        self._current = index
