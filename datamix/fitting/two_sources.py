"""What runs of two sources or groups tell, from four runs on: every loss as a falling curve of one share.

With so few runs no single law is known to hold. So many shapes are tried: exponentials and powers of either share (the log-linear law,
and the power law of D-CPT, arXiv 2406.01375), from six shares on also one of each side together. Each is fitted by least squares and
counts by its marginal likelihood; curves are drawn from what is left, and everything that is told (optimum, interval, critical share)
is told of the draws. Whether there is an effect at all is a permutation test of the best fit. Cost: milliseconds a target.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from datamix.fitting.laws import Floats
from datamix.fitting.statistics import folds, spearman
from datamix.fitting.swarm import Interval, target_of

NUM_DRAWS = 400
GRID = np.linspace(0.0, 1.0, 501)  # shares of the first side at which curves are drawn
MIN_RUNS = 4
_MIN_FOR_BOTH = 6  # distinct shares, from which on curves may fall from both sides
_RATES = (0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_POWERS = tuple((e, p) for e in (0.003, 0.01, 0.03, 0.1, 0.3) for p in (0.25, 0.5, 1.0, 2.0))
_FLOOR = 0.01  # of the spread of a loss: what no run is exact to
_PRIOR_NOISE, _PRIOR_FREEDOM = (
    0.02,
    2.0,
)  # what is expected of the noise before any residual: of the spread, and how firmly
_NUM_PERMUTATIONS = 400


@dataclass(frozen=True)
class TwoSources:
    """Curves of every target over the share of the first side."""

    share: Floats  # [num_runs]
    losses: Floats  # [num_runs, num_targets]
    amounts: Floats  # [num_targets]
    curves: Floats  # [NUM_DRAWS, num_targets, len(GRID)]
    noise: Floats  # [NUM_DRAWS, num_targets]: standard deviation of one run
    unseen: Floats  # [num_runs, num_targets]
    power: Floats  # [num_targets]: how much of the likelihood powers have, the rest are exponentials
    p_value: float

    @cached_property
    def observed(self) -> Floats:
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

    @cached_property
    def target(self) -> Floats:
        """The target's curve in every draw, ``[NUM_DRAWS, len(GRID)]``."""
        summed: Floats = np.tensordot(self.curves, self.amounts, axes=([1], [0]))
        return summed

    @cached_property
    def _run_noise(self) -> Floats:
        """What one run adds to the target in every draw, twice: ``[2, NUM_DRAWS]``."""
        sd = np.sqrt((self.noise**2) @ (self.amounts**2))
        drawn: Floats = np.random.default_rng(1).normal(size=(2, NUM_DRAWS)) * sd
        return drawn

    def predict(self, mixtures: Floats) -> Floats:
        """Losses ``[num_mixtures, num_targets]`` by the mean of the curves."""
        mean = self.curves.mean(axis=0)
        return np.stack([np.interp(mixtures[:, 0], GRID, line) for line in mean], axis=1)

    def expected(self, mixture: Floats) -> Interval:
        return _interval(self._at(mixture) + self._run_noise[0], float(self._at(mixture).mean()))

    def gain(self, mixture: Floats, over: Floats) -> Interval:
        """By how much the target of ``mixture`` is lower than that of ``over``: above 0 is better."""
        gain = self._at(over) - self._at(mixture)
        return _interval(gain + self._run_noise[0] - self._run_noise[1], float(gain.mean()))

    def _at(self, mixture: Floats) -> Floats:
        return np.array([np.interp(mixture[0], GRID, line) for line in self.target])

    def allowed(self, target: int, limit: float) -> NDArray[np.bool_]:
        """Where each drawn curve of one target is at most ``limit``: ``[NUM_DRAWS, len(GRID)]``."""
        return np.asarray(self.curves[:, target] <= limit)


def _interval(draws: Floats, mean: float) -> Interval:
    low, high = np.quantile(draws, (0.05, 0.95))
    return Interval(mean, min(float(low), mean), max(float(high), mean))


def fit_two_sources(
    share: Floats, losses: Floats, amounts: Floats, mixtures: NDArray[np.int64]
) -> TwoSources:
    """Draw curves for every target; again without each run (or fold) for the predictions of runs not seen."""
    rng = np.random.default_rng(0)
    num_targets = losses.shape[1]
    curves = np.empty((NUM_DRAWS, num_targets, len(GRID)))
    noise, power = np.zeros((NUM_DRAWS, num_targets)), np.zeros(num_targets)
    unseen = np.full(losses.shape, np.nan)
    fold = folds(mixtures, 40)
    for target in range(num_targets):
        known = np.isfinite(losses[:, target])
        fit = _Posterior.of(share[known], losses[known, target])
        curves[:, target], noise[:, target] = fit.draw(rng)
        power[target] = fit.power_share
        for number in range(int(fold.max()) + 1):
            out, rest = known & (fold == number), known & (fold != number)
            if rest.sum() >= 2:
                unseen[out, target] = _Posterior.of(share[rest], losses[rest, target]).mean(share[out])
    p_value = _permutation_p(share, losses[:, amounts > 0])
    return TwoSources(share, losses, amounts, curves, noise, unseen, power, p_value)


def _shapes(share: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Falling shapes from 1 to 0, of the share and of the other side's: ``[num_shapes, len(share)]``; which are powers."""

    def falling(x: Floats) -> list[Floats]:
        lines = [(np.exp(-k * x) - np.exp(-k)) / (1 - np.exp(-k)) for k in _RATES]
        for e, p in _POWERS:
            top, bottom = e**-p, (1 + e) ** -p
            lines.append(((x + e) ** -p - bottom) / (top - bottom))
        return lines

    is_power = np.array(([False] * len(_RATES) + [True] * len(_POWERS)) * 2)
    return np.array(falling(share) + falling(1 - share)), is_power


@dataclass(frozen=True)
class _Posterior:
    """Least-squares fits of every shape to one loss, and how likely each is."""

    shapes: NDArray[np.int64]  # [num_fits, 2]; the second is -1 where a fit has one shape
    coefficients: Floats  # [num_fits, 3]: floor, and the height of each shape, >= 0
    covariance: Floats  # [num_fits, 3, 3], for a residual variance of 1
    squares: Floats  # [num_fits]
    likelihood: Floats  # [num_fits], sums to 1
    freedom: Floats  # [num_fits]

    @classmethod
    def of(cls, share: Floats, loss: Floats) -> _Posterior:
        lines, is_power = _shapes(share)
        half = len(lines) // 2
        pairs = [(i, -1) for i in range(len(lines))]
        if len(np.unique(np.round(share, 6))) >= _MIN_FOR_BOTH:
            some = range(0, half, 2)
            pairs += [(i, half + j) for i in some for j in some]
        shapes = np.array(pairs)
        n = len(share)
        design = np.zeros((len(shapes), n, 3))
        design[:, :, 0] = 1.0
        design[:, :, 1] = lines[shapes[:, 0]]
        design[:, :, 2] = np.where(shapes[:, 1:] >= 0, lines[shapes[:, 1]], 0.0)
        expected = _PRIOR_FREEDOM * (_PRIOR_NOISE * float(loss.std()) + 1e-12) ** 2
        coefficients, inverse, squares, used = _least_squares(design, loss)
        freedom = np.maximum(n - used, 0.0) + _PRIOR_FREEDOM
        prior = np.where(shapes[:, 1] < 0, 1 / len(lines), 1 / max(1, len(shapes) - len(lines)))
        prior *= np.where(
            is_power[shapes[:, 0]], half / is_power[:half].sum(), half / (~is_power[:half]).sum()
        )
        logs = (
            np.log(prior) - 0.5 * freedom * np.log(squares + expected) - 0.5 * (used - 1) * np.log(max(n, 2))
        )
        likelihood = np.exp(logs - logs.max())
        return cls(shapes, coefficients, inverse, squares + expected, likelihood / likelihood.sum(), freedom)

    @property
    def power_share(self) -> float:
        return float(self.likelihood[_shapes(np.zeros(1))[1][self.shapes[:, 0]]].sum())

    def draw(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Curves over GRID and the noise of a run in each: ``[NUM_DRAWS, len(GRID)]``, ``[NUM_DRAWS]``."""
        chosen = rng.choice(len(self.likelihood), NUM_DRAWS, p=self.likelihood)
        sd = np.sqrt(self.squares[chosen] / rng.chisquare(self.freedom[chosen]))
        root = np.linalg.cholesky(self.covariance[chosen] + 1e-12 * np.eye(3))
        steps = np.einsum("dij,dj->di", root, rng.normal(size=(NUM_DRAWS, 3))) * sd[:, None]
        coefficients = self.coefficients[chosen] + steps
        heights = np.maximum(coefficients[:, 1:], 0.0) * (self.coefficients[chosen, 1:] > 0)
        lines = np.concatenate([_shapes(GRID)[0], np.zeros((1, len(GRID)))])
        curves = coefficients[:, :1] + heights[:, :1] * lines[self.shapes[chosen, 0]]
        return curves + heights[:, 1:] * lines[self.shapes[chosen, 1]], sd

    def mean(self, share: Floats) -> Floats:
        lines = np.concatenate([_shapes(share)[0], np.zeros((1, len(share)))])
        c = self.coefficients
        curves = c[:, :1] + c[:, 1:2] * lines[self.shapes[:, 0]] + c[:, 2:] * lines[self.shapes[:, 1]]
        expected: Floats = self.likelihood @ curves
        return expected


def _least_squares(design: Floats, loss: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Fits with heights of at least 0: coefficients, inverse of the normal matrix, squares, number of coefficients used.

    A height that comes out negative is taken away and the fit made again.
    """
    size = design.shape[2]
    used: NDArray[np.bool_] = np.asarray((np.abs(design) > 0).any(axis=1))
    used[:, 1:] &= len(loss) > 1  # one run has a level and no slope
    for _ in range(size):
        masked = design * used[:, None, :]
        normal = np.einsum("fni,fnj->fij", masked, masked)
        normal[:, range(size), range(size)] += np.where(used, 1e-9, 1.0)
        inverse = np.linalg.inv(normal)
        coefficients = np.einsum("fij,fnj,n->fi", inverse, masked, loss) * used
        negative = (coefficients < 0) & used
        negative[:, 0] = False
        if not negative.any():
            break
        used &= ~negative
    residual = loss - np.einsum("fni,fi->fn", masked, coefficients)
    inverse = inverse * used[:, :, None] * used[:, None, :]
    return coefficients, inverse, (residual**2).sum(axis=1), used.sum(axis=1).astype(float)


def _permutation_p(share: Floats, losses: Floats) -> float:
    """How often runs whose losses were shuffled fit as well as these: the best one-sided shape of each loss, logs summed."""
    known = np.isfinite(losses).all(axis=1)
    x, y = share[known], losses[known]
    y = y[:, y.std(axis=0) > 0]
    if len(x) < MIN_RUNS or not y.shape[1]:
        return 1.0
    rng = np.random.default_rng(0)
    orders = np.array([rng.permutation(len(x)) for _ in range(_NUM_PERMUTATIONS)])
    orders = np.concatenate([np.arange(len(x))[None], np.unique(orders, axis=0)])
    lines, _ = _shapes(x)
    lines = lines - lines.mean(axis=1, keepdims=True)
    sizes = (lines**2).sum(axis=1)
    z = (y - y.mean(axis=0)) / y.std(axis=0) / np.sqrt(len(x))
    along = np.einsum("sn,pnt->pst", lines, z[orders]) / np.sqrt(np.maximum(sizes, 1e-12))[None, :, None]
    explained = np.where(sizes[None, :, None] > 1e-12, np.maximum(along, 0.0) ** 2, 0.0).max(axis=1)
    statistic = np.log(np.maximum(1 - explained, 0.0) + _FLOOR**2).sum(axis=1)
    return float((statistic[1:] <= statistic[0] + 1e-9).mean()) if len(statistic) > 1 else 1.0
