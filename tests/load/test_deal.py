"""Dealing rows to ranks: every row once, whatever the world size; no rank sees one source only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamix.load.batches import Deal


def consumed(deal: Deal, start: int, steps: int) -> list[int]:
    rows: list[int] = []
    for step in range(steps):
        for rank in range(deal.world_size):
            rows += deal.places(start + step * deal.window, rank).tolist()
    return rows


@given(
    num_rows=st.integers(0, 300),
    batch=st.integers(1, 9),
    world=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_every_row_is_dealt_once_and_a_window_never_leaks(num_rows, batch, world, seed):
    deal = Deal(num_rows, batch, world, seed)
    steps = deal.num_steps(0)
    for step in range(steps):
        start = step * deal.window
        stop = min(start + deal.window, num_rows)
        shares = [deal.places(start, rank) for rank in range(world)]
        assert sorted(np.concatenate(shares).tolist()) == list(range(start, stop))
        sizes = [len(share) for share in shares]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        if stop - start == deal.window:
            assert set(sizes) == {batch}
    left = num_rows - min(num_rows, steps * deal.window)
    assert left < world


@given(first=st.integers(1, 8), batch=st.integers(1, 6), second=st.integers(1, 8), steps=st.integers(0, 10))
@settings(max_examples=100, deadline=None)
def test_another_world_size_goes_on_with_exactly_the_rows_that_were_left(first, batch, second, steps):
    before, after = Deal(500, batch, first, 7), Deal(500, batch, second, 7)
    done = steps * before.window
    seen = consumed(before, 0, steps) + consumed(after, done, after.num_steps(done))
    assert len(seen) == len(set(seen))
    assert set(range(500)) - set(seen) == set(range(500 - (500 - len(seen)), 500))
    assert 500 - len(seen) < second


def test_equal_global_batches_are_the_same_rows_at_every_world_size():
    for world in (1, 2, 4, 8, 16):
        deal = Deal(640, 64 // world, world, 3)
        rows = [np.concatenate([deal.places(start, rank) for rank in range(world)]) for start in (0, 64, 576)]
        want = [Deal(640, 64, 1, 3).places(start, 0) for start in (0, 64, 576)]
        assert all(np.array_equal(a, b) for a, b in zip(rows, want, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8, 16, 32, 64])
def test_no_rank_is_locked_to_one_source_of_a_regular_interleave(world):
    sources = np.arange(64 * 64 * 8) % 2  # general, medical, general, medical, ...
    deal = Deal(len(sources), 64 // world if world <= 8 else 8, world, 11)
    for rank in range(world):
        mine = [deal.places(step * deal.window, rank) for step in range(deal.num_steps(0))]
        share = sources[np.concatenate(mine)].mean()
        assert abs(share - 0.5) < 0.12


@given(
    num_rows=st.integers(0, 900),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 5),
    start=st.integers(0, 400),
    stride=st.integers(1, 3),
)
def test_a_walk_deals_what_each_step_alone_would(num_rows, batch_size, world_size, start, stride):
    deal = Deal(num_rows, batch_size, world_size, 7)
    steps = range(stride - 1, deal.num_steps(start), stride)
    for rank in {0, world_size - 1}:
        walked = [places for part in deal.walk(start, steps, rank) for places in part.tolist()]
        assert walked == [deal.places(start + step * deal.window, rank).tolist() for step in steps]
