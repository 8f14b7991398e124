"""Laws of the loss: what they recover, how they rank runs they have not seen, and their exact optimum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datamix.fitting.laws import fit_laws, refit_laws
from datamix.fitting.optimum import Bound, Infeasible, Problem, optimum
from datamix.fitting.runs import read_runs
from datamix.fitting.statistics import exceeds_noise, folds, ranks, repeat_noise, spearman, t_quantile

SWARMS = Path(__file__).parents[2].parent / "shared" / "data" / "mixtures"
shared = pytest.mark.skipif(not SWARMS.is_dir(), reason="the runs beside the checkout are missing")


def mixtures(num_runs: int, num_sources: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(num_sources), num_runs)


def test_a_log_linear_loss_is_recovered() -> None:
    weights = mixtures(40, 4)
    truth = 2 + np.exp(weights @ np.array([0.5, -2.0, 0.1, -0.4]))
    laws = fit_laws(weights, truth[:, None])
    fresh = mixtures(100, 4, 1)
    error = laws.predict(fresh)[:, 0] - 2 - np.exp(fresh @ np.array([0.5, -2.0, 0.1, -0.4]))
    assert np.sqrt(np.mean(error**2)) < 0.1 * truth.std()


def test_one_wild_loss_does_not_bend_the_law() -> None:
    weights = mixtures(40, 3)
    truth = 2 + np.exp(weights @ np.array([0.5, -2.0, 0.1]))
    wild = truth.copy()
    wild[3] += 20 * truth.std()
    fresh = mixtures(100, 3, 1)
    right = fit_laws(weights, truth[:, None]).predict(fresh)[:, 0]
    assert spearman(fit_laws(weights, wild[:, None]).predict(fresh)[:, 0], right) > 0.85  # type: ignore[operator]


def test_a_missing_loss_is_a_run_left_out() -> None:
    weights = mixtures(20, 3)
    losses = 2 + np.exp(weights @ np.array([0.5, -2.0, 0.1]))[:, None]
    gap = losses.copy()
    gap[5] = np.nan
    without = fit_laws(np.delete(weights, 5, axis=0), np.delete(losses, 5, axis=0))
    fresh = mixtures(10, 3, 1)
    assert fit_laws(weights, gap).predict(fresh) == pytest.approx(without.predict(fresh), abs=2e-3)


def test_a_bootstrap_from_the_solution_is_the_fit_with_repeated_runs() -> None:
    weights = mixtures(30, 3)
    losses = 2 + np.exp(weights @ np.array([0.5, -2.0, 0.1]))[:, None]
    losses += 0.02 * np.random.default_rng(2).normal(size=losses.shape)
    draw = np.random.default_rng(3).integers(0, 30, 30)
    counts = np.bincount(draw, minlength=30).astype(float)[:, None]
    refit = refit_laws(weights, losses, counts, fit_laws(weights, losses))
    fresh = mixtures(50, 3, 1)
    again = fit_laws(weights[draw], losses[draw]).predict(fresh)
    assert refit.predict(fresh) == pytest.approx(again, abs=0.1 * losses.std())


def test_the_optimum_is_no_worse_than_any_mixture_that_is_allowed() -> None:
    weights = mixtures(40, 4)
    losses = np.stack([2 + np.exp(weights @ np.array([0.5, -2.0, 0.1, -0.4])), 1 + weights[:, 1]], axis=1)
    laws = fit_laws(weights, losses)
    caps, prior = np.array([1.0, 0.6, 0.5, 1.0]), np.full(4, 0.25)
    bound = Bound(np.array([0.0, 1.0]), 1.4)
    problem = Problem(np.array([1.0, 0.0]), prior, 0.02, caps, (bound,), float(losses[:, 0].std()))

    def goal(w: np.ndarray) -> np.ndarray:
        return laws.predict(w)[:, 0] + 0.02 * (w * np.log(np.maximum(w, 1e-12) / prior)).sum(axis=1)

    best = optimum(laws, problem)
    assert best.sum() == pytest.approx(1)
    assert (best <= caps).all()
    assert laws.predict(best[None])[0, 1] <= 1.4
    tried = mixtures(100_000, 4, 5)
    tried = np.concatenate([tried, 0.9 * best + 0.1 * tried])
    allowed = tried[(tried <= caps).all(axis=1) & (laws.predict(tried)[:, 1] <= 1.4)]
    assert len(allowed) > 1000
    assert goal(best[None])[0] <= goal(allowed).min() + 1e-7


def test_a_bound_that_no_mixture_keeps_is_an_error() -> None:
    weights = mixtures(40, 3)
    laws = fit_laws(weights, (1 + weights[:, 1])[:, None])
    bound = Bound(np.ones(1), 0.5)
    with pytest.raises(Infeasible):
        optimum(laws, Problem(np.ones(1), np.full(3, 1 / 3), 0.1, np.ones(3), (bound,)))


def test_statistics_agree_with_definitions() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0])).tolist() == [1.5, 0.0, 1.5]
    assert spearman(np.arange(5.0), np.arange(5.0) ** 3) == pytest.approx(1)
    assert spearman(np.arange(5.0), np.ones(5)) is None
    groups = np.array([0, 0, 1, 2, 2, 3])
    fold = folds(groups, 3)
    assert fold[0] == fold[1]
    assert fold[3] == fold[4]
    assert repeat_noise(np.array([1.0, 3.0, 9.0, 5.0, 5.0, 0.0]), groups) == (pytest.approx(1.0), 2)
    assert repeat_noise(np.array([1.0, 1.0]), np.array([0, 0])) == (None, 0)
    assert exceeds_noise(1.0, 20, 0.2, 5)
    assert not exceeds_noise(1.0, 20, 0.8, 5)
    assert t_quantile(10) == pytest.approx(1.812, abs=0.01)


@shared
def test_51_runs_rank_mixtures_of_their_own_and_of_other_sizes() -> None:
    every = read_runs(SWARMS / "regmix_1m_train.csv")
    target = every.targets.index("pile_cc")
    found = []
    for seed in range(5):
        some = np.random.default_rng(seed).choice(len(every.names), 51, replace=False)
        laws = fit_laws(every.weights[some], every.losses[some][:, [target]])
        found.append(
            [
                spearman(laws.predict(other.weights)[:, 0], other.losses[:, target])
                for other in (read_runs(SWARMS / f"regmix_{name}.csv") for name in ("1m_test", "60m", "1b"))
            ]
        )
    held_out, at_60m, at_1b = np.mean(found, axis=0)
    assert held_out >= 0.935
    assert at_60m >= 0.925
    assert at_1b >= 0.96
