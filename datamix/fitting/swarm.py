"""What runs of three or more sources tell: laws, how well they rank runs they have not seen, and differences with intervals.

Honesty comes from predictions out of fold: their residuals, with the spread between bootstrap refits, give every difference of two
mixtures an interval, widened until it holds for 90 % of the pairs of runs. Cost: 10 folds and 20 bootstraps of every target, in one batch
each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from datamix.fitting.laws import Floats, Laws, fit_laws, refit_laws
from datamix.fitting.statistics import folds, spearman, t_quantile

NUM_BOOTSTRAPS = 20
_NUM_FOLDS = 10


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its 90 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Swarm:
    """Laws of every target of some runs, and the refits that measure them. ``amounts`` ``[num_targets]``: the target's weights."""

    weights: Floats  # [num_runs, num_sources]
    losses: Floats  # [num_runs, num_targets]
    amounts: Floats
    laws: Laws
    refits: Laws  # [NUM_BOOTSTRAPS * num_targets], a bootstrap after the other
    unseen: Floats  # [num_runs, num_targets]: predictions by laws that did not see the run

    @cached_property
    def observed(self) -> Floats:
        """The target of each run, nan where a loss is missing."""
        return target_of(self.losses, self.amounts)

    @cached_property
    def unseen_target(self) -> Floats:
        return target_of(self.unseen, self.amounts)

    @cached_property
    def spearman_cv(self) -> float | None:
        return spearman(self.unseen_target, self.observed)

    @cached_property
    def rmse_cv(self) -> float | None:
        residual = self.observed - self.unseen_target
        known = residual[np.isfinite(residual)]
        return float(np.sqrt(np.mean(known**2))) if len(known) else None

    def predict(self, mixtures: Floats) -> Floats:
        """Losses ``[num_mixtures, num_targets]``."""
        return self.laws.predict(mixtures)

    def refit(self, number: int) -> Laws:
        """The laws of one bootstrap."""
        size = len(self.amounts)
        return self.refits.take(slice(number * size, (number + 1) * size))

    def target_refits(self, mixtures: Floats) -> Floats:
        """The target by every bootstrap, ``[num_mixtures, NUM_BOOTSTRAPS]``."""
        shaped = self.refits.predict(mixtures).reshape(len(mixtures), NUM_BOOTSTRAPS, len(self.amounts))
        summed: Floats = shaped @ self.amounts
        return summed

    def expected(self, mixture: Floats) -> Interval:
        """The target of one mixture, trained once."""
        mean = float(target_of(self.predict(mixture[None]), self.amounts)[0])
        half = self._width * float(np.sqrt(self._variance(mixture[None])[0]))
        return Interval(mean, mean - half, mean + half)

    def gain(self, mixture: Floats, over: Floats) -> Interval:
        """By how much the target of ``mixture`` is lower than that of ``over``: above 0 is better."""
        pair = np.stack([over, mixture])
        value = target_of(self.predict(pair), self.amounts)
        mean = float(value[0] - value[1])
        half = self._width * float(np.sqrt(self._variance(pair).sum()))
        return Interval(mean, mean - half, mean + half)

    @cached_property
    def _noise_variance(self) -> float:
        """What is left of the squared residuals when the bootstraps' own spread is taken out; at least half of them."""
        error = (self.rmse_cv or 0.0) ** 2
        refits = float(self.target_refits(self.weights).var(axis=1).mean())
        return max(error - refits, error / 2)

    def _variance(self, mixtures: Floats) -> Floats:
        """Squared standard error of the target of each mixture, one run's noise included."""
        refits: Floats = self.target_refits(mixtures).var(axis=1) * NUM_BOOTSTRAPS / (NUM_BOOTSTRAPS - 1)
        return refits + self._noise_variance

    @cached_property
    def _width(self) -> float:
        """How many standard errors hold 90 % of the pairs of runs, and no fewer than Student's t."""
        residual = self.observed - self.unseen_target
        known = np.isfinite(residual)
        error = residual[known]
        least = t_quantile(len(error) - 2)
        if len(error) < 4:
            return least
        variance = self._variance(self.weights[known])
        i, j = np.triu_indices(len(error), 1)
        scaled = np.abs(error[i] - error[j]) / np.sqrt(variance[i] + variance[j] + 1e-300)
        return max(least, float(np.quantile(scaled, 0.9)))


def target_of(losses: Floats, amounts: Floats) -> Floats:
    """The weighed sum of losses ``[num_runs]``, nan where one that counts is missing."""
    used = np.flatnonzero(amounts)
    total: Floats = losses[:, used] @ amounts[used]
    return total


def fit_swarm(
    weights: Floats, losses: Floats, amounts: Floats, mixtures: NDArray[np.int64], seed: int = 0
) -> Swarm:
    """Fit the laws of every target, again without each fold, and again on each bootstrap."""
    laws, size = fit_laws(weights, losses), losses.shape[1]
    fold = folds(mixtures, _NUM_FOLDS, seed)
    num_folds = int(fold.max()) + 1
    unseen = np.full(losses.shape, np.nan)
    if num_folds > 1:
        left = (fold[:, None] != np.arange(num_folds)[None]).astype(float)
        fitted = fit_laws(weights, np.tile(losses, num_folds), np.repeat(left, size, axis=1))
        every = fitted.predict(weights).reshape(len(weights), num_folds, size)
        unseen = every[np.arange(len(weights)), fold]
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(weights), (NUM_BOOTSTRAPS, len(weights)))
    counts = np.stack([np.bincount(draw, minlength=len(weights)) for draw in draws], axis=1).astype(float)
    columns = np.tile(np.arange(size), NUM_BOOTSTRAPS)
    refits = refit_laws(weights, losses[:, columns], np.repeat(counts, size, axis=1), laws.take(columns))
    return Swarm(weights, losses, amounts, laws, refits, unseen)
