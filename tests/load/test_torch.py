"""Torch batches: resume at any step, world size and number of workers; equal to the manifest's counts."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from datamix.core.errors import DataError
from datamix.load import open_set

torch = pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")


def firsts(batches) -> list[list[int]]:
    return [(batch["input_ids"][:, 0] - 1000).tolist() for batch in batches]


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_neither_order_nor_rows(make_set, form, num_workers):
    ts = open_set(make_set(40, form=form))
    batches = list(ts.torch(3, num_workers=num_workers, pad_to_multiple_of=4))
    assert [len(b["input_ids"]) for b in batches] == [3] * 13 + [1]
    assert firsts(batches) == firsts(ts.torch(3))
    assert sorted(chain(*firsts(batches))) == list(range(40))
    assert {t.dtype for b in batches for t in b.values()} == {torch.int64}


def test_a_batch_holds_what_numpy_batches_hold(make_set):
    ts = open_set(make_set(12, packed=True))
    got = next(iter(ts.torch(12)))
    want = next(ts.batches(12))
    order = np.argsort(got["input_ids"][:, 0].numpy())
    for name, array in want.items():
        assert np.array_equal(got[name].numpy()[order], array)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_resumes_at_another_world_size_with_exactly_the_rows_left(make_set, num_workers):
    ts = open_set(make_set(40, form="arrow"))
    seen, states = [], []
    for rank in range(2):
        loader = ts.torch(3, rank=rank, world_size=2, num_workers=num_workers)
        for step, batch in enumerate(loader):
            seen += firsts([batch])[0]
            if step == 2:
                break
        states.append(loader.state_dict())
    assert states[0] == states[1]
    assert sorted(seen) == list(range(18))
    for rank in range(4):
        loader = ts.torch(2, rank=rank, world_size=4, num_workers=num_workers)
        loader.load_state_dict(states[0])
        seen += chain(*firsts(loader))
    assert sorted(seen) == list(range(40))


def test_the_state_after_the_last_batch_leaves_nothing_and_a_new_pass_begins_anew(make_set):
    ts = open_set(make_set(8))
    loader = ts.torch(4)
    once = firsts(loader)
    assert firsts(loader) == once
    again = ts.torch(4)
    again.load_state_dict(loader.state_dict())
    assert firsts(again) == []
    assert len(loader) == 2


def test_rows_that_ranks_cannot_share_are_left_out_with_a_word(make_set):
    ts = open_set(make_set(10))
    with pytest.warns(UserWarning, match="last 2 rows cannot be dealt to 4 ranks"):
        list(ts.torch(2, rank=3, world_size=4))


def test_a_state_of_another_set_or_seed_is_refused(make_set):
    loader = open_set(make_set(8)).torch(4)
    state = loader.state_dict()
    with pytest.raises(DataError, match="another set"):
        loader.load_state_dict(state | {"content_sha256": "cd" * 32, "key": "ef" * 32})
    with pytest.raises(DataError, match=r"torch\(\.\.\., seed=7\)"):
        loader.load_state_dict(state | {"seed": 7})


def test_a_state_of_a_virtual_set_names_it_by_its_key(make_set):
    virtual, other = open_set(make_set(8)), open_set(make_set(8, name="other"))
    virtual.manifest = {**virtual.manifest, "content_sha256": None, "key": "12" * 32}
    other.manifest = {**other.manifest, "content_sha256": None, "key": "34" * 32}
    state = virtual.torch(4).state_dict()
    with pytest.raises(DataError, match="another set"):
        other.torch(4).load_state_dict(state)
    written = open_set(make_set(8, name="written"))
    written.manifest = {**written.manifest, "key": "12" * 32}  # exported since
    written.torch(4).load_state_dict(state)


@pytest.mark.parametrize(("batch_size", "rank", "world_size"), [(0, 0, 1), (1, 2, 2), (1, -1, 2)])
def test_ranks_outside_the_world_are_refused(make_set, batch_size, rank, world_size):
    with pytest.raises(ValueError, match="rank"):
        open_set(make_set(8)).torch(batch_size, rank=rank, world_size=world_size)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_a_stateful_dataloader_resumes_the_stream_with_workers(make_set):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    ts = open_set(make_set(40))
    want = firsts(ts.torch(3))

    def fresh():
        return stateful.StatefulDataLoader(ts.torch(3).dataset, batch_size=None, num_workers=2)

    loader = fresh()
    rows = iter(loader)
    head = firsts(next(rows) for _ in range(5))
    state = loader.state_dict()
    del rows
    resumed = fresh()
    resumed.load_state_dict(state)
    assert head + firsts(resumed) == want
