from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import sft_batch, stored, text_batch, words

from datamix.core.errors import RecipeError
from datamix.core.records import texts
from datamix.dedup import ContaminationSpec, DedupeSpec, find, index_items, overlap

LONG = "What is the capital city of the large country called France in western Europe today?"
CHINESE = "糖尿病患者应该如何控制饮食才能保持血糖长期稳定？"


def matched(items, records, spec=None):
    found = find(index_items([pa.array(items, pa.string())], spec or ContaminationSpec()), pa.array(records))
    rows = zip(
        found.records.tolist(),
        found.items.tolist(),
        found.shares.tolist(),
        found.spans.to_pylist(),
        strict=True,
    )
    return {record: (item, share, span) for record, item, share, span in rows}


def test_an_item_inside_a_record_is_named_with_the_span_as_it_stands_there():
    found = matched([LONG, CHINESE], [f"Q: {LONG.upper()} A: Paris", "nothing", f"请问{CHINESE}谢谢"])
    assert found == {0: (0, 1.0, LONG.upper()[:-1]), 2: (1, 1.0, CHINESE[:-1])}


def test_half_an_item_is_enough_for_the_rule_of_tulu_and_less_is_not():
    spec = ContaminationSpec(ngram=8)
    item = " ".join(f"w{i}" for i in range(40))
    half, less = " ".join(f"w{i}" for i in range(20)), " ".join(f"w{i}" for i in range(19))
    assert matched([item], [f"x {half} y", f"x {less} y"], spec) == {0: (0, 0.5, half)}
    assert matched([item], [less], replace(spec, min_overlap=0.4)) == {0: (0, np.float32(19 / 40), less)}


def test_short_items_must_stand_whole_and_very_short_ones_alone():
    found = matched(
        ["a question of five words", "Paris", "两个字"],
        ["ask a question of five words here", "Paris is nice", "paris!", "这两个字很美", "两个字。"],
    )
    assert {record: item for record, (item, _, _) in found.items()} == {0: 0, 2: 1, 4: 2}


def test_the_template_of_a_benchmark_is_no_evidence():
    template = "Answer the following multiple choice question and give the letter of the right answer only: "
    items = [template + f"how many legs has a creature of kind number {i} got" for i in range(60)]
    found = matched(items, [template + "something new that stands in no item at all", "so: " + items[7]])
    assert {record: item for record, (item, _, _) in found.items()} == {1: 7}


def test_empty_items_and_records_match_nothing():
    assert matched(["", None, "..."], ["", None, "..."]) == {}
    assert matched([], ["text"]) == {}


def covered(item: list[str], record: list[str], ngram: int) -> float:
    ngram = min(ngram, len(item))
    grams = {tuple(record[i : i + ngram]) for i in range(len(record) - ngram + 1)}
    hit: set[int] = set()
    for i in range(len(item) - ngram + 1):
        if tuple(item[i : i + ngram]) in grams:
            hit.update(range(i, i + ngram))
    return len(hit) / len(item)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 9), st.booleans())
def test_shares_equal_the_covered_words_counted_by_hand(seed, ngram, chinese):
    rng = random.Random(seed)
    joint, letters = ("", "春夏秋冬东西南北") if chinese else (" ", "abcdefgh")

    def draw(low, high):
        return joint.join(rng.choice(letters) for _ in range(rng.randint(low, high)))

    items = [draw(5, 30) for _ in range(6)]
    records = [
        draw(0, 20) + joint + rng.choice(items)[: rng.randint(5, 40)] + joint + draw(0, 20) for _ in range(6)
    ]
    found = matched(items, records, ContaminationSpec(ngram=ngram, min_overlap=0.3))
    for i, record in enumerate(records):
        shares = [covered(words(item), words(record), ngram) for item in items]
        if max(shares) >= 0.3:
            item, share, span = found[i]
            assert share == np.float32(max(shares))
            assert item == shares.index(max(shares))
            assert span in record
            assert len(words(span)) >= min(ngram, len(words(items[item])))
        else:
            assert i not in found


def test_prompts_and_answers_are_told_apart(tmp_path: Path):
    spec = ContaminationSpec(ngram=8)
    talks = [
        [("user", LONG), ("assistant", "Paris")],
        [("user", "repeat after me"), ("assistant", LONG)],
        [("user", "hello"), ("assistant", "hi")],
    ]
    source = stored(tmp_path / "a", sft_batch(talks), DedupeSpec(), kind="sft", cuts=[1])
    items = sft_batch([[("user", LONG), ("assistant", "Paris")]])
    for fields, expected in (("prompt", [0]), ("all", [0, 1])):
        asked = replace(spec, fields=fields)
        (found,) = overlap([source], [texts(items, "sft", fields)], asked)
        assert found.records.tolist() == expected
    (alive,) = overlap(
        [replace(source, alive=np.array([False, True, True]))], [texts(items, "sft", "prompt")], spec
    )
    assert len(alive.records) == 0


def test_threads_and_shards_change_nothing(tmp_path: Path):
    records = [f"start {i} {LONG if i % 3 == 0 else CHINESE} end" for i in range(40)]
    whole = stored(tmp_path / "whole", text_batch(records), DedupeSpec())
    parts = stored(tmp_path / "parts", text_batch(records), DedupeSpec(), cuts=[1, 7, 30])
    items = [pa.array([LONG]), pa.array([CHINESE])]
    (a,) = overlap([whole], items, ContaminationSpec(), threads=1)
    (b,) = overlap([parts], items, ContaminationSpec(), threads=3)
    assert a.records.tolist() == b.records.tolist() == list(range(40))
    assert a.items.tolist() == b.items.tolist()
    assert a.spans.equals(b.spans)


def test_an_overlap_of_nothing_is_refused():
    with pytest.raises(RecipeError, match="min_overlap"):
        ContaminationSpec(min_overlap=0)
