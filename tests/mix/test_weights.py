from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamix.core.errors import RecipeError
from datamix.mix import MixGroup, replay, source_weights, stage_weights, vary
from datamix.mix.weights import temperature, unimax

NAMES = ["web", "wiki", "medical"]
SIZES = [900.0, 100.0, 50.0]
GENERAL = MixGroup(("web", "wiki"), 0.7)


def shares(weights: tuple[float, ...]) -> Any:
    return pytest.approx([w / sum(weights) for w in weights])


def test_nothing_given_is_proportional() -> None:
    assert source_weights(NAMES, {}, {}, None, SIZES) == (900, 100, 50)


def test_given_weights_stand_as_they_are() -> None:
    assert source_weights(NAMES, {"web": 5, "wiki": 2, "medical": 3}, {}, None, SIZES) == (5, 2, 3)


def test_a_group_shares_its_weight_by_size() -> None:
    weights = source_weights(NAMES, {"medical": 0.3}, {"general": GENERAL}, None, SIZES)
    assert weights == pytest.approx((0.63, 0.07, 0.3))


def test_a_group_shares_its_weight_by_its_sources_weights() -> None:
    group = MixGroup(("web", "wiki"), 0.7, "weights", {"web": 1, "wiki": 3})
    given_weights = {"web": 1.0, "wiki": 3.0, "medical": 0.3}
    assert source_weights(NAMES, given_weights, {"general": group}, None, SIZES) == pytest.approx(
        (0.175, 0.525, 0.3)
    )


def test_stages_name_sources_or_groups_and_leave_the_rest_absent() -> None:
    groups = {"general": GENERAL}
    assert stage_weights(NAMES, {"general": 0.2, "medical": 0.8}, groups, SIZES) == pytest.approx(
        (0.18, 0.02, 0.8)
    )
    assert stage_weights(NAMES, {"medical": 1}, groups, SIZES) == (0, 0, 1)


def test_rules() -> None:
    assert source_weights(NAMES, {}, {}, "proportional", SIZES) == (900, 100, 50)
    assert temperature([100, 1], 2) == shares((10, 1)) or temperature([100, 1], 2) == pytest.approx((1, 0.1))
    assert source_weights(NAMES, {}, {}, {"temperature": 1}, SIZES) == pytest.approx((1, 1 / 9, 1 / 18))
    assert source_weights(NAMES, {}, {}, "unimax", SIZES, [900, 100, 200], 600) == pytest.approx(
        (300, 100, 200)
    )


def test_temperature_of_huge_sizes_does_not_overflow() -> None:
    assert temperature([1e15, 1e12], 0.01) == pytest.approx((1, 0))


@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=20), st.floats(0.01, 2))
def test_unimax_meets_the_budget_and_treats_the_uncapped_alike(caps: list[float], part: float) -> None:
    budget = part * sum(caps)
    amounts = unimax(caps, budget)
    assert sum(amounts) == pytest.approx(min(budget, sum(caps)))
    assert all(a <= c * (1 + 1e-12) for a, c in zip(amounts, caps, strict=True))
    free = [a for a, c in zip(amounts, caps, strict=True) if a < c * (1 - 1e-9)]
    assert not free or min(free) == pytest.approx(max(amounts))


def test_replay_is_a_share_of_the_finished_mixture() -> None:
    assert replay(NAMES, "medical", 0.05, SIZES, {}) == pytest.approx((0.855, 0.095, 0.05))
    weights = replay(NAMES, "general", 0.05, SIZES, {"general": GENERAL})
    assert weights == pytest.approx((0.045, 0.005, 0.95))


def test_a_rung_of_a_sweep_moves_one_share_and_keeps_the_other_proportions() -> None:
    assert vary(NAMES, (6, 1, 3), ["web", "wiki"], 0.5) == pytest.approx((3 / 7, 0.5 / 7, 0.5))
    assert vary(NAMES, (6, 1, 3), ["web", "wiki"], 0) == pytest.approx((0, 0, 1))
    assert vary(NAMES, (6, 1, 3), ["medical"], 1) == pytest.approx((0, 0, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: source_weights(NAMES, {"web": 1}, {}, None, SIZES),
            "sources.wiki: has no weight while web has one",
        ),
        (
            lambda: source_weights(
                NAMES, {"medical": 1}, {"general": MixGroup(("web", "wiki"))}, None, SIZES
            ),
            "or give its group general one",
        ),
        (lambda: source_weights(NAMES, {"web": 1}, {}, "unimax", SIZES), "cannot both hold"),
        (lambda: source_weights(NAMES, {}, {}, "uniform", SIZES), "no rule uniform; rules are proportional"),
        (lambda: source_weights(NAMES, {}, {}, {"temperature": 0}, SIZES), "above 0"),
        (
            lambda: source_weights(NAMES, {"web": 1, "medical": 1}, {"general": GENERAL}, None, SIZES),
            "itself and through",
        ),
        (lambda: stage_weights(NAMES, {"law": 1}, {}, SIZES), "law is neither a source nor a group"),
        (lambda: stage_weights(NAMES, {"web": -1}, {}, SIZES), "at least 0"),
        (lambda: stage_weights(NAMES, {"g": 1}, {"g": MixGroup((), 1)}, SIZES), "no source belongs to it"),
        (
            lambda: stage_weights(NAMES, {"g": 1}, {"g": MixGroup(("web",), 1, "weights")}, SIZES),
            "web has none",
        ),
        (lambda: replay(NAMES, "law", 0.1, SIZES, {}), "law is neither"),
        (lambda: replay(NAMES, "web", 5, SIZES, {}), "between 0 and 1"),
        (lambda: replay(["web"], "web", 0.1, [1.0], {}), "all there is"),
        (lambda: vary(NAMES, (6, 1, 3), ["medical"], 1.5), "between 0 and 1"),
        (lambda: vary(NAMES, (0, 0, 3), ["medical"], 0.5), "weighs nothing"),
    ],
)
def test_weights_that_make_no_mixture_are_told(call: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        call()
