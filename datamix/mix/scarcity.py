"""Which sources set the size, and what more repeats of them would give: the ladder of ``datamix plan``.

Sources bind together where their caps give out at the same total, as the members of a proportional group do. Raising
``max_epochs`` of one of them alone would change nothing, so the ladder raises all of them. Cost: a few passes over a
table of stages x sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from datamix.mix.quota import (
    ROUNDING,
    Available,
    Floats,
    Rung,
    Scarcity,
    Stage,
    allowed,
    fixed_total,
    limits,
    mean_shares,
    stage_plans,
)

LADDER_EPOCHS = (1, 2, 4, 8)
_UNUSED_WORTH_SAYING = 0.5
_TIE = 1e-6  # of a total: sizes are rounded to whole units before shares are made of them


def first_met(totals: Floats) -> tuple[int, ...]:
    """The sources whose caps are met first, ties together; ``totals`` as ``limits`` gives them."""
    least = float(totals.min())
    return tuple(i for i, total in enumerate(totals) if total <= least * (1 + _TIE))


def ladder(sources: Sequence[Available], stages: Sequence[Stage]) -> tuple[Rung, ...]:
    """What ``max_epochs`` of 1, 2, 4 and 8 for the sources that bind would give; the other caps stay."""
    asked = fixed_total(stages)
    plans = stage_plans(stages, 1.0 if asked is None else asked)
    shares = mean_shares(plans)
    scarce = first_met(limits(allowed(sources, plans), shares))
    rungs = []
    for epochs in LADDER_EPOCHS:
        tried = [
            replace(s, max_epochs=float(epochs), cap=None) if i in scarce else s
            for i, s in enumerate(sources)
        ]
        total = math.floor(float(limits(allowed(tried, plans), shares).min()) + ROUNDING)
        used = tuple(float(w * total / s.cost) for w, s in zip(shares, sources, strict=True))
        rungs.append(Rung(epochs, total, used, tuple(max(0.0, 1 - u) for u in used)))
    return tuple(rungs)


def scarcity(
    sources: Sequence[Available], stages: Sequence[Stage], epochs: Sequence[float]
) -> Scarcity | None:
    """The ladder, where caps set the size and leave more than half of a source unused; ``epochs``: as it is now."""
    if all(1 - used <= _UNUSED_WORTH_SAYING for used in epochs):
        return None
    asked = fixed_total(stages)
    plans = stage_plans(stages, 1.0 if asked is None else asked)
    scarce = first_met(limits(allowed(sources, plans), mean_shares(plans)))
    names = tuple(s.name for s in sources)
    return Scarcity(names, tuple(names[i] for i in scarce), ladder(sources, stages))
