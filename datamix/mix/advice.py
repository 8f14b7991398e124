"""Messages for sizes that cannot be met, and the ladder for scarce sources.

Every fix in a message is computed and tried first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datamix.core.errors import RecipeError
from datamix.mix.quota import (
    ROUNDING,
    Available,
    Floats,
    LadderStep,
    MixStage,
    Scarcity,
    StagePlan,
    allowed,
    fixed_total,
    in_full,
    limits,
    mean_shares,
    quantity,
    rounded,
    stage_plans,
    sure_total,
)

LADDER_EPOCHS = (1, 2, 4, 8)
_UNUSED_WORTH_REPORTING = 0.5
_TIE = 1e-6  # of a total: sizes are rounded to whole units before shares are made of them


@dataclass(frozen=True)
class Short:
    """A size that the caps cannot give."""

    sources: Sequence[Available]
    stages: Sequence[MixStage]
    unit: str
    asked: float
    size: int | Mapping[str, float] | None


def too_large(short: Short, limit: float) -> str:
    """The error for a size above ``limit``: which sources lack how much, and what would work."""
    plans = stage_plans(short.stages, short.asked)
    need, most = mean_shares(plans) * short.asked, allowed(short.sources, plans)
    lacking = [i for i in range(len(need)) if need[i] > most[i] + ROUNDING]
    lacks = "; ".join(
        f"{short.sources[i].name} would have to give {quantity(need[i], up=True)} and has "
        f"{quantity(short.sources[i].cost)} with max_epochs {short.sources[i].max_epochs:g}"
        for i in lacking
    )
    epochs = [
        f"max_epochs of {s.name} to {math.ceil((need[i] + s.most - most[i] - ROUNDING) / s.cost)}"
        for i, s in enumerate(short.sources)
        if i in lacking
    ]
    if isinstance(short.size, int):
        size = f"lower size to {quantity(limit)}"
    elif short.size is not None:
        size = f"give size as a number of at most {quantity(limit)}"
    else:
        size = f"multiply the sizes of the stages by {math.floor(limit / short.asked * 1000) / 1000:g}"
    fixes = [f"raise {' and '.join(epochs)}", size]
    # A size in epochs of the short source asks for the same amount of it whatever its weight.
    by_weight = len(lacking) == 1 and not isinstance(short.size, Mapping)
    if by_weight and (weights := _weight_fix(short, lacking[0])):
        fixes.append(f"lower {weights}")
    return (
        f"mix.size: {quantity(short.asked, up=True)} {short.unit} were asked for, the caps allow "
        f"{quantity(limit)}: {lacks}. Either {', or '.join(fixes)}; or let the mixer choose with on_short: "
        f"shrink or reweigh."
    )


def _weight_fix(short: Short, lacking: int) -> str | None:
    """The largest weights of the short source, in the scale of the recipe, with which every cap holds."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _fits(short, _with_weight(short.stages, lacking, middle), lacking):
            low = middle
        else:
            high = middle
    stages = _with_weight(short.stages, lacking, low, round_down=True)
    if any(s.ramp_to is not None for s in stages) or not _fits(short, stages, None):
        return None
    weights = [(s.name, s.weights[lacking]) for s in stages if s.weights[lacking] > 0]
    if not weights:
        return None
    if len(short.stages) == 1:
        return f"its weight to {weights[0][1]:g}"
    return "its weights to " + ", ".join(f"{w:g} in {name}" for name, w in weights)


def _with_weight(
    stages: Sequence[MixStage], source: int, factor: float, round_down: bool = False
) -> tuple[MixStage, ...]:
    changed = []
    for stage in stages:
        weights = list(stage.weights)
        weights[source] *= factor
        if round_down and weights[source] > 0:
            step = 10.0 ** (math.floor(math.log10(weights[source])) - 2)
            weights[source] = float(f"{math.floor(weights[source] / step) * step:.3g}")
        ramp = stage.ramp_to
        if ramp is not None:
            ramp = tuple(w * factor if i == source else w for i, w in enumerate(ramp))
        changed.append(replace(stage, weights=tuple(weights), ramp_to=ramp))
    return tuple(changed)


def _fits(short: Short, stages: Sequence[MixStage], only: int | None) -> bool:
    if any(sum(s.weights) <= 0 or (s.ramp_to is not None and sum(s.ramp_to) <= 0) for s in stages):
        return False
    plans = stage_plans(stages, short.asked)
    room = allowed(short.sources, plans) + ROUNDING - mean_shares(plans) * short.asked
    return bool(room[only] >= 0) if only is not None else bool(np.all(room >= 0))


def check_rows(sources: Sequence[Available], plans: Sequence[StagePlan], taken: Floats, unit: str) -> None:
    """No source at zero: a quota below a source's smallest row is refused."""
    total = sum(p.length for p in plans)
    for i, source in enumerate(sources):
        if taken[i] >= source.smallest_row - ROUNDING:
            continue
        largest = max(s.largest_row for s in sources)
        alike = all(s.smallest_row == largest for s in sources)  # totals are whole rows then
        enough = rounded(sure_total(plans, i, source.largest_row, 0 if alike else largest / 2), up=True)
        need, most = taken / total * enough, allowed(sources, plans)
        raised = [
            f"max_epochs of {s.name} at {math.ceil((need[j] + s.most - most[j] - ROUNDING) / s.cost)}"
            for j, s in enumerate(sources)
            if need[j] > most[j] + ROUNDING
        ]
        raise RecipeError(
            f"mix: source {source.name} is asked for {taken[i] / total:.3g} of {quantity(total)} {unit}; "
            f"that is {in_full(taken[i])}, less than its smallest row ({source.smallest_row:,}), so that it would "
            f"stay out. {'The smallest size that works' if alike else 'A size that surely works'} is "
            f"{quantity(enough)}{' with ' + ' and '.join(raised) if raised else ''}; or give {source.name} a "
            f"larger weight, or remove it."
        )


def first_met(totals: Floats) -> tuple[int, ...]:
    """The sources whose caps are met first, ties together; ``totals`` as ``limits`` gives them."""
    least = float(totals.min())
    return tuple(i for i, total in enumerate(totals) if total <= least * (1 + _TIE))


def ladder(sources: Sequence[Available], stages: Sequence[MixStage]) -> tuple[LadderStep, ...]:
    """What ``max_epochs`` of 1, 2, 4 and 8 for the sources that bind would give; the other caps stay."""
    asked = fixed_total(stages)
    plans = stage_plans(stages, 1.0 if asked is None else asked)
    shares = mean_shares(plans)
    scarce = first_met(limits(allowed(sources, plans), shares))
    steps = []
    for epochs in LADDER_EPOCHS:
        tried = [
            replace(s, max_epochs=float(epochs), cap=None) if i in scarce else s
            for i, s in enumerate(sources)
        ]
        total = math.floor(float(limits(allowed(tried, plans), shares).min()) + ROUNDING)
        used = tuple(float(w * total / s.cost) for w, s in zip(shares, sources, strict=True))
        steps.append(LadderStep(epochs, total, used, tuple(max(0.0, 1 - u) for u in used)))
    return tuple(steps)


def scarcity(
    sources: Sequence[Available], stages: Sequence[MixStage], epochs: Sequence[float]
) -> Scarcity | None:
    """The ladder, where caps set the size and leave more than half of a source unused (``epochs``: used
    now).
    """
    if all(1 - used <= _UNUSED_WORTH_REPORTING for used in epochs):
        return None
    asked = fixed_total(stages)
    plans = stage_plans(stages, 1.0 if asked is None else asked)
    scarce = first_met(limits(allowed(sources, plans), mean_shares(plans)))
    names = tuple(s.name for s in sources)
    return Scarcity(names, tuple(names[i] for i in scarce), ladder(sources, stages))
