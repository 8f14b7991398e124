"""The schedule: one order of all rows in which every prefix holds the mixture within one row.

Goes run by run (consecutive stages with the same sources) and lets the rule (``rule.py``) choose the rows.
Cursors, passes and caps go on across stages; deficits too, except where a source enters or leaves: there they
are dropped, so that a source that left owes no row.

Cost: 10 bytes a row for the result and 8 a row of the sources while it runs; 5 to 15 million rows a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from datamix.core.contracts import Schedule
from datamix.core.errors import RecipeError
from datamix.core.kernels import Kernel
from datamix.mix.passes import Costs, Passes, caps, rows_allowed
from datamix.mix.quota import Quota, StagePlan, in_full, quantity, reserve, rounded, stage_runs, sure_total
from datamix.mix.rule import PassRows, StageRunner, Track

_MAX_SOURCES = 1 << 16
_MAX_ROWS = 1 << 32
_recount = Kernel("mix", "schedule", "recount")


def schedule(
    costs: Sequence[Costs],
    quota: Quota,
    max_epochs: Sequence[float],
    seed: int,
    names: Sequence[str],
    used: Sequence[int] | None = None,
) -> Schedule:
    """Order the rows of all sources so that after each one every source is within one row of its quota.

    ``costs``: what each row of each source counts in the mixture's unit, ``[num_rows]`` a source, at least 1.
    The run ends with the first row that reaches ``quota.total``; where a cap is used up just there, with the
    last row that fits; before a row that a cap forbids. The order depends on costs, quota, caps, seed and
    names; with the same stages a smaller total is a prefix of a larger one.

    ``used``: rows of each source that an earlier part of the training took, repeats counted; the order goes
    on behind them and caps count them. That is how weights change at a step: a new schedule for what comes.

    Raises:
        RecipeError: a source that has a share would get no row.
        ValueError: a row of cost 0, or arguments that do not fit each other.
    """
    _check(costs, quota, max_epochs, names)
    shares = quota.shares
    num_allowed = [
        rows_allowed(len(c), e) if w > 0 else 0 for c, e, w in zip(costs, max_epochs, shares, strict=True)
    ]
    num_expected = sum(
        min(most, w * quota.total / c.mean() * 1.02 + 16)
        for c, w, most in zip(costs, shares, num_allowed, strict=True)
        if most
    )
    if num_expected > _MAX_ROWS:
        often = max(zip(max_epochs, names, strict=True))[1]
        raise RecipeError(
            f"mix: {int(num_expected):,} rows would have to be ordered, and {_MAX_ROWS:,} can be: give mix.size, or lower "
            f"sources.{often}.max_epochs"
        )
    largest = max(int(c.max()) for c, w in zip(costs, shares, strict=True) if w > 0)
    # Where sources come and go, a cap can be used up a little before the end of a run: the others then fill up.
    for slack in (0.0, largest / 2):
        passes = Passes(costs, list(num_allowed), seed, names)
        for i, num_rows in enumerate(used or ()):
            passes.skip(i, num_rows)
        out = PassRows(int(num_expected) + 16)
        total, stage_ends = _run_stages(quota.stages, passes, out, (largest / 2, slack))
        if total > quota.total - largest:
            break
    if message := _no_row(passes, quota, max_epochs, used or [0] * len(costs)):
        raise RecipeError(message)
    return Schedule(*out.arrays(), np.array(stage_ends, np.int64))


def _run_stages(
    plans: Sequence[StagePlan], passes: Passes, out: PassRows, margins: tuple[float, float]
) -> tuple[int, list[int]]:
    """Choose the rows of all stages; returns their total and where each stage ends."""
    nominal, total, stage_ends = 0.0, 0, []
    for run in stage_runs(plans):
        stages = plans[run.first : run.last]
        stops = nominal + np.cumsum([s.length for s in stages])
        runner = StageRunner(make_track(stages, total - nominal), np.array(run.active), passes, out)
        given, more = 0, True
        for stop in stops:
            if more:
                given, more = runner.run(given, (stop - total, stops[-1] - total, *margins))
            stage_ends.append(out.num_rows)
        nominal, total = float(stops[-1]), total + given
    return total, stage_ends


def make_track(stages: Sequence[StagePlan], late: float) -> Track:
    """Quotas of consecutive stages, begun ``late`` units into them: what the run before took too much."""
    knot, weight, slope, quota = [0.0], [], [], [np.zeros(len(stages[0].weights))]
    start = end = np.array(stages[0].weights)
    for stage in stages:
        start = np.array(stage.weights)
        end = start if stage.ramp_to is None else np.array(stage.ramp_to)
        skipped = min(late, stage.length)
        late -= skipped
        length = stage.length - skipped
        if length <= 0:
            continue
        start = start + (end - start) * max(0.0, skipped / stage.length)
        rise = (end - start) / length
        weight.append(start)
        slope.append(rise)
        knot.append(knot[-1] + length)
        quota.append(quota[-1] + (start + end) / 2 * length)
    weight.append(end)
    slope.append(np.zeros(len(end)))
    return Track(np.array(knot), np.array(weight), np.array(slope), np.array(quota))


def _check(costs: Sequence[Costs], quota: Quota, max_epochs: Sequence[float], names: Sequence[str]) -> None:
    num = {len(costs), len(max_epochs), len(names), *(len(s.weights) for s in quota.stages)}
    if len(num) != 1 or not costs:
        raise ValueError(
            f"{len(costs)} sources, {len(max_epochs)} caps, {len(names)} names and a quota do not fit"
        )
    if len(costs) >= _MAX_SOURCES:
        raise ValueError(f"{len(costs)} sources: at most {_MAX_SOURCES - 1} can be mixed")
    if len(set(names)) != len(names):
        raise ValueError(f"source names repeat: {sorted(names)}")
    for cost, name, share in zip(costs, names, quota.shares, strict=True):
        if share > 0 and (len(cost) == 0 or int(cost.min()) < 1):
            raise ValueError(
                f"source {name}: every row must count at least 1, so that it has a place in the order"
            )
        if len(cost) >= 2**31:
            raise ValueError(f"source {name} has {len(cost)} rows: at most 2,147,483,647 can be mixed")


def _no_row(passes: Passes, quota: Quota, max_epochs: Sequence[float], used: Sequence[int]) -> str | None:
    """The error for a source with a share that got no row; its advice was tried on the rows themselves."""
    costs, names, weighed = passes.costs, passes.names, [w > 0 for w in quota.shares]
    missing = [i for i in range(len(costs)) if weighed[i] and passes.num_used(i) <= used[i]]
    if not missing:
        return None
    most = caps(costs, max_epochs, passes.seed, names)
    largest_rows = [int(c.max()) if w else 0 for c, w in zip(costs, weighed, strict=True)]
    half = max(largest_rows) / 2

    def epochs_for(total: int) -> list[float]:
        needs = np.array(quota.shares) * total + reserve(largest_rows, quota.stages)
        return [
            math.ceil(need / int(c.sum(dtype=np.int64))) if w and need > cap else asked
            for need, c, cap, asked, w in zip(needs, costs, most, max_epochs, weighed, strict=True)
        ]

    def works(total: int) -> bool:
        plans = [replace(p, length=p.length * total / quota.total) for p in quota.stages]
        left = [
            (rows_allowed(len(c), e) + u) * w
            for c, e, u, w in zip(costs, epochs_for(total), used, weighed, strict=True)
        ]
        tried = Passes(costs, left, passes.seed, names)
        for i, num_rows in enumerate(used):
            tried.skip(i, num_rows)
        _run_stages(plans, tried, PassRows(1024), (half, 0.0))
        return all(tried.num_used(i) > used[i] for i, w in enumerate(weighed) if w)

    # A larger total is a longer schedule of the same rows: bisect, in steps of the three digits that sizes have.
    low = quota.total
    high = rounded(max(sure_total(quota.stages, i, largest_rows[i], half) for i in missing), up=True)
    while rounded(low + 1, up=True) < high:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    total = rounded(max(high, low + 1), up=True)
    while not works(total):
        total = rounded(total + 1, up=True)
    raised = [
        f"max_epochs of {name} at {epochs}"
        for name, epochs, asked in zip(names, epochs_for(total), max_epochs, strict=True)
        if epochs > asked
    ]
    first = missing[0]
    return (
        f"mix: source {names[first]} would get no row: its share of {quantity(quota.total)} {quota.unit} is "
        f"{in_full(quota.taken[first])} and its rows hold {int(costs[first].min()):,} to {largest_rows[first]:,}. The smallest "
        f"size that works is {quantity(total)}{' with ' * bool(raised)}{' and '.join(raised)}; or give {names[first]} "
        f"a larger weight, or remove it."
    )


@dataclass(frozen=True)
class Deviation:
    """The largest distance of a source from its quota over every prefix, in the mixture's unit."""

    bound: float  # the largest row: what is promised
    max_prefix: float
    per_source: tuple[float, ...]  # largest distance of each source
    bounds: tuple[float, ...]  # of each source: max(its largest row, half the largest row of all)
    place: int  # row after which (or before which) the largest distance is


def deviation(schedule: Schedule, costs: Sequence[Costs], quota: Quota) -> Deviation:
    """Largest ``|emitted_s - Q_s(emitted)|`` over every prefix of the schedule and every source."""
    flat = np.concatenate(list(costs))
    begin = np.cumsum([0, *(len(c) for c in costs)])[:-1].astype(np.int64)
    worst, places = np.zeros(len(costs)), np.zeros(len(costs), np.int64)
    nominal, total, first = 0.0, 0, 0
    for run in stage_runs(quota.stages):
        stages = quota.stages[run.first : run.last]
        last = int(schedule.stage_ends[run.last - 1])
        rows = schedule.source[first:last], schedule.row[first:last], first
        given = np.zeros(len(costs), np.int64)
        total += _recount(make_track(stages, total - nominal), rows, (flat, begin), given, worst, places)
        nominal += sum(s.length for s in stages)
        first = last
    largest = [int(c.max()) if w > 0 else 0 for c, w in zip(costs, quota.shares, strict=True)]
    at = int(np.argmax(worst))
    return Deviation(
        bound=float(max(largest)),
        max_prefix=float(worst[at]),
        per_source=tuple(float(w) for w in worst),
        bounds=tuple(max(float(x), max(largest) / 2) for x in largest),
        place=int(places[at]),
    )
