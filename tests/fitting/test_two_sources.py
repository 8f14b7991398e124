"""Two sources: curves from few runs, and whether shuffled losses would have fitted as well."""

from __future__ import annotations

import numpy as np
import pytest

from datamix.fitting.two_sources import GRID, fit_two_sources


def curves(share: np.ndarray, rate: float = 6.0) -> np.ndarray:
    """A general loss that falls with its share, and a domain loss that rises."""
    return np.stack([2 + 0.5 * np.exp(-rate * share), 1 + 0.3 * np.exp(-3 * (1 - share))], axis=1)


def test_intervals_of_the_critical_share_hold_the_truth_from_four_runs() -> None:
    inside = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        share, rate = np.array([0.0, 0.1, 0.3, 0.6]), rng.uniform(2, 12)
        losses = curves(share, rate) + 0.002 * rng.normal(size=(4, 2))
        critical = rng.uniform(0.05, 0.5)
        model = fit_two_sources(share, losses, np.array([0.5, 0.5]), np.arange(4))
        allowed = model.allowed(0, float(curves(np.array([critical]), rate)[0, 0]))
        found = np.where(allowed.any(axis=1), GRID[allowed.argmax(axis=1)], 1.0)
        low, high = np.quantile(found, (0.05, 0.95))
        inside += low - 0.002 <= critical <= high + 0.002
    assert inside >= 34  # 90 % intervals


@pytest.mark.parametrize("num_runs", [5, 6, 10])
def test_shuffled_losses_rarely_look_like_a_law(num_runs: int) -> None:
    share, passed = np.linspace(0, 0.9, num_runs), 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        shuffled = rng.permutation(curves(share) + 0.01 * rng.normal(size=(num_runs, 2)))
        passed += fit_two_sources(share, shuffled, np.array([0.5, 0.5]), np.arange(num_runs)).p_value <= 0.025
    assert passed <= 3
    assert fit_two_sources(share, curves(share), np.array([0.5, 0.5]), np.arange(num_runs)).p_value <= 0.025


def test_a_target_with_a_lowest_point_inside_is_found() -> None:
    share = np.linspace(0, 1, 9)
    losses = 2 + 0.1 * (share + 0.05) ** -0.5 + 0.1 * (1.05 - share) ** -0.5
    model = fit_two_sources(share, losses[:, None], np.ones(1), np.arange(9))
    assert GRID[model.target.mean(axis=0).argmin()] == pytest.approx(0.5, abs=0.05)
