"""How far any prefix of the training order strays from the shares that were asked.

Each stage asks for its weights; over a run of stages with the same sources (a segment) the shares add up to a quota
Q_s(T): what source s should have when T units are emitted in all. The deviation |F_s - Q_s(T)| is taken after every
row. The deficit is carried from stage to stage, as the schedule carries it; where a source enters or leaves, counting
begins anew, as far into the plan as the rows before it ran over theirs. Cost: one cumulative sum over
[num_sources, num_rows] a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.audit.findings import Check, Findings

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StageClaim:
    """What one stage asks for."""

    name: str
    length: float  # units planned
    first: Floats  # [num_sources] weights as it begins
    last: Floats  # [num_sources] weights as it ends: others where they ramp

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which sources take part, ``[num_sources]``."""
        return (self.first > 0) | (self.last > 0)

    @property
    def shares(self) -> Floats:
        """Each source's share of the whole stage, ``[num_sources]``."""
        return (self.first + self.last) / 2

    def after(self, skipped: float) -> StageClaim:
        """What is left of the stage when ``skipped`` units of it are over."""
        if self.length <= 0:
            return self
        first = self.first + (self.last - self.first) * max(0.0, skipped / self.length)
        return StageClaim(self.name, self.length - skipped, first, self.last)


def read_stages(mixture: dict[str, Any], sources: list[str]) -> list[StageClaim]:
    """The stages of a manifest; a stage's length is its planned ``size``, else what it emitted."""
    stages: list[StageClaim] = []
    for stage in mixture["stages"]:
        first, last = (
            np.array([float(weights.get(source, 0.0)) for source in sources])
            for weights in (stage.get("ramp_from") or stage["weights"], stage["weights"])
        )
        unit = mixture["unit"]
        emitted = stage.get("records", stage["rows"]) if unit == "records" else stage[unit]
        stages.append(StageClaim(stage["name"], float(stage.get("size") or emitted), first, last))
    return stages


@dataclass(frozen=True)
class SourceTrack:
    """The quotas of one segment; piece p holds from ``knots[p]`` on, the last to infinity."""

    knots: Floats  # [num_pieces] units since the segment began
    owed: Floats  # [num_pieces, num_sources] quota at the knot
    weight: Floats  # [num_pieces, num_sources] share at the knot
    slope: Floats  # [num_pieces, num_sources] what the share gains a unit

    @staticmethod
    def of(stages: list[StageClaim], late: float) -> SourceTrack:
        """The quotas of consecutive stages, of which ``late`` units are over before the first row."""
        knots, owed, parts = [0.0], [np.zeros_like(stages[0].last)], []
        for stage in stages:
            skipped = min(late, stage.length)
            late -= skipped
            rest = stage.after(skipped)
            if rest.length > 0:
                parts.append(rest)
                knots.append(knots[-1] + rest.length)
                owed.append(owed[-1] + rest.shares * rest.length)
        still = np.zeros_like(stages[0].last)
        return SourceTrack(
            np.array(knots),
            np.array(owed),
            np.array([s.first for s in parts] + [stages[-1].last]),
            np.array([(s.last - s.first) / s.length for s in parts] + [still]),
        )

    def quota(self, total: NDArray[np.int64]) -> Floats:
        """What each source should have at each total, ``[num_sources, len(total)]``."""
        piece = np.searchsorted(self.knots, total, side="right") - 1
        since = (total - self.knots[piece])[:, None]
        due: Floats = self.owed[piece] + (self.weight[piece] + self.slope[piece] * since / 2) * since
        return due.T


class PrefixDeviation:
    """The largest deviation of any prefix, fed row by row in training order."""

    def __init__(self, stages: list[StageClaim]) -> None:
        self.worst = 0.0  # units
        self.worst_at = (0, 0)  # row, source
        self._stages = stages
        self._segment = [0]  # of each stage: another where a source enters or leaves
        for before, stage in pairwise(stages):
            entered = not np.array_equal(before.present, stage.present)
            self._segment.append(self._segment[-1] + entered)
        self._current = -1  # segment
        self._nominal = 0.0  # units planned for all segments up to the current one
        self._total = 0  # units emitted before the current one
        self._track: SourceTrack | None = None
        self._emitted = np.zeros(0, np.int64)  # per source, since the segment began
        self._num_rows = 0

    def add(self, stage: int, source: NDArray[np.int64], cost: NDArray[np.int64]) -> Floats:
        """Take consecutive rows of one stage: their sources and costs, ``[num_rows]`` each.

        Returns how far each source is ahead of its quota after each row, ``[num_sources, num_rows]``.
        """
        while self._current < self._segment[stage]:
            self._current += 1
            self._total += int(self._emitted.sum())
            stages = [s for s, n in zip(self._stages, self._segment, strict=True) if n == self._current]
            self._track = SourceTrack.of(stages, self._total - self._nominal)
            self._nominal += sum(s.length for s in stages)
            self._emitted = np.zeros(len(stages[0].last), np.int64)
        assert self._track is not None
        steps = np.zeros((len(self._emitted), len(cost)), np.int64)
        steps[source, np.arange(len(cost))] = cost
        emitted = self._emitted[:, None] + np.cumsum(steps, axis=1)
        ahead: Floats = emitted - self._track.quota(emitted.sum(axis=0))
        if len(cost):
            worst = np.unravel_index(int(np.argmax(np.abs(ahead))), ahead.shape)
            if abs(ahead[worst]) > self.worst:
                self.worst = float(abs(ahead[worst]))
                self.worst_at = (self._num_rows + int(worst[1]), int(worst[0]))
            self._emitted = emitted[:, -1]
            self._num_rows += len(cost)
        return ahead

    def check(self, manifest: dict[str, Any], names: Sequence[str], largest: int) -> Check:
        """The deviation is the manifest's, at most its bound, and that no more than the largest row (of those emitted ``largest``)."""
        findings, mixture, worst = Findings("prefix bound"), manifest["mixture"], self.worst
        unit, bound, claimed = mixture["unit"], mixture["bound"], mixture["max_prefix_deviation"]
        row, source = self.worst_at
        where = f"after row {row:,} {names[source]} strays {worst:,.1f} {unit}"
        if worst > bound + 1e-6 * max(1.0, bound):
            findings.add(f"{where}, more than the bound of {bound:,.1f}")
        # Rows that were not needed may be larger than those emitted.
        length = int(manifest["recipe"]["encode"].get("max_length") or 0)
        if unit == "records" and manifest["packing"]["strategy"] == "none":
            length = 1
        elif manifest["kind"] == "preference":
            length *= 2
        limit = max(largest, length)
        if bound > limit:
            findings.add(f"the manifest's bound of {bound:,.1f} is more than the largest row, {limit:,}")
        if abs(claimed - worst) > 1e-6 * max(1.0, worst):
            findings.add(f"{where}, the manifest says {claimed:,.6f}")
        return findings.check(f"no prefix strays more than {worst:,.1f} {unit}, of at most {bound:,.1f}")
