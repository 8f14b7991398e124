"""The best mixture under convex laws: exact, by an interior-point method.

Minimised: the target's law plus ``strength * KL(w || prior)`` over the simplex, under caps and bounds on other laws. All of it is
convex, so Newton steps on a falling barrier reach the one optimum to a relative 1e-6. Cost: some fifty steps of a system as large as
the number of sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamix.fitting.laws import Floats, Laws

Curvature = Callable[[Floats], tuple[float, Floats, Floats]]  # value, gradient, Hessian

_SMALLEST_BARRIER = 1e-8
_SHRINK = 0.2
_MAX_NEWTON = 60


@dataclass(frozen=True)
class Bound:
    """A law that may not exceed a value: ``sum_i amounts_i * law_i(w) <= limit``."""

    amounts: Floats
    limit: float


@dataclass(frozen=True)
class Problem:
    """What is minimised: ``amounts`` of the laws, KL to ``prior``; under ``caps`` on shares and ``bounds``."""

    amounts: Floats  # [num_fits], >= 0
    prior: Floats  # [num_sources], positive where a source may be used
    strength: float
    caps: Floats  # [num_sources]
    bounds: tuple[Bound, ...] = ()
    spread: float = 1.0  # of the target, for the size of the barrier


class Infeasible(Exception):
    """No mixture under the caps meets the bounds."""


def optimum(laws: Laws, problem: Problem) -> Floats:
    """The weights ``[num_sources]`` that solve ``problem``. Raises Infeasible."""
    free = np.flatnonzero((problem.caps > 1e-9) & (problem.prior > 0))
    caps = problem.caps[free]
    if caps.sum() <= 1 + 1e-6:
        return _placed(caps / caps.sum(), free, len(problem.caps))
    start = _inside(problem.prior[free], caps)
    barriers = [_on(free, len(problem.caps), _law(laws, bound.amounts)) for bound in problem.bounds]
    limits = [bound.limit for bound in problem.bounds]
    if barriers:
        start = _feasible(start, caps, barriers, limits, problem.spread)
    target = _on(free, len(problem.caps), _law(laws, problem.amounts))
    prior = problem.prior[free] / problem.prior[free].sum()

    def goal(w: Floats) -> tuple[float, Floats, Floats]:
        value, gradient, hessian = target(w)
        logs = np.log(w / prior)
        value += problem.strength * float(w @ logs)
        return value, gradient + problem.strength * (logs + 1), hessian + np.diag(problem.strength / w)

    return _placed(_minimise(goal, start, caps, barriers, limits, problem.spread), free, len(problem.caps))


def _law(laws: Laws, amounts: Floats) -> Curvature:
    used = np.flatnonzero(amounts)
    few, part = laws.take(used), amounts[used]
    return lambda w: few.curvature(w, part)


def _on(free: NDArray[np.int64], size: int, law: Curvature) -> Curvature:
    """A law of all sources as one of the free ones; the others have no share."""

    def reduced(w: Floats) -> tuple[float, Floats, Floats]:
        value, gradient, hessian = law(_placed(w, free, size))
        return value, gradient[free], hessian[np.ix_(free, free)]

    return reduced


def _placed(w: Floats, free: NDArray[np.int64], size: int) -> Floats:
    whole = np.zeros(size)
    whole[free] = w
    return whole


def _inside(prior: Floats, caps: Floats) -> Floats:
    """A mixture strictly under the caps, near the prior."""
    low, high = 0.0, 1e6
    most = caps - 0.5 * (caps.sum() - 1) * caps / caps.sum() if caps.sum() < 2 else 0.999 * caps
    base = np.maximum(prior / prior.sum(), 1e-4)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle * base, most).sum() < 1 else (low, middle)
    filled = np.minimum(high * base, most)
    w: Floats = filled / filled.sum()
    return w


def _feasible(
    start: Floats, caps: Floats, laws: Sequence[Curvature], limits: Sequence[float], spread: float
) -> Floats:
    """A mixture strictly within the bounds: the smooth maximum of what exceeds them is minimised. Raises Infeasible."""
    sharp = 1e-2 * spread

    def excess(w: Floats) -> float:
        return max(law(w)[0] - limit for law, limit in zip(laws, limits, strict=True))

    def goal(w: Floats) -> tuple[float, Floats, Floats]:
        values, gradients, hessians = zip(*(law(w) for law in laws), strict=True)
        over = (np.array(values) - np.array(limits)) / sharp
        top = over.max()
        part = np.exp(over - top)
        value = sharp * (top + float(np.log(part.sum())))
        part /= part.sum()
        slopes = np.array(gradients)
        gradient = part @ slopes
        hessian = np.tensordot(part, np.array(hessians), 1)
        hessian += ((slopes * part[:, None]).T @ slopes - np.outer(gradient, gradient)) / sharp
        return value, gradient, hessian

    if excess(start) >= -1e-6 * spread:
        start = _minimise(goal, start, caps, [], [], spread)
    if excess(start) >= -1e-9 * spread:
        raise Infeasible
    return start


def _minimise(
    goal: Curvature,
    w: Floats,
    caps: Floats,
    laws: Sequence[Curvature],
    limits: Sequence[float],
    spread: float,
) -> Floats:
    """Newton steps on ``goal`` and a barrier that falls; ``w`` starts inside and stays there."""
    barrier = 0.1 * spread
    while barrier > _SMALLEST_BARRIER * spread:
        for _ in range(_MAX_NEWTON):
            value, gradient, hessian = _with_barrier(goal, w, caps, laws, limits, barrier)
            step = _newton(gradient, hessian)
            slope = float(gradient @ step)
            if -slope < 1e-9 * spread:
                break
            length = 1.0
            for _ in range(50):
                new = w + length * step
                if _with_barrier(goal, new, caps, laws, limits, barrier)[0] <= value + 0.1 * length * slope:
                    w = new / new.sum()
                    break
                length /= 2
            else:
                break
        barrier *= _SHRINK
    return w


def _newton(gradient: Floats, hessian: Floats) -> Floats:
    """The step that keeps the sum of the weights."""
    size = len(gradient)
    system = np.ones((size + 1, size + 1))
    system[:size, :size], system[size, size] = hessian, 0.0
    step: Floats = np.linalg.solve(system, np.append(-gradient, 0.0))[:size]
    return step


def _with_barrier(
    goal: Curvature,
    w: Floats,
    caps: Floats,
    laws: Sequence[Curvature],
    limits: Sequence[float],
    barrier: float,
) -> tuple[float, Floats, Floats]:
    if (w <= 0).any() or (w >= caps).any():
        return np.inf, w, np.eye(len(w))
    value, gradient, hessian = goal(w)
    room = caps - w
    value -= barrier * float(np.log(w).sum() + np.log(room).sum())
    gradient = gradient - barrier / w + barrier / room
    hessian = hessian + np.diag(barrier / w**2 + barrier / room**2)
    for law, limit in zip(laws, limits, strict=True):
        height, slope, bend = law(w)
        left = limit - height
        if left <= 0:
            return np.inf, gradient, hessian
        value -= barrier * float(np.log(left))
        gradient = gradient + barrier / left * slope
        hessian = hessian + barrier * (bend / left + np.outer(slope, slope) / left**2)
    return value, gradient, hessian
