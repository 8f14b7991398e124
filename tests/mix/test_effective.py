from __future__ import annotations

import numpy as np
import pytest

from datamix.mix import effective_cost, effective_shares, row_weights, scaled_rows


def test_repeats_are_worth_less_and_less() -> None:
    assert effective_cost(100, 0.5) == 50
    assert effective_cost(100, 1) == 100
    # The paper: four epochs are nearly fresh data, returns are gone by about sixteen, the limit is U (1 + R*).
    assert effective_cost(100, 4) == pytest.approx(373, abs=1)
    assert effective_cost(100, 1e9) == pytest.approx(1638.8, abs=0.1)
    assert effective_cost(100, 17) - effective_cost(100, 16) < 40


def test_shares_part_widely_between_token_and_example_loss() -> None:
    # 10k domain rows of 40 trained tokens beside 10k general ones of 450.
    rows, loss = (10_000, 10_000), (400_000, 4_500_000)
    assert effective_shares(rows, loss, "example") == (0.5, 0.5)
    assert effective_shares(rows, loss, "token") == pytest.approx((0.082, 0.918), abs=1e-3)


def test_row_weights_turn_one_average_into_the_other() -> None:
    loss = np.array([10, 30, 0, 60], np.int32)
    trained = loss > 0
    # An example-averaging trainer counts each row as 1, a token-averaging one as its tokens.
    as_tokens = row_weights(loss, "example", "token")
    assert as_tokens[trained] / as_tokens[trained].sum() == pytest.approx([0.1, 0.3, 0.6])
    assert as_tokens[trained].mean() == pytest.approx(1)
    as_examples = row_weights(loss, "token", "example") * loss
    assert as_examples[trained] == pytest.approx([100 / 3] * 3)
    assert as_examples.sum() / loss.sum() == pytest.approx(1)
    assert row_weights(loss, "token", "token").tolist() == [1, 1, 0, 1]


def test_a_small_version_keeps_a_part_of_a_larger_one() -> None:
    small, large = (scaled_rows(1000, s, 42, "medical") for s in (0.01, 0.1))
    assert (len(small), len(large)) == (10, 100)
    assert set(small) <= set(large)
    assert (np.diff(large) > 0).all()
    assert scaled_rows(1000, 1.0, 42, "medical").tolist() == list(range(1000))
    assert len(scaled_rows(7, 0.01, 42, "medical")) == 1
    assert scaled_rows(1000, 0.1, 42, "law").tolist() != large.tolist()
    with pytest.raises(ValueError, match="scale"):
        scaled_rows(10, 1.5, 42, "medical")
