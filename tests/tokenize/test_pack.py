from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamix.core.contracts import Bins
from datamix.tokenize import pack

examples: Callable[[Any], Any] = settings(max_examples=300, deadline=None)
short_lengths = st.lists(st.integers(1, 40), max_size=200)


def rows_of(bins: Bins) -> list[list[tuple[int, int, int]]]:
    pieces = list(zip(bins.record.tolist(), bins.start.tolist(), bins.length.tolist(), strict=True))
    ends = bins.offsets.tolist()
    return [pieces[a:b] for a, b in pairwise(ends)]


def whole(lengths: list[int], max_length: int) -> Bins:
    n = len(lengths)
    return pack.best_fit(np.arange(n), np.zeros(n, np.int32), np.array(lengths, np.int32), max_length)


def covered(rows: list[list[tuple[int, int, int]]], lengths: list[int]) -> bool:
    """Every token of every record stands in exactly one piece."""
    pieces = sorted(piece for row in rows for piece in row)
    at = dict.fromkeys(range(len(lengths)), 0)
    for record, start, length in pieces:
        if start != at[record] or length < 1:
            return False
        at[record] += length
    return list(at.values()) == lengths


def test_a_row_a_record() -> None:
    bins = pack.one_each(np.array([5, 7, 9], np.int32), np.array([2, 0], np.int64))
    assert rows_of(bins) == [[(2, 0, 9)], [(0, 0, 5)]]
    assert bins.offsets.dtype == np.int64
    assert bins.length.dtype == np.int32


def test_concat_cuts_at_the_block_and_keeps_the_last_short_one() -> None:
    bins = pack.concat(np.array([5, 4, 0, 13], np.int32), np.array([1, 0, 3, 2], np.int64), 6)
    assert rows_of(bins) == [
        [(1, 0, 4), (0, 0, 2)],
        [(0, 2, 3), (3, 0, 3)],
        [(3, 3, 6)],
        [(3, 9, 4)],
    ]


@given(short_lengths, st.integers(1, 50), st.randoms(use_true_random=False))
@examples
def test_concat_fills_every_block_but_the_last(lengths: list[int], max_length: int, random: Any) -> None:
    order = list(range(len(lengths)))
    random.shuffle(order)
    rows = rows_of(pack.concat(np.array(lengths, np.int32), np.array(order, np.int64), max_length))
    assert covered(rows, lengths)
    assert [r for row in rows for r, start, _ in row if start == 0] == order
    sizes = [sum(n for _, _, n in row) for row in rows]
    assert all(size == max_length for size in sizes[:-1])
    assert not sizes or 0 < sizes[-1] <= max_length


def test_concat_of_nothing_is_no_row() -> None:
    assert pack.concat(np.empty(0, np.int32), np.empty(0, np.int64), 8).num_rows == 0


def test_best_fit_prefers_the_row_it_fills() -> None:
    # 6 opens a row with 2 free, 5 one with 3 free: 3 goes to the second, 2 to the first.
    assert rows_of(whole([2, 3, 5, 6], 8)) == [[(0, 0, 2), (3, 0, 6)], [(1, 0, 3), (2, 0, 5)]]


def test_best_fit_of_nothing_is_no_row() -> None:
    assert whole([], 8).num_rows == 0


@pytest.mark.parametrize("lengths", [[9], [0], [3, -1]])
def test_best_fit_refuses_what_no_row_can_hold(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="split or drop"):
        whole(lengths, 8)


def naive_best_fit(lengths: list[int], max_length: int) -> list[int]:
    """Free space of each row, the textbook way."""
    free: list[int] = []
    for n in sorted(lengths, reverse=True):
        fits = [i for i, f in enumerate(free) if f >= n]
        if fits:
            free[min(fits, key=lambda i: free[i])] -= n
        else:
            free.append(max_length - n)
    return sorted(free)


@given(short_lengths, st.sampled_from([40, 63, 64, 65, 128, 5000, 300_000]))
@examples
def test_best_fit_leaves_the_free_space_of_the_textbook_rule(lengths: list[int], max_length: int) -> None:
    rows = rows_of(whole(lengths, max_length))
    assert covered(rows, lengths)
    free = sorted(max_length - sum(n for _, _, n in row) for row in rows)
    assert free == naive_best_fit(lengths, max_length)


@given(short_lengths)
@examples
def test_best_fit_keeps_pieces_and_rows_in_input_order(lengths: list[int]) -> None:
    rows = rows_of(whole(lengths, 64))
    records = [[record for record, _, _ in row] for row in rows]
    assert all(row == sorted(row) for row in records)
    firsts = [row[0] for row in records]
    assert firsts == sorted(firsts)


def test_best_fit_fills_long_tailed_lengths_almost_fully() -> None:
    lengths = np.clip(np.random.default_rng(1).lognormal(5.5, 1.2, 50_000), 1, 4096).astype(np.int32)
    bins = pack.best_fit(np.arange(50_000), np.zeros(50_000, np.int32), lengths, 4096)
    assert lengths.sum() / (bins.num_rows * 4096) > 0.995


def split(
    lengths: list[int], max_length: int, cuts: list[list[int]] | None = None
) -> list[tuple[int, int, int]]:
    csr = None
    if cuts is not None:
        flat = np.array([p for row in cuts for p in row], np.int32)
        csr = np.cumsum([0, *(len(row) for row in cuts)]), flat
    pieces = pack.split_long(np.array(lengths, np.int32), max_length, csr)
    return list(zip(*(column.tolist() for column in pieces), strict=True))


def test_a_long_record_is_cut_at_the_block_where_nothing_better_is_allowed() -> None:
    assert split([4, 20, 0], 8) == [(0, 0, 4), (1, 0, 8), (1, 8, 8), (1, 16, 4)]


def test_a_cut_is_made_at_the_last_allowed_place_in_the_second_half() -> None:
    assert split([20], 8, [[2, 5, 7, 9, 14]]) == [(0, 0, 7), (0, 7, 7), (0, 14, 6)]
    assert split([12], 8, [[4]]) == [
        (0, 0, 8),
        (0, 8, 4),
    ]  # 4 ends the first half: the block would be half empty


def test_the_last_piece_keeps_two_tokens() -> None:
    assert split([9], 8) == [(0, 0, 7), (0, 7, 2)]
    assert split([9], 8, [[8]]) == [(0, 0, 7), (0, 7, 2)]
    assert split([9], 8, [[6, 8]]) == [(0, 0, 6), (0, 6, 3)]


@given(
    st.lists(st.integers(0, 200), max_size=20),
    st.integers(3, 40),
    st.lists(st.integers(1, 199), max_size=60),
)
@examples
def test_pieces_fit_cover_the_record_and_have_something_to_predict(
    lengths: list[int], max_length: int, places: list[int]
) -> None:
    allowed = [sorted({p for p in places if p < n}) for n in lengths if n > max_length]
    pieces = split(lengths, max_length, allowed)
    assert covered([pieces], lengths)
    assert all(n <= max_length for _, _, n in pieces)
    split_records = {r for r, start, _ in pieces if start}
    assert all(n >= 2 for r, start, n in pieces if r in split_records and start + n == lengths[r])
    inner = [(start + n, n) for r, start, n in pieces if start + n < lengths[r]]
    assert all(end in places or n >= max_length - 1 for end, n in inner)


def test_cuts_must_be_given_for_every_long_record() -> None:
    with pytest.raises(ValueError, match="1 records, 2 are too long"):
        split([20, 20], 8, [[5]])


@given(
    st.lists(st.integers(1, 200), max_size=12), st.integers(3, 40), st.integers(0, 2**32), st.integers(1, 30)
)
@examples
def test_chosen_cuts_are_the_best_of_all_that_are_allowed(
    lengths: list[int], max_length: int, seed: int, spread: int
) -> None:
    begin = np.cumsum([0, *lengths])
    tokens = np.random.default_rng(seed).integers(0, spread, int(begin[-1])).astype(np.int32)
    ends = np.arange(spread) == 0
    long = np.flatnonzero(np.array(lengths) > max_length)
    allowed = [(np.flatnonzero(ends[tokens[begin[i] : begin[i + 1]]]) + 1).tolist() for i in long]
    cuts = pack.room_for_cuts(np.array(lengths, np.int32)[long], max_length)
    places = np.arange(len(long))[::-1].copy()
    pack.choose_cuts(
        cuts, places, tokens, (begin[long][::-1].copy(), begin[long + 1][::-1].copy()), ends, max_length
    )
    pieces = pack.split_long(np.array(lengths, np.int32), max_length, cuts)
    assert list(zip(*(column.tolist() for column in pieces), strict=True)) == split(
        lengths, max_length, allowed
    )
