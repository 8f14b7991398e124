"""Laws of the loss over mixture weights, many fitted at once.

The idea: two convex laws a target, averaged. The log-linear law ``exp(c) + exp(t.w)`` (Data Mixing Laws, arXiv 2403.16952; Olmix,
arXiv 2602.12237) holds across model sizes; the same with a root of each share, ``exp(c) + exp(t.w + a.sqrt(w))``, ``a <= 0``, knows
that the first percent of a source is worth the most, and ranks mixtures of one size better. Both stay convex in the weights, so an
optimum of their mean can be found exactly.

The fit: Huber loss, a little ridge, Levenberg-Marquardt from several floors, all targets and resamples as one batch: the curvature
of each fit is one row of a single matrix product. Cost: about a millisecond a fit at 24 sources, 110 targets with 20 bootstraps in
some ten seconds on one core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_HUBER = 1.0  # standard deviations of the losses: beyond, a residual counts linearly
_FLOORS = (0.3, 1.0, 3.0)  # standard deviations below the lowest loss: where fits start
_LINEAR_RIDGE = 0.02  # over the number of runs; on what differs between sources
_ROOT_RIDGES = (0.1, 0.01)  # of the law with roots: on t and on a
_LINEAR_SHARE = 0.45  # of the log-linear law in the mean: what it adds is transfer to other model sizes
_MAX_STEPS = 60
_LARGEST_EXPONENT = 30.0


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each fit's losses, ``[num_fits]``; fits are made on standardised losses."""

    mean: Floats
    sd: Floats


@dataclass(frozen=True)
class Laws:
    """Laws of many fits: parameters ``[num_fits, 1 + num_features]``, the floor first."""

    scale: Scale
    linear: Floats
    root: Floats

    def predict(self, weights: Floats) -> Floats:
        """Losses ``[num_mixtures, num_fits]`` of mixtures ``[num_mixtures, num_sources]``."""
        parts = [
            part[:, 0] + _exp(_features(weights, root) @ part[:, 1:].T)
            for part, root in ((self.linear, False), (self.root, True))
        ]
        mean = _LINEAR_SHARE * parts[0] + (1 - _LINEAR_SHARE) * parts[1]
        return self.scale.mean + self.scale.sd * mean

    def take(self, fits: NDArray[np.int64] | slice) -> Laws:
        """Some of the fits."""
        scale = Scale(self.scale.mean[fits], self.scale.sd[fits])
        return Laws(scale, self.linear[fits], self.root[fits])

    def curvature(self, weights: Floats, amounts: Floats) -> tuple[float, Floats, Floats]:
        """Value, gradient and Hessian at one mixture of the sum of all fits, each times its amount (``>= 0``)."""
        value, num = float(amounts @ self.scale.mean), len(weights)
        gradient, hessian = np.zeros(num), np.zeros((num, num))
        roots = np.sqrt(np.maximum(weights, 1e-12))
        for part, share in ((self.linear, _LINEAR_SHARE), (self.root, 1 - _LINEAR_SHARE)):
            rates = part[:, 1 : num + 1].copy()
            exponent = rates @ weights
            bend = np.zeros((len(part), num))
            if part.shape[1] > num + 1:
                slopes = part[:, num + 1 :]
                exponent = exponent + slopes @ roots
                rates += slopes / (2 * roots)
                bend = -slopes / (4 * roots**3)
            scaled = share * amounts * self.scale.sd
            heights = scaled * _exp(exponent)
            value += float(scaled @ part[:, 0] + heights.sum())
            gradient += heights @ rates
            hessian += (rates * heights[:, None]).T @ rates + np.diag(heights @ bend)
        return value, gradient, hessian


def fit_laws(weights: Floats, losses: Floats, counts: Floats | None = None) -> Laws:
    """Fit both laws to every column of ``losses`` ``[num_runs, num_fits]``; a loss that is missing (nan) is left out.

    ``counts`` ``[num_runs, num_fits]``: how often each run counts, as in a bootstrap.
    """
    seen = np.isfinite(losses)
    counts = np.where(seen, 1.0 if counts is None else counts, 0.0)
    totals = np.maximum(counts.sum(axis=0), 1e-12)
    filled = _without_wild(np.where(counts > 0, losses, np.nan))
    mean = (counts * filled).sum(axis=0) / totals
    sd = np.sqrt((counts * (filled - mean) ** 2).sum(axis=0) / totals)
    scale = Scale(mean, np.where(sd > 1e-12 * np.maximum(1.0, np.abs(mean)), sd, 1.0))
    start = np.full((losses.shape[1], 0), 0.0)
    return _refit(weights, np.where(seen, losses, 0.0), counts, Laws(scale, start, start))


def _without_wild(losses: Floats) -> Floats:
    """Losses for the scale alone: what is further than five robust standard deviations from the median is moved there; nan is 0."""
    known = np.where(np.isfinite(losses).any(axis=0), losses, 0.0)
    middle = np.nanmedian(known, axis=0)
    reach = 5 * 1.4826 * np.nanmedian(np.abs(known - middle), axis=0)
    reach = np.where(reach > 0, reach, np.inf)
    filled: Floats = np.nan_to_num(np.clip(known, middle - reach, middle + reach))
    return filled


def refit_laws(weights: Floats, losses: Floats, counts: Floats, start: Laws) -> Laws:
    """Fit again from the solution of ``start`` (one a column of ``losses``), which takes few steps: for resamples."""
    return _refit(weights, np.nan_to_num(losses), np.where(np.isfinite(losses), counts, 0.0), start)


def _refit(weights: Floats, losses: Floats, counts: Floats, start: Laws) -> Laws:
    standard = (losses - start.scale.mean) / start.scale.sd
    part = counts / np.maximum(counts.sum(axis=0), 1e-12)
    num_runs = max(1.0, float(counts.sum(axis=0).max()))
    fitted = []
    for root, first in ((False, start.linear), (True, start.root)):
        ridges = _ROOT_RIDGES if root else (_LINEAR_RIDGE, 0.0)
        problem = _Problem(
            _features(weights, root),
            standard,
            part,
            weights.shape[1],
            ridges[0] / num_runs,
            ridges[1] / num_runs,
        )
        fitted.append(problem.best(first))
    return Laws(start.scale, *fitted)


def _features(weights: Floats, root: bool) -> Floats:
    return np.concatenate([weights, np.sqrt(weights)], axis=1) if root else weights


def _exp(exponent: Floats) -> Floats:
    power: Floats = np.exp(np.clip(exponent, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))
    return power


class _Problem:
    """Least squares of one law for a batch of columns; features beyond the sources are roots, with slopes ``<= 0``."""

    def __init__(
        self,
        features: Floats,
        losses: Floats,
        part: Floats,
        num_sources: int,
        ridge: float,
        root_ridge: float,
    ) -> None:
        self.features, self.losses, self.part, self.num_sources = features, losses, part, num_sources
        size = features.shape[1]
        self.products = (features[:, :, None] * features[:, None, :]).reshape(len(features), size * size)
        self.penalty = np.zeros((size + 1, size + 1))
        ours = slice(1, num_sources + 1)  # an amount common to all sources is a factor, and free
        self.penalty[ours, ours] = ridge * (np.eye(num_sources) - 1 / num_sources)
        rest = np.arange(num_sources + 1, size + 1)
        self.penalty[rest, rest] = root_ridge

    def best(self, first: Floats) -> Floats:
        """The best solution from ``first``, or from each of several floors where that is empty."""
        if first.shape[1]:
            return self.solve(first.copy())[0]
        tried = [self.solve(self.started(distance)) for distance in _FLOORS]
        values = np.array([value for _, value in tried])
        choice = values.argmin(axis=0)
        solutions: Floats = np.stack([theta for theta, _ in tried])[choice, np.arange(len(choice))]
        return solutions

    def started(self, distance: float) -> Floats:
        """A linear fit of ``log(loss - floor)``, the floor ``distance`` below the lowest loss."""
        lowest = np.where(self.part > 0, self.losses, np.inf).min(axis=0)
        floor = np.where(np.isfinite(lowest), np.maximum(lowest, -5.0), 0.0) - distance
        above = np.maximum(self.losses - floor, 1e-9)
        heavy = self.part * above**2
        heavy /= np.maximum(heavy.sum(axis=0), 1e-12)
        logs = np.log(above)
        middle = (heavy * logs).sum(axis=0)
        size = self.features.shape[1]
        square = (heavy.T @ self.products).reshape(-1, size, size) + 1e-2 * np.eye(size) / self.num_sources
        right = (heavy * (logs - middle)).T @ self.features
        slopes = np.linalg.solve(square, right[..., None])[..., 0]
        slopes[:, : self.num_sources] += middle[:, None]
        theta = np.concatenate([floor[:, None], slopes], axis=1)
        theta[:, self.num_sources + 1 :] = np.minimum(theta[:, self.num_sources + 1 :], 0.0)
        return theta

    def solve(self, theta: Floats) -> tuple[Floats, Floats]:
        """Levenberg-Marquardt with bounds, each column with its own damping; the solution and its value."""
        damping, active = np.full(len(theta), 1e-2), np.arange(len(theta))
        value, heights, residual = self.evaluated(theta, active)
        for _ in range(_MAX_STEPS):
            step = self.step(theta[active], heights[:, active], residual[:, active], active, damping[active])
            new = theta[active] + np.clip(step, -3, 3)
            new[:, self.num_sources + 1 :] = np.minimum(new[:, self.num_sources + 1 :], 0.0)
            new_value, new_heights, new_residual = self.evaluated(new, active)
            better = new_value < value[active]
            gain = np.where(better, 1 - new_value / np.maximum(value[active], 1e-300), 1.0)
            taken = active[better]
            theta[taken], value[taken] = new[better], new_value[better]
            heights[:, taken], residual[:, taken] = new_heights[:, better], new_residual[:, better]
            damping[active] = np.where(better, damping[active] * 0.3, damping[active] * 6)
            active = active[(gain > 1e-5) & (damping[active] < 1e6) & (value[active] > 1e-14)]
            if not len(active):
                break
        return theta, value

    def evaluated(self, theta: Floats, columns: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
        """Huber loss with ridge ``[b]``, exponentials and residuals ``[num_runs, b]``."""
        heights = _exp(self.features @ theta[:, 1:].T)
        residual = self.losses[:, columns] - theta[:, 0] - heights
        size = np.abs(residual)
        cost = np.where(size < _HUBER, 0.5 * residual**2, _HUBER * (size - 0.5 * _HUBER))
        ridge = 0.5 * ((theta @ self.penalty) * theta).sum(axis=1)
        return (self.part[:, columns] * cost).sum(axis=0) + ridge, heights, residual

    def step(
        self, theta: Floats, heights: Floats, residual: Floats, columns: NDArray[np.int64], damping: Floats
    ) -> Floats:
        """The damped Gauss-Newton step of each column ``[b, 1 + num_features]``."""
        size = self.features.shape[1]
        heavy = self.part[:, columns] * np.minimum(1.0, _HUBER / np.maximum(np.abs(residual), 1e-12))
        slope = heavy * heights
        square = np.empty((len(theta), size + 1, size + 1))
        square[:, 1:, 1:] = ((slope * heights).T @ self.products).reshape(-1, size, size)
        square[:, 0, 1:] = square[:, 1:, 0] = slope.T @ self.features
        square[:, 0, 0] = heavy.sum(axis=0)
        square += self.penalty
        down = np.empty((len(theta), size + 1))
        down[:, 0] = (heavy * residual).sum(axis=0)
        down[:, 1:] = (slope * residual).T @ self.features
        down -= theta @ self.penalty
        fixed = (theta >= 0) & (down > 0)
        fixed[:, : self.num_sources + 1] = False
        down[fixed] = 0.0
        square[fixed[:, :, None] | fixed[:, None, :]] = 0.0
        diagonal = np.arange(size + 1)
        square[:, diagonal, diagonal] = square[:, diagonal, diagonal] * (1 + damping[:, None]) + 1e-9 + fixed
        step: Floats = np.linalg.solve(square, down[..., None])[..., 0]
        return step
