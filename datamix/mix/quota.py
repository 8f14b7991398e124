"""How much of each source, and when: a recipe's stages and caps become quotas.

A quota is a function Q_s(T): how much of source s should be among the first T units. It is the integral of
the shares asked for, so shares that ramp make it a parabola and nothing has to be cut into steps. All that
the mixer promises is measured against it. Costs nothing: a few numbers a stage and source.

Totals: the largest total that breaks no cap is T* = min over s of cap_s / W_s, where W_s is the share of s in
the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from datamix.core.errors import RecipeError

Floats = NDArray[np.float64]

ROUNDING = 1e-6  # of a unit: what float64 may lose in a total of 10^10 units


@dataclass(frozen=True)
class Available:
    """What a source can give, in the unit of the mixture."""

    name: str
    rows: int
    cost: int  # of all rows, once
    max_epochs: float
    largest_row: int
    smallest_row: int
    cap: int | None = None  # exact cost allowed where max_epochs is not whole; see ``passes.caps``

    @property
    def most(self) -> float:
        """Cost that ``max_epochs`` allows."""
        return self.cost * self.max_epochs if self.cap is None else float(self.cap)


@dataclass(frozen=True)
class MixStage:
    """A stage as asked for: its part of the whole (``share``) or its length, and a weight a source."""

    name: str
    share: float | None
    size: int | None
    weights: tuple[float, ...]
    ramp_to: tuple[float, ...] | None = None  # linear, from ``weights`` at its start to these at its end


@dataclass(frozen=True)
class StagePlan:
    """A stage as it will be: its length in cost and each source's share (normalised) at its start and end."""

    name: str
    length: float
    weights: tuple[float, ...]
    ramp_to: tuple[float, ...] | None = None

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each source over the whole stage."""
        if self.ramp_to is None:
            return self.weights
        return tuple((a + b) / 2 for a, b in zip(self.weights, self.ramp_to, strict=True))


@dataclass(frozen=True)
class LadderStep:
    """What one value of ``max_epochs`` of the scarce sources would give."""

    max_epochs: int
    total: int
    epochs: tuple[float, ...]  # per source
    unused: tuple[float, ...]  # per source, share of its cost that no row of the mixture holds


@dataclass(frozen=True)
class Scarcity:
    """Sources whose caps set the size while more than half of another stays unused."""

    names: tuple[str, ...]  # of all sources that are mixed
    scarce: tuple[str, ...]
    ladder: tuple[LadderStep, ...]


@dataclass(frozen=True)
class Quota:
    """The mixture in numbers, before any row is chosen."""

    total: int  # cost units to emit
    stages: tuple[StagePlan, ...]
    taken: tuple[float, ...]  # cost per source
    epochs: tuple[float, ...]  # per source
    binding: tuple[str, ...]  # sources whose caps set the total; empty where the requested size can be met
    notes: tuple[str, ...] = ()
    unit: str = "records"
    scarcity: Scarcity | None = None

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each source in the whole."""
        return tuple(float(x) for x in mean_shares(self.stages))


def mean_shares(stages: Sequence[StagePlan]) -> Floats:
    """Share of each source in the whole, stages weighed by their length."""
    lengths = np.array([s.length for s in stages])
    shares: Floats = lengths @ np.array([s.shares for s in stages]) / lengths.sum()
    return shares


def stage_plans(stages: Sequence[MixStage], total: float) -> tuple[StagePlan, ...]:
    """Give each stage its length and normalise its weights; shares fill what stages with sizes leave."""
    plans = []
    for stage in stages:
        length = float(stage.size) if stage.size is not None else (stage.share or 0.0) * total
        ramp = None if stage.ramp_to is None else _normalised(stage.ramp_to, stage.name)
        plans.append(StagePlan(stage.name, length, _normalised(stage.weights, stage.name), ramp))
    # Shares as written (0.8, 0.2; 0.333) may miss the total by a rounding: the last stage takes it.
    rest = total - sum(p.length for p in plans[:-1])
    plans[-1] = replace(plans[-1], length=rest)
    return tuple(plans)


def _normalised(weights: Sequence[float], stage: str) -> tuple[float, ...]:
    if any(not math.isfinite(w) or w < 0 for w in weights):
        raise RecipeError(
            f"mix.stages {stage}: weights must be numbers of at least 0, not {list(weights)}; 0 means absent "
            f"there"
        )
    total = math.fsum(weights)
    if total <= 0:
        raise RecipeError(f"mix.stages {stage}: no source has a weight above 0; give at least one")
    return tuple(float(w) / total for w in weights)


def fixed_total(stages: Sequence[MixStage]) -> float | None:
    """The total that the stages set themselves, None where all are shares of whatever the total is.

    Raises:
        RecipeError: shares do not sum to 1, or leave no room beside the sizes.
    """
    for stage in stages:
        if (stage.share is None) == (stage.size is None):
            raise RecipeError(f"mix.stages {stage.name}: give either share or size")
        if (stage.share if stage.size is None else stage.size) is None or (
            stage.share or stage.size or 0
        ) <= 0:
            raise RecipeError(f"mix.stages {stage.name}: its share or size must be above 0")
    sizes = sum(s.size for s in stages if s.size is not None)
    shares = math.fsum(s.share for s in stages if s.share is not None)
    if sizes == 0:
        if abs(shares - 1) > 1e-3:
            raise RecipeError(f"mix.stages: shares must sum to 1, they sum to {shares:g}")
        return None
    if shares == 0:
        return float(sizes)
    if shares >= 1:
        raise RecipeError(
            f"mix.stages: shares sum to {shares:g} and leave no room for the stages given by size; lower the "
            f"shares"
        )
    return sizes / (1 - shares)


def in_full(x: float) -> str:
    """A quantity in full, never above what it is: 1_270.4 -> ``1,270``, 0.25 -> ``0.25``."""
    return f"{math.floor(x + ROUNDING):,}" if x >= 10 else f"{x:.3g}"


def quantity(x: float, up: bool = False) -> str:
    """A size as a recipe takes it, three digits, rounded down (or up): 12_345_678 -> ``12.3M``."""
    whole = rounded(x, up)
    for letter, scale in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if whole >= max(scale, 10_000):
            return f"{whole / scale:.10g}{letter}"
    return str(whole)


def rounded(x: float, up: bool) -> int:
    whole = math.ceil(x - ROUNDING) if up else math.floor(x + ROUNDING)
    if whole < 10_000:
        return whole
    step: int = 10 ** (len(str(whole)) - 3)
    return (-(-whole // step) if up else whole // step) * step


def limits(most: Floats, shares: Floats) -> Floats:
    """The total at which the cap of each source is met: ``most_s / shares_s``. ``[num_sources]``."""
    totals: Floats = np.divide(most, shares, out=np.full(len(most), np.inf), where=shares > 0)
    return totals


def fill(base: Floats, most: Floats, total: float) -> Floats:
    """Share ``total`` in proportion to ``base`` with no source above its cap: what the capped leave, the
    others take.

    Water filling in one pass by rising ``most / base``; sums to ``min(total, sum of most)``.
    """
    amounts = np.zeros(len(base))
    left, rest = min(total, float(most.sum())), float(base.sum())
    ratio = np.divide(most, base, out=np.full(len(base), np.inf), where=base > 0)
    for s in np.argsort(ratio, kind="stable"):
        if base[s] > 0:
            amounts[s] = min(most[s], left * base[s] / rest)
            left, rest = left - amounts[s], rest - base[s]
    return amounts


@dataclass(frozen=True)
class StageRun:
    """Consecutive stages with the same sources: inside, deficits are carried and the one-row bound holds."""

    first: int  # stage
    last: int  # stage, exclusive
    active: tuple[int, ...]  # sources


def stage_runs(stages: Sequence[StagePlan]) -> tuple[StageRun, ...]:
    """Cut the stages where a source enters or leaves."""
    present = [
        tuple(
            s
            for s in range(len(p.weights))
            if p.weights[s] > 0 or (p.ramp_to is not None and p.ramp_to[s] > 0)
        )
        for p in stages
    ]
    cuts = [i for i in range(1, len(stages)) if present[i] != present[i - 1]]
    edges = [0, *cuts, len(stages)]
    return tuple(StageRun(a, b, present[a]) for a, b in pairwise(edges))


def sure_total(plans: Sequence[StagePlan], source: int, row: int, half: float) -> float:
    """A total that surely gives the source a row of this size, the stages scaled alike.

    In some run of stages its quota holds the row at ``half`` of the largest row before the end: rows end at the latest
    half a row after they are due.
    """
    total, best = sum(p.length for p in plans), np.inf
    for run in stage_runs(plans):
        stages = plans[run.first : run.last]
        part = sum(s.length for s in stages) / total * float(mean_shares(stages)[source])
        steepest = max(max(s.weights[source], (s.ramp_to or s.weights)[source]) for s in stages)
        if source in run.active and part > 0:
            best = min(best, (row + steepest * half) / part)
    return float(best)


def allowed(sources: Sequence[Available], plans: Sequence[StagePlan]) -> Floats:
    """Cost each source may give: its cap less its ``reserve``, at least half its cap."""
    most = np.array([s.most for s in sources])
    return np.maximum(most - reserve([s.largest_row for s in sources], plans), most / 2)


def reserve(largest_rows: Sequence[int], plans: Sequence[StagePlan]) -> Floats:
    """What each source leaves below its cap: one row for each later stage run that it has a part in.

    Deficits are not carried over a place where a source enters or leaves, so that a source can be one row over its
    quota after each; the room keeps it under its cap to the end.
    """
    parts = np.zeros(len(largest_rows))
    for run in stage_runs(plans):
        parts[list(run.active)] += 1
    return np.maximum(parts - 1, 0) * np.maximum(largest_rows, max(largest_rows) / 2)
