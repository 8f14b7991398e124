"""Axolotl trains two steps from our folder: what reaches the model is what stands in the set, in our order."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.trainers, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("axolotl", reason="needs tests/trainers/requirements-axolotl.txt")

CPU = (
    "--max-steps",
    "2",
    "--micro-batch-size",
    "2",
    "--gradient-accumulation-steps",
    "1",
    "--bf16",
    "false",
    "--optimizer",
    "adamw_torch",
)


@pytest.fixture
def run(make_set, rows, tiny_model, train):
    """``run("sft", "encode.pack=none")`` -> the set's rows, what reached the model, the model's folder."""

    def make(name, *changes, more=()):
        out = make_set(name, "axolotl", *changes)
        model = tiny_model(out)
        seen = train(out / "axolotl", model, "axolotl train ", *CPU, *more)
        assert len(seen) == 2
        return rows(out), seen, model

    return make


def documents(wanted):
    """Ids and labels of every document, in order."""
    for row in wanted:
        start = 0
        for length in row.get("seq_lengths", [len(row["input_ids"])]):
            yield row["input_ids"][start : start + length], row["labels"][start : start + length]
            start += length


@pytest.mark.parametrize("name", ["sft", "pretrain"])
def test_rows_reach_the_model(run, name):
    wanted, seen, _ = run(name, "encode.pack=none")
    for place, row in enumerate(wanted[:4]):
        given, i = seen[place // 2], place % 2
        length = len(row["input_ids"])
        assert given["input_ids"][i, :length].tolist() == row["input_ids"]
        assert given["labels"][i, :length].tolist() == row["labels"]
        assert set(given["labels"][i, length:].tolist()) <= {-100}


@pytest.mark.parametrize("name", ["sft", "pretrain"])
def test_documents_are_packed_again_in_our_order_and_apart(run, alone_equal, name):
    wanted, seen, model = run(name)
    expected = list(documents(wanted))
    packed = []
    for given in seen:
        packed.append([lengths_in_row(given, i, expected) for i in range(2)])
    alone_equal(model, seen[0], packed[0])


def lengths_in_row(given, i, expected):
    """Take the documents of a row from what is expected, until only padding is left; return their lengths."""
    lengths, start = [], 0
    while any(given["labels"][i, start:] != -100):
        ids, labels = expected.pop(0)
        stop = start + len(ids)
        assert given["input_ids"][i, start:stop].tolist() == ids
        assert given["labels"][i, start:stop].tolist() == labels
        assert given["position_ids"][i, start:stop].tolist() == list(range(len(ids)))
        lengths.append(len(ids))
        start = stop
    return lengths


def test_pairs_reach_the_model(run):
    from transformers import AutoTokenizer

    wanted, seen, model = run("preference")
    words = AutoTokenizer.from_pretrained(model)
    for side, place in (("chosen", slice(0, 2)), ("rejected", slice(2, 4))):
        ours = [words.decode(row["prompt_ids"] + row[f"{side}_completion_ids"]) for row in wanted]
        for given in seen:
            for ids, mask in zip(given["input_ids"][place], given["attention_mask"][place], strict=True):
                said = words.decode(ids[mask == 1])
                assert any(said.strip() == text.strip() for text in ours)
