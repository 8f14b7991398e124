from __future__ import annotations

import numpy as np

from datamix.core.hashing import permutation, salt
from datamix.mix import caps, epoch_order


def test_an_epoch_is_a_permutation_that_hangs_on_seed_name_and_number() -> None:
    orders = [epoch_order(500, *key) for key in ((1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1))]
    assert all(sorted(o.tolist()) == list(range(500)) for o in orders)
    assert len({tuple(o.tolist()) for o in orders}) == 4
    assert epoch_order(500, 1, "a", 0).tolist() == orders[0].tolist()
    assert orders[0].dtype == np.int32


def test_an_epoch_is_the_permutation_of_its_seed_at_any_size() -> None:
    for num_rows in (0, 1, 2, (1 << 20) - 1, (1 << 20) + 1):
        expected = permutation(num_rows, salt(1, "order", "a", 0))
        assert np.array_equal(epoch_order(num_rows, 1, "a", 0), expected)


def test_the_order_is_the_same_on_every_machine() -> None:
    assert epoch_order(8, 42, "medical", 0).tolist() == [3, 5, 0, 4, 2, 7, 6, 1]
    assert epoch_order(8, 42, "医疗", 1).tolist() == [4, 6, 0, 3, 1, 5, 7, 2]


def test_caps_are_exact_for_parts_of_an_epoch() -> None:
    cost = np.array([5, 1, 7, 3], np.int32)
    order = epoch_order(4, 9, "s", 2)
    assert caps([cost], [2.5], 9, ["s"]) == (2 * 16 + int(cost[order[:2]].sum()),)
    assert caps([cost], [3], 9, ["s"]) == (48,)
