"""Rows by number, slices, sources, numpy batches, and what is refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from datamix.core.errors import DataError
from datamix.load import open_set
from datamix.load.stores import ArrowStore

FORMS = ("parquet", "arrow")


def first_tokens(rows) -> list[int]:
    return [int(row["input_ids"][0]) - 1000 for row in rows]


@pytest.mark.parametrize("form", FORMS)
def test_a_set_is_a_sequence_of_rows_in_training_order(make_set, form):
    ts = open_set(make_set(40, form=form))
    assert len(ts) == 40
    assert first_tokens(ts) == list(range(40))
    assert first_tokens([ts[0], ts[13], ts[-1]]) == [0, 13, 39]
    assert first_tokens(ts[5:19]) == list(range(5, 19))
    assert first_tokens(ts[30:2:-9]) == [30, 21, 12, 3]
    assert ts[7:7] == [] == ts[9:3]
    assert [ts.source_of(i) for i in (0, 1, 39)] == ["general", "医学", "医学"]
    assert ts[3]["input_ids"].dtype == np.int32
    assert ts[3]["records"][0]["record"] == 3
    with pytest.raises(IndexError):
        ts[40]
    with pytest.raises(IndexError):
        ts.source_of(-41)


def test_arrow_rows_are_views_of_the_mapped_file(make_set):
    row = open_set(make_set(form="arrow"))[5]["input_ids"]
    assert not row.flags.owndata
    assert not row.flags.writeable


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_padded_batches_hold_the_rows_and_ignore_the_padding(make_set, form, packed):
    ts = open_set(make_set(20, packed=packed, form=form))
    seen = 0
    for batch in ts.batches(6, pad_to_multiple_of=8):
        assert set(batch) == {"input_ids", "labels", "position_ids" if packed else "attention_mask"}
        assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
        assert batch["input_ids"].shape[1] % 8 == 0
        for i in range(len(batch["input_ids"])):
            row = ts[seen]
            length = len(row["input_ids"])
            for name, array in batch.items():
                assert array[i, :length].tolist() == row[name].tolist()
            assert set(batch["labels"][i, length:].tolist()) <= {-100}
            assert set(batch["input_ids"][i, length:].tolist()) <= {0}
            if not packed:
                assert not batch["attention_mask"][i, length:].any()
            elif length < batch["input_ids"].shape[1]:
                assert batch["position_ids"][i, length] == 0  # the padding is a document of its own
            seen += 1
    assert seen == 20


@pytest.mark.parametrize("packed", [False, True])
def test_joined_batches_keep_documents_apart(make_set, packed):
    ts = open_set(make_set(5, packed=packed))
    (batch,) = ts.batches(5, packed=True, pad_to_multiple_of=64)
    ids = [int(t) for row in ts for t in row["input_ids"]]
    docs = [piece["length"] for row in ts for piece in row["records"]]
    assert batch["input_ids"][0, : len(ids)].tolist() == ids
    starts = np.flatnonzero(batch["position_ids"][0] == 0)
    assert starts.tolist() == [0, *np.cumsum(docs).tolist()]
    assert set(batch["labels"][0, starts].tolist()) == {-100}
    assert batch["input_ids"].shape == batch["labels"].shape == (1, 64 * -(-len(ids) // 64))


def test_batches_can_begin_anywhere(make_set):
    ts = open_set(make_set(10))
    (last,) = ts.batches(4, start=8)
    assert (last["input_ids"][:, 0] - 1000).tolist() == [8, 9]


def test_a_set_whose_build_did_not_finish_is_refused_with_the_cure(make_set, tmp_path):
    folder = make_set()
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"datamix build.*again"):
        open_set(folder)
    with pytest.raises(DataError, match="is not there"):
        open_set(tmp_path / "nowhere")


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_file_is_told_by_name(make_set, form):
    folder = make_set(form=form)
    gone = next(folder.rglob(f"00002.{form}"))
    gone.unlink()
    with pytest.raises(DataError, match=gone.name):
        list(open_set(folder))


def test_a_parquet_file_of_another_length_is_refused(make_set):
    folder = make_set(14)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["outputs"][1]["rows"] = 8
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="says 8 rows, the file holds 7"):
        list(open_set(folder))


def test_a_set_without_rows_of_a_split_says_which_it_has(make_set):
    with pytest.raises(DataError, match="splits that have some: train"):
        open_set(make_set(), split="validation/general")


def test_prompt_sets_are_read_and_their_batches_refused(make_set):
    ts = open_set(make_set(9, kind="prompt"))
    assert ts[4]["prompt"] == [{"role": "user", "content": "问题 4"}]
    assert ts[4]["reference"] is None
    with pytest.raises(DataError, match="datasets"):
        next(ts.batches(2))


@pytest.mark.parametrize("form", FORMS)
def test_a_store_travels_to_another_process(make_set, form):
    ts = open_set(make_set(30, form=form))
    copy = pickle.loads(pickle.dumps(ts.rows))
    assert copy.table(["source"], 11, 25).equals(ts.rows.table(["source"], 11, 25))
    assert isinstance(copy, ArrowStore) == (form == "arrow")


@pytest.mark.parametrize("form", FORMS)
def test_datasets_sees_the_same_rows_in_the_same_order(make_set, form):
    ts = open_set(make_set(20, packed=True, form=form))
    rows = list(ts.datasets())
    assert [row["input_ids"] for row in rows] == [row["input_ids"].tolist() for row in ts]
    assert [row["source"] for row in rows] == [ts.source_of(i) for i in range(20)]
