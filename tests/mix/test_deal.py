from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamix.mix import Quota, StagePlan, batch_places, deal, rank_places, schedule


@given(st.integers(0, 300), st.integers(1, 64), st.integers(0, 5))
def test_dealing_permutes_inside_each_window_only(num_rows: int, batch: int, seed: int) -> None:
    dealt = deal(num_rows, batch, seed)
    for first in range(0, num_rows, batch):
        window = dealt[first : first + batch]
        assert sorted(window.tolist()) == list(range(first, min(first + batch, num_rows)))
        assert batch_places(num_rows, batch, seed, first // batch).tolist() == window.tolist()


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.5, 0.25, 0.25), (0.7, 0.2, 0.1)])
def test_no_rank_sees_one_source_only_at_any_world_size(weights: tuple[float, ...]) -> None:
    per_rank, batches = 8, 64
    costs = [np.ones(64 * per_rank * batches, np.int32) for _ in weights]
    total = 64 * per_rank * batches
    quota = Quota(
        total,
        (StagePlan("all", total, weights),),
        tuple(w * total for w in weights),
        (1.0,) * len(weights),
        None,
    )
    source = schedule(costs, quota, [1] * len(weights), 1, [f"s{i}" for i in range(len(weights))]).source
    for world_size in range(1, 65):
        batch = per_rank * world_size
        seen = np.zeros((world_size, len(weights)))
        for step in range(batches):
            places = batch_places(total, batch, 3, step)
            for rank in range(world_size):
                mine = source[rank_places(places, rank, world_size)]
                seen[rank] += np.bincount(mine, minlength=len(weights))
        # 512 rows a rank: six standard deviations of independent draws. A locked rank is off by half or more.
        limit = 6 * np.sqrt(0.25 / (per_rank * batches))
        assert np.abs(seen / (per_rank * batches) - np.array(weights)).max() < limit
        assert (seen.sum(axis=0) == np.bincount(source[: batch * batches], minlength=len(weights))).all()


def test_the_parts_of_all_ranks_are_the_batch_at_any_world_size() -> None:
    places = batch_places(1000, 48, 5, 3)
    for world_size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 48):
        parts = [rank_places(places, r, world_size) for r in range(world_size)]
        assert np.concatenate(parts).tolist() == places.tolist()


def test_uneven_and_unknown_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 5"):
        rank_places(batch_places(1000, 48, 5, 3), 0, 5)
    with pytest.raises(ValueError, match="rank 4"):
        rank_places(batch_places(1000, 48, 5, 3), 4, 4)
