from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st

from datamix.core.errors import RecipeError
from datamix.mix import Available, MixStage, Quota, ladder, quantity, solve

examples: Any = settings(max_examples=200, deadline=None)

GENERAL = Available("general", 20_000, 9_000_000, 1, 4000, 3)
MEDICAL = Available("medical", 1_000, 300_000, 1, 900, 9)
BOTH = [GENERAL, MEDICAL]


def one(*weights: float) -> list[MixStage]:
    return [MixStage("all", 1.0, None, weights)]


def settle(
    size: int | Mapping[str, float] | None, on_short: str = "error", weights: tuple[float, ...] = (7, 3)
) -> Quota:
    return solve(BOTH, one(*weights), "loss_tokens", size, on_short)


def parsed(size: str) -> int:
    return round(float(size.rstrip("KMB")) * {"K": 1e3, "M": 1e6, "B": 1e9}.get(size[-1], 1))


def test_without_a_size_the_scarce_source_binds() -> None:
    quota = settle(None)
    assert (quota.total, quota.binding) == (1_000_000, ("medical",))
    assert quota.taken == pytest.approx((700_000, 300_000))
    assert quota.epochs == pytest.approx((7 / 90, 1))
    assert quota.shares == pytest.approx((0.7, 0.3))
    assert quota.unit == "loss_tokens"


def test_a_size_within_the_caps_is_taken_as_it_is() -> None:
    quota = settle(400_000)
    assert (quota.total, quota.binding, quota.notes) == (400_000, (), ())


def test_a_size_in_epochs_of_a_source() -> None:
    assert settle({"medical": 0.5}).total == 500_000
    assert settle({"medical": 1, "general": 0.05}).total == round(450_000 / 0.7)


def test_sizes_of_stages_make_the_total() -> None:
    stages = [MixStage("a", None, 300_000, (1, 0)), MixStage("b", None, 100_000, (0, 1))]
    quota = solve(BOTH, stages, "tokens", None, "error")
    assert quota.total == 400_000
    assert quota.taken == pytest.approx((300_000, 100_000))


def test_sizes_and_shares_mix() -> None:
    stages = [MixStage("a", 0.75, None, (1, 1)), MixStage("b", None, 100_000, (1, 0))]
    quota = solve(BOTH, stages, "tokens", None, "error")
    assert quota.total == 400_000
    assert [s.length for s in quota.stages] == pytest.approx([300_000, 100_000])


def test_a_ramp_counts_with_its_mean() -> None:
    stages = [MixStage("a", 0.5, None, (1, 0)), MixStage("b", 0.5, None, (1, 0), (0, 1))]
    quota = solve(BOTH, stages, "tokens", None, "error")
    assert quota.shares == pytest.approx((0.75, 0.25))
    assert quota.total == 1_200_000
    assert quota.stages[1].shares == pytest.approx((0.5, 0.5))


def test_a_source_that_comes_back_keeps_a_row_of_room_below_its_cap() -> None:
    stages = [
        MixStage("a", 0.25, None, (1, 1)),
        MixStage("b", 0.5, None, (1, 0)),
        MixStage("c", 0.25, None, (1, 1)),
    ]
    quota = solve(BOTH, stages, "tokens", None, "error")
    assert quota.taken[1] == pytest.approx(300_000 - 2_000, abs=1)  # half of the largest row of all


def test_both_cures_of_a_size_too_large_work() -> None:
    with pytest.raises(RecipeError) as caught:
        settle(2_345_678)
    text = str(caught.value)
    assert caught.value.exit_code == 2
    epochs = float(re.search(r"max_epochs of medical to (\S+?),", text)[1])  # type: ignore[index]
    size = re.search(r"lower size to (\S+?),", text)[1]  # type: ignore[index]
    weight = float(re.search(r"its weight to (\S+?);", text)[1])  # type: ignore[index]
    more = Available("medical", 1000, 300_000, epochs, 900, 9)
    assert solve([GENERAL, more], one(7, 3), "tokens", 2_345_678, "error").total == 2_345_678
    assert epochs == 3
    assert settle(parsed(size)).total == 1_000_000
    assert settle(2_345_678, weights=(7, weight)).total == 2_345_678
    assert settle(2_345_678, weights=(7, weight * 0.99)).total == 2_345_678
    with pytest.raises(RecipeError):
        settle(2_345_678, weights=(7, weight * 1.01))


def test_a_size_in_epochs_is_not_cured_by_a_weight() -> None:
    with pytest.raises(RecipeError, match=r"give size as a number of at most 1M; or let"):
        settle({"medical": 2})


def test_two_short_sources_are_both_named() -> None:
    with pytest.raises(
        RecipeError, match=r"max_epochs of general to 3 and max_epochs of medical to 3, or lower size to"
    ):
        settle(2_800_000 * 8, weights=(0.96, 0.04))


@given(st.integers(2, 6), st.integers(0, 2**32), st.integers(1, 3), st.floats(1.01, 20))
@examples
def test_every_cure_that_is_offered_works(
    num_sources: int, seed: int, num_stages: int, factor: float
) -> None:
    rng = np.random.default_rng(seed)
    sources = [
        Available(f"s{i}", 100, int(rng.integers(10_000, 10**7)), int(rng.integers(1, 4)), 50, 1)
        for i in range(num_sources)
    ]
    shares = rng.dirichlet(np.ones(num_stages))
    stages = [
        MixStage(f"stage{i}", float(x), None, tuple(rng.random(num_sources) + 0.05))
        for i, x in enumerate(shares)
    ]
    most = solve(sources, stages, "tokens", None, "error").total
    asked = int(most * factor) + 2
    with pytest.raises(RecipeError) as caught:
        solve(sources, stages, "tokens", asked, "error")
    text = str(caught.value)
    cured = list(sources)
    for name, epochs in re.findall(r"max_epochs of (\w+) to (\d+)", text):
        i = int(name[1:])
        cured[i] = Available(name, 100, sources[i].cost, float(epochs), 50, 1)
    assert solve(cured, stages, "tokens", asked, "error").total == asked
    size = re.search(r"lower size to ([\d.KMB]+?)[,;]", text)[1]  # type: ignore[index]
    assert solve(sources, stages, "tokens", parsed(size), "error").total <= most
    lacking = re.findall(r"max_epochs of (\w+) to", text)
    weights = re.findall(r"([\d.e-]+) in stage(\d)", text)
    if num_stages == 1 and "its weight to" in text:
        weights = [(re.search(r"its weight to ([\d.e-]+?)[,;]", text)[1], "0")]  # type: ignore[index]
    if weights:
        lower = [list(s.weights) for s in stages]
        for value, stage in weights:
            lower[int(stage)][int(lacking[0][1:])] = float(value)
        changed = [MixStage(s.name, s.share, None, tuple(w)) for s, w in zip(stages, lower, strict=True)]
        assert solve(sources, changed, "tokens", asked, "error").total == asked


@given(st.integers(1, 6), st.integers(0, 2**32), st.booleans(), st.floats(0.2, 3))
@examples
def test_shrink_and_reweigh_keep_every_cap(num_sources: int, seed: int, ramp: bool, factor: float) -> None:
    rng = np.random.default_rng(seed)
    sources = [
        Available(f"s{i}", 100, int(rng.integers(10_000, 10**7)), 1, 50, 1) for i in range(num_sources)
    ]
    weights = [tuple(rng.random(num_sources) + 0.05) for _ in range(3)]
    stages = [
        MixStage("a", 0.3, None, weights[0]),
        MixStage("b", 0.7, None, weights[1], weights[2] if ramp else None),
    ]
    most = solve(sources, stages, "tokens", None, "error").total
    asked = max(1000, int(most * factor))
    shrunk = solve(sources, stages, "tokens", asked, "shrink")
    assert shrunk.total == min(asked, most)
    assert all(t <= s.cost * (1 + 1e-9) + 1e-3 for t, s in zip(shrunk.taken, sources, strict=True))
    try:
        reweighed = solve(sources, stages, "tokens", asked, "reweigh")
    except RecipeError as error:
        assert "reweigh cannot help" in str(error)  # noqa: PT017
        event("no weights reach the size")
        reject()
    assert reweighed.total == asked
    assert sum(reweighed.taken) == pytest.approx(asked)
    assert all(t <= s.cost * (1 + 1e-9) + 1e-3 for t, s in zip(reweighed.taken, sources, strict=True))
    if asked <= most:
        assert reweighed.stages == shrunk.stages


def test_reweigh_gives_what_is_short_to_the_others_in_proportion() -> None:
    sources = [Available(n, 100, c, 1, 50, 1) for n, c in (("a", 10_000), ("b", 50_000), ("c", 50_000))]
    quota = solve(sources, one(2, 1, 1), "tokens", 40_000, "reweigh")
    assert quota.taken == pytest.approx((10_000, 15_000, 15_000))


def test_a_source_too_small_for_one_row_names_the_smallest_size_that_works() -> None:
    sources = [Available("big", 1000, 1000, 1, 1, 1), Available("rare", 10, 10, 1, 1, 1)]
    with pytest.raises(RecipeError, match=r"source rare .* The smallest size that works is 50;"):
        solve(sources, one(0.98, 0.02), "records", 49, "error")
    assert solve(sources, one(0.98, 0.02), "records", 50, "error").taken[1] == pytest.approx(1)


def test_a_smallest_size_beyond_the_caps_says_what_else_it_takes() -> None:
    sources = [Available("big", 20, 20, 1, 1, 1), Available("rare", 10, 10, 1, 1, 1)]
    with pytest.raises(RecipeError, match=r"smallest size that works is 50 with max_epochs of big at 3;"):
        solve(sources, one(0.98, 0.02), "records", None, "error")
    sources[0] = Available("big", 20, 20, 3, 1, 1)
    assert solve(sources, one(0.98, 0.02), "records", 50, "error").total == 50


@pytest.mark.parametrize(
    ("stages", "size", "message"),
    [
        ([MixStage("a", 1.0, None, (1, 0))], None, "no stage gives source medical a weight"),
        (
            [MixStage("a", 0.5, None, (1, 1)), MixStage("b", 0.4, None, (1, 1))],
            None,
            "sum to 1, they sum to 0.9",
        ),
        ([MixStage("a", 1.0, None, (1, -1))], None, "at least 0"),
        (
            [MixStage("a", 0.5, None, (1, 1)), MixStage("b", 0.5, None, (0, 0))],
            None,
            "b: no source has a weight",
        ),
        ([MixStage("a", 1.0, 5, (1, 1))], None, "either share or size"),
        ([MixStage("a", 0.0, None, (1, 1)), MixStage("b", 1.0, None, (1, 1))], None, "above 0"),
        ([MixStage("a", None, 500, (1, 1))], 600, "leave one of them out"),
        ([MixStage("a", 1.0, None, (1, 1))], {"law": 2}, "there is no source law"),
        ([MixStage("a", 1.0, None, (1, 1))], {"medical": 0}, "above 0"),
        ([MixStage("a", 1.0, None, (1, 1))], 0, "at least 1"),
        ([MixStage("a", 1.0, None, (1, 1)), MixStage("b", None, 5, (1, 1))], None, "leave no room"),
    ],
)
def test_stages_that_do_not_add_up_are_told(
    stages: list[MixStage], size: int | Mapping[str, float] | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        solve(BOTH, stages, "tokens", size, "error")


def test_an_empty_source_is_told() -> None:
    with pytest.raises(RecipeError, match="source medical has no row"):
        solve([GENERAL, Available("medical", 0, 0, 1, 0, 0)], one(1, 1), "tokens", None, "error")


def test_shares_written_with_few_digits_still_fill_the_total() -> None:
    stages = [MixStage(str(i), 0.333, None, (1, 1)) for i in range(3)]
    quota = solve(BOTH, stages, "tokens", 300_000, "error")
    assert sum(s.length for s in quota.stages) == pytest.approx(300_000)


def test_repeats_beyond_four_epochs_are_noted_not_refused() -> None:
    sources = [GENERAL, Available("medical", 1000, 300_000, 10, 900, 9)]
    quota = solve(sources, one(7, 3), "tokens", 8_000_000, "error")
    assert any("medical is used 8 times" in n and "worth about 6.62" in n for n in quota.notes)


def test_unimax_is_offered_where_a_size_needs_repeats() -> None:
    sources = [GENERAL, Available("medical", 1000, 300_000, 3, 900, 9)]
    notes = solve(sources, one(7, 3), "tokens", 2_000_000, "error").notes
    assert any("unimax" in n and "55% general, 45% medical, with at most 3 epochs" in n for n in notes)
    assert solve(sources, one(7, 3), "tokens", 900_000, "error").notes == ()


def test_scarcity_is_noted_with_a_ladder() -> None:
    found = settle(None).scarcity
    assert found is not None
    assert (found.scarce, found.ladder) == (("medical",), ladder(BOTH, one(7, 3)))
    rungs = ladder(BOTH, one(7, 3))
    assert [(r.max_epochs, r.total) for r in rungs] == [
        (1, 10**6),
        (2, 2 * 10**6),
        (4, 4 * 10**6),
        (8, 8 * 10**6),
    ]
    assert rungs[3].epochs == pytest.approx((5.6 / 9, 8))
    assert rungs[3].unused == pytest.approx((1 - 5.6 / 9, 0))


def test_the_members_of_a_group_bind_together_and_the_ladder_raises_all_of_them() -> None:
    sources = [
        Available("zh", 100, 10_000, 1, 900, 9),
        Available("en", 300, 30_000, 1, 900, 9),
        Available("medical", 9000, 900_000, 1, 900, 9),
    ]
    stages = one(0.7 * 10_000 / 40_000, 0.7 * 30_000 / 40_000, 0.3)
    quota = solve(sources, stages, "tokens", None, "error")
    assert quota.binding == ("zh", "en")
    assert quota.scarcity is not None
    assert quota.scarcity.scarce == ("zh", "en")
    assert [r.total for r in quota.scarcity.ladder] == pytest.approx(
        [57_142, 114_285, 228_571, 457_142], abs=1
    )
    assert quota.scarcity.ladder[2].epochs == pytest.approx((4, 4, 0.3 * 228_571 / 900_000), rel=1e-4)


@pytest.mark.parametrize(
    ("x", "down", "up"),
    [
        (0.4, "0", "1"),
        (9999, "9999", "9999"),
        (12_345, "12.3K", "12.4K"),
        (999_999, "999K", "1M"),
        (5e7, "50M", "50M"),
        (1.23456e12, "1230B", "1240B"),
    ],
)
def test_quantities_are_written_as_a_recipe_takes_them(x: float, down: str, up: str) -> None:
    assert (quantity(x), quantity(x, up=True)) == (down, up)
