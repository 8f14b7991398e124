"""Solve for a quota: amounts that the caps allow, or an error with advice.

Every fix in a message is computed and tried first. Cost: a few passes over a table of stages x sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from datamix.core.errors import RecipeError
from datamix.mix.advice import Short, check_rows, first_met, scarcity, too_large
from datamix.mix.loss_weights import WORTH_REPEATING, effective_cost
from datamix.mix.passes import rows_allowed
from datamix.mix.quota import (
    ROUNDING,
    Available,
    MixStage,
    Quota,
    StagePlan,
    allowed,
    fill,
    fixed_total,
    in_full,
    limits,
    mean_shares,
    quantity,
    stage_plans,
)


def solve(
    sources: Sequence[Available],
    stages: Sequence[MixStage],
    unit: str,
    size: int | Mapping[str, float] | None,
    on_short: str,
    rows_known: bool = False,
) -> Quota:
    """Settle how much each source gives to each stage.

    ``size``: a total in ``unit``; or epochs by source (the total at which the first of them is used that
    often); or None for the most that breaks no cap. Where the caps cannot give the size, ``on_short``
    decides: ``error``, ``shrink`` (a smaller total, same shares) or ``reweigh`` (same total, the others take
    what the short source lacks).

    ``rows_known``: a schedule follows, which tries on the rows themselves whether each source gets one.

    Raises RecipeError: sources or stages that do not fit, a size that the caps cannot give, a source too small
    for one row.
    """
    _check(sources, stages)
    asked = _asked(sources, stages, size)
    plans = stage_plans(stages, 1.0 if asked is None else asked)
    most, shares = allowed(sources, plans), mean_shares(plans)
    totals = limits(most, shares)
    limit = float(totals.min())
    binding: tuple[str, ...] = ()
    if asked is None:
        binding = tuple(sources[i].name for i in first_met(totals))
        plans = _with_length(plans, math.floor(limit + ROUNDING))
    elif asked > limit + ROUNDING:
        if on_short == "error":
            raise RecipeError(too_large(Short(sources, stages, unit, asked, size), limit))
        if on_short == "shrink":
            binding = tuple(sources[i].name for i in first_met(totals))
            plans = _with_length(plans, math.floor(limit + ROUNDING))
        else:
            plans = _reweighed(plans, sources, asked)
    total = round(sum(p.length for p in plans))
    taken = mean_shares(plans) * total
    if not rows_known:
        check_rows(sources, plans, taken, unit)
    epochs = tuple(float(t / s.cost) for t, s in zip(taken, sources, strict=True))
    notes = tuple(_notes(sources, epochs, None if asked is None else total))
    scarce = scarcity(sources, stages, epochs) if binding else None
    return Quota(total, plans, tuple(float(t) for t in taken), epochs, binding, notes, unit, scarce)


class TooFewEpochs(RecipeError):
    """``max_epochs`` of a source allows none of its rows."""

    def __init__(self, source: Available) -> None:
        least = math.ceil(1000 * source.smallest_row / source.cost) / 1000 or 0.001
        super().__init__(
            f"is {source.max_epochs:g}, which allows none of the {source.rows:,} rows of {source.name}; it takes at least "
            f"{max(least, math.ceil(1000 / source.rows) / 1000):g}"
        )
        self.source = source.name


def _check(sources: Sequence[Available], stages: Sequence[MixStage]) -> None:
    if not sources or not stages:
        raise RecipeError("mix: there is nothing to mix; give at least one source and one stage")
    for source in sources:
        if source.rows < 1 or source.cost < 1:
            raise RecipeError(
                f"mix: source {source.name} has no row that counts; remove it or check why all were dropped"
            )
        if not source.max_epochs > 0:
            raise RecipeError(f"sources.{source.name}.max_epochs: must be above 0, not {source.max_epochs:g}")
        if source.most < source.smallest_row or rows_allowed(source.rows, source.max_epochs) == 0:
            raise TooFewEpochs(source)
    for stage in stages:
        if len(stage.weights) != len(sources):
            raise ValueError(f"stage {stage.name} weighs {len(stage.weights)} of {len(sources)} sources")
    for i, source in enumerate(sources):
        if all(s.weights[i] == 0 and (s.ramp_to is None or s.ramp_to[i] == 0) for s in stages):
            raise RecipeError(
                f"mix: no stage gives source {source.name} a weight above 0, so it would never be used; "
                f"weigh it in a stage or remove it from sources"
            )


def _asked(
    sources: Sequence[Available], stages: Sequence[MixStage], size: int | Mapping[str, float] | None
) -> float | None:
    """The total asked for, None for the most that breaks no cap."""
    fixed = fixed_total(stages)
    if isinstance(size, Mapping):
        by_name = {s.name: i for i, s in enumerate(sources)}
        shares = mean_shares(stage_plans(stages, fixed or 1.0))
        totals = []
        for name, epochs in size.items():
            if name not in by_name:
                raise RecipeError(
                    f"mix.size.epochs: there is no source {name}; sources are {', '.join(by_name)}"
                )
            if not epochs > 0:
                raise RecipeError(f"mix.size.epochs.{name}: must be above 0, not {epochs:g}")
            totals.append(sources[by_name[name]].cost * epochs / shares[by_name[name]])
        if not totals:
            raise RecipeError("mix.size.epochs: names no source")
        total = float(math.floor(min(totals) + ROUNDING))
    elif size is None:
        return None if fixed is None else float(round(fixed))
    else:
        total = float(size)
    if total < 1:
        raise RecipeError(f"mix.size: must be at least 1, not {total:g}")
    if fixed is not None and abs(fixed - total) > 0.5 + 1e-3 * total:
        raise RecipeError(
            f"mix.size asks for {total:.0f} and the sizes in mix.stages make {fixed:.0f}; leave one of them "
            f"out, or give the stages shares"
        )
    return total if fixed is None else float(round(fixed))


def _with_length(plans: Sequence[StagePlan], total: float) -> tuple[StagePlan, ...]:
    factor = total / sum(p.length for p in plans)
    scaled = [replace(p, length=p.length * factor) for p in plans]
    scaled[-1] = replace(scaled[-1], length=float(total) - sum(p.length for p in scaled[:-1]))
    return tuple(scaled)


def _reweighed(
    plans: Sequence[StagePlan], sources: Sequence[Available], total: float
) -> tuple[StagePlan, ...]:
    """Lower the short sources' shares until every cap holds; the others keep their proportions."""
    most = allowed(sources, plans)
    capped = np.zeros(len(sources), bool)
    current = tuple(plans)
    for _ in range(2000):
        need = mean_shares(current) * total
        capped |= need > most * (1 + 1e-12)
        factor = np.where(capped, most / np.where(need > 0, need, 1.0), 1.0)
        if np.all(np.abs(factor - 1) < 1e-12):
            return current
        if capped.all():
            break
        scaled = []
        for plan in current:
            start = np.array(plan.weights) * factor
            end = start if plan.ramp_to is None else np.array(plan.ramp_to) * factor
            if start.sum() > 0 and end.sum() > 0:
                ramp = None if plan.ramp_to is None else tuple((end / end.sum()).tolist())
                scaled.append(replace(plan, weights=tuple((start / start.sum()).tolist()), ramp_to=ramp))
        if len(scaled) < len(current):  # a stage with nothing left
            break
        current = tuple(scaled)
    need = mean_shares(current) * total
    if np.all(need <= most * (1 + 1e-9) + ROUNDING):
        return current
    limit = float(limits(most, mean_shares(plans)).min())
    raise RecipeError(
        f"mix: on_short: reweigh cannot help: at a total of {quantity(total)} some stage has no source left "
        f"to take over what {', '.join(s.name for s, c in zip(sources, capped, strict=True) if c)} lack. "
        f"Lower size to {quantity(limit)}, raise their max_epochs, or set on_short: shrink."
    )


def _notes(sources: Sequence[Available], epochs: Sequence[float], total: int | None) -> Iterator[str]:
    """What repeats are worth; and what UniMax would make of a ``total`` that needs repeats."""
    for source, used in zip(sources, epochs, strict=True):
        if used > WORTH_REPEATING:
            worth = effective_cost(source.cost, used) / source.cost
            yield (
                f"{source.name} is used {in_full(used)} times. Up to {WORTH_REPEATING} epochs repeats are nearly "
                f"as good as fresh data (Muennighoff et al. 2023); {in_full(used)} are worth about {in_full(worth)}."
            )
    most = np.array([s.most for s in sources])
    if total is None or len(sources) == 1 or max(epochs) <= 1 + ROUNDING or most.sum() < total:
        return
    amounts = fill(np.ones(len(sources)), most, total)
    parts = ", ".join(f"{a / total:.0%} {s.name}" for a, s in zip(amounts, sources, strict=True))
    used = max(float(a) / s.cost for a, s in zip(amounts, sources, strict=True))
    yield (
        "This size repeats records. mix.weights: unimax (an equal share for all, up to their caps) would "
        f"make it {parts}, with at most {in_full(used)} epochs."
    )
