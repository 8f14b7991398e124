from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import corpus, jaccard, sft_batch, stored, text_batch, true_pairs

from datamix.core.errors import DataError
from datamix.dedup import DedupeSpec, DuplicateFields, NearSpec, decide, dedupe, leaked

SPEC = DedupeSpec(near=NearSpec())


def fates(decisions):
    return [d.fate.tolist() for d in decisions]


def same(a, b) -> bool:
    return all(
        np.array_equal(getattr(x, name), getattr(y, name))
        for x, y in zip(a, b, strict=True)
        for name in ("fate", "kept_source", "kept_record", "similarity")
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([0.5, 0.7, 0.8, 0.9]))
def test_every_removed_text_has_a_kept_match_and_no_two_kept_texts_match(seed, chinese, threshold):
    texts = corpus(seed, chinese=chinese)
    spec = DedupeSpec(near=NearSpec(threshold=threshold))
    result = dedupe(pa.table({"text": texts}), spec=spec)
    removed = result.removed.to_pylist()
    gone = {row["row"] for row in removed}
    for row in removed:
        true = jaccard(texts[row["row"]], texts[row["kept_row"]])
        assert row["kept_row"] not in gone
        assert row["kept_row"] < row["row"]
        assert true >= threshold
        assert row["similarity"] == np.float32(true)
        assert (row["method"] == "exact") == (texts[row["row"]] == texts[row["kept_row"]])
    kept = [i for i in range(len(texts)) if i not in gone]
    missed = true_pairs([texts[i] for i in kept], threshold)
    assert len(missed) <= 1  # the bands find 99.5 % of the pairs at the threshold and all but none above


@pytest.mark.parametrize("chinese", [False, True])
def test_recall_over_many_corpora_is_what_the_bands_promise(chinese):
    pairs = found = 0
    for seed in range(12):
        texts = corpus(seed + 900, 200, chinese=chinese)
        gone = set(dedupe(pa.table({"text": texts})).removed["row"].to_pylist())
        for i, j in true_pairs(texts, 0.8):
            pairs += 1
            found += i in gone or j in gone
    assert pairs > 400
    assert found / pairs >= 0.999


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1000), st.lists(st.integers(1, 119), max_size=5, unique=True), st.integers(1, 4))
def test_shards_and_threads_change_nothing(tmp_path_factory, seed, cuts, threads):
    folder = tmp_path_factory.mktemp("shards")
    batch = text_batch(corpus(seed)[:120])
    whole = decide([stored(folder / "whole", batch, SPEC)], SPEC, threads=1)
    cut = decide([stored(folder / "cut", batch, SPEC, cuts=sorted(cuts))], SPEC, threads=threads)
    assert same(whole, cut)


def test_blocks_of_candidates_change_nothing_but_speed(monkeypatch):
    texts = corpus(5, 1500) + corpus(5, 1500)[::-1]
    table = pa.table({"text": texts})
    expected = dedupe(table, threads=1).removed
    for block, chunk in ((64, 7), (1, 1), (100_000, 1000)):
        monkeypatch.setattr("datamix.dedup.resolve._BLOCK", block)
        monkeypatch.setattr("datamix.dedup.resolve._CHUNK", chunk)
        found = dedupe(table, threads=3).removed
        assert found["row"].equals(expected["row"])


def test_a_chain_of_likenesses_removes_only_what_a_kept_text_resembles():
    base = [f"w{i}" for i in range(104)]
    chain = [" ".join(base[: 104 - 8 * i]) for i in range(6)]
    result = dedupe(pa.table({"text": chain}))
    removed = {row["row"]: row["kept_row"] for row in result.removed.to_pylist()}
    for i in range(1, 6):
        matching = [j for j in range(i) if j not in removed and jaccard(chain[i], chain[j]) >= 0.8]
        assert (i in removed) == bool(matching)
    assert 0 < len(removed) < 5


def test_the_preferred_source_keeps_whatever_the_order(tmp_path: Path):
    text = " ".join(f"w{i}" for i in range(60))
    later = stored(tmp_path / "a", text_batch([text, "other"]), SPEC, rank=1)
    first = stored(tmp_path / "b", text_batch(["x", text + " more"]), SPEC, rank=0)
    lost, kept = decide([later, first], SPEC)
    assert lost.fate.tolist() == [2, 0]
    assert kept.fate.tolist() == [0, 0]
    assert (lost.kept_source[0], lost.kept_record[0]) == (1, 1)
    assert lost.similarity[0] == np.float32(jaccard(text, text + " more"))


def test_within_leaves_duplicates_of_other_sources_alone(tmp_path: Path):
    spec = replace(SPEC, scope="within")
    a = stored(tmp_path / "a", text_batch(["one", "one", "two"]), spec)
    b = stored(tmp_path / "b", text_batch(["one", "two", "two"]), spec)
    assert fates(decide([a, b], spec)) == [[0, 1, 0], [0, 0, 1]]
    assert fates(decide([a, b], replace(spec, scope="across"))) == [[0, 1, 0], [1, 1, 1]]


def test_an_old_set_removes_and_is_never_removed(tmp_path: Path):
    new = stored(tmp_path / "new", text_batch(["one", "two", "two"]), SPEC, rank=0)
    old = stored(tmp_path / "old", text_batch(["two", "two", "three"]), SPEC, rank=7, removable=False)
    for scope in ("across", "within"):
        decided = decide([new, old], replace(SPEC, scope=scope))
        assert fates(decided) == [[0, 1, 1], [0, 0, 0]]
        assert decided[0].kept_source.tolist() == [-1, 1, 1]
        assert decided[0].kept_record.tolist() == [-1, 0, 0]


def test_an_old_set_of_signatures_alone_still_removes(tmp_path: Path):
    text = " ".join(f"w{i}" for i in range(80))
    old = stored(tmp_path / "old", text_batch([text]), SPEC, removable=False)
    new = stored(tmp_path / "new", text_batch([text + " end", "other words entirely"]), SPEC)
    decided = decide([new, replace(old, batches=())], SPEC)[0]
    assert decided.fate.tolist() == [2, 0]
    assert 0.85 < decided.similarity[0] <= 1


def test_a_cap_keeps_that_many_of_a_cluster():
    text = [f"w{i}" for i in range(80)]
    cluster = [" ".join([*text, f"end{i}"]) for i in range(6)]
    for keep in (1, 2, 3):
        spec = replace(SPEC, keep=keep)
        assert dedupe(pa.table({"text": cluster}), spec=spec).kept.num_rows == keep
        copies = pa.table({"text": ["same"] * 7})
        assert dedupe(copies, spec=spec).kept.num_rows == keep
        mixed = pa.table({"text": [cluster[0]] * 3 + cluster[1:]})
        assert dedupe(mixed, spec=spec).kept.num_rows == keep


def test_records_out_of_play_neither_go_nor_remove(tmp_path: Path):
    batch = text_batch(["one", "one", "one"])
    source = stored(tmp_path / "a", batch, SPEC, alive=np.array([False, True, True]))
    assert fates(decide([source], SPEC)) == [[0, 0, 1]]


def test_the_longest_stays_when_asked(tmp_path: Path):
    spec = replace(SPEC, rank_by="longest")
    text = " ".join(f"w{i}" for i in range(60))
    a = stored(tmp_path / "a", text_batch([text, text + " and more"]), spec)
    b = stored(tmp_path / "b", text_batch([text + " and even more"]), spec)
    decided = decide([a, b], spec)
    assert fates(decided) == [[2, 2], [0]]
    preferred = decide([replace(a, rank=0), replace(b, rank=1)], spec)
    assert fates(preferred) == [[2, 0], [2]]


def test_empty_and_wordless_texts_are_equal_only_exactly():
    result = dedupe(pa.table({"text": ["", "", "...", "!!!", None, "a", "A"]}))
    assert result.kept["text"].to_pylist() == ["", "...", "!!!", "a"]
    assert result.removed["method"].to_pylist() == ["exact", "exact", "near"]


def test_exact_alone_minds_every_byte_unless_normalized():
    texts = pa.table({"text": ["Hello  World", "hello world", "ｈｅｌｌｏ\nworld ", "hello, world"]})
    assert dedupe(texts, spec=DedupeSpec()).kept.num_rows == 4
    assert dedupe(texts, spec=DedupeSpec(normalize=True)).kept.num_rows == 2


def test_without_verification_a_shared_band_is_enough():
    texts = corpus(3, 400)
    table = pa.table({"text": texts})
    loose = dedupe(table, spec=DedupeSpec(near=NearSpec(verify=False))).removed
    strict = dedupe(table).removed
    assert set(strict["row"].to_pylist()) <= set(loose["row"].to_pylist()) | set(strict["row"].to_pylist())
    assert loose.num_rows >= strict.num_rows


ANSWERS = ["short answer", "a much longer answer to the question"]
QUESTION = "请问高血压患者平时应该注意哪些饮食习惯和运动方式呢谢谢医生"


def test_conversations_share_a_prompt_or_a_prompt_and_answer(tmp_path: Path):
    talks = [
        [("user", QUESTION), ("assistant", ANSWERS[0])],
        [("user", QUESTION), ("assistant", ANSWERS[0])],
        [("user", QUESTION), ("assistant", ANSWERS[1])],
        [("user", "a question of its own"), ("assistant", ANSWERS[0])],
    ]
    for spec, expected in (
        (DedupeSpec(), [0, 1, 0, 0]),
        (SPEC, [0, 1, 2, 0]),
        (replace(SPEC, rank_by="longest"), [2, 2, 0, 0]),
        (replace(SPEC, fields=DuplicateFields(near="all")), [0, 1, 0, 0]),
        (DedupeSpec(fields=DuplicateFields(exact="answer")), [0, 1, 0, 1]),
        (DedupeSpec(fields=DuplicateFields(exact="prompt")), [0, 1, 1, 0]),
    ):
        name = str(len(list(tmp_path.iterdir())))
        source = stored(tmp_path / name, sft_batch(talks), spec, kind="sft")
        assert fates(decide([source], spec)) == [expected]


def test_one_constant_instruction_before_many_inputs_keeps_them_all(tmp_path: Path):
    rng = np.random.default_rng(0)
    instruction = (
        "If you are a doctor, please answer the medical questions based on the patient's description."
    )
    talks = [
        [
            ("user", instruction + "\n" + " ".join(f"symptom{i}" for i in rng.integers(0, 5000, 12))),
            ("assistant", f"advice {i}"),
        ]
        for i in range(300)
    ]
    source = stored(tmp_path / "a", sft_batch(talks), SPEC, kind="sft")
    assert fates(decide([source], SPEC)) == [[0] * 300]


def test_a_long_system_turn_makes_no_duplicates_and_another_persona_no_match(tmp_path: Path):
    system = " ".join(f"rule{i}" for i in range(300))
    talks = [[("system", system), ("user", f"q{i} about thing{i}"), ("assistant", "yes")] for i in range(50)]
    talks += [[("system", "be kind"), ("user", QUESTION)], [("system", "be rude"), ("user", QUESTION)]]
    talks += [[("system", "be kind"), ("user", QUESTION + "！")]]
    source = stored(tmp_path / "a", sft_batch(talks), SPEC, kind="sft")
    assert fates(decide([source], SPEC)) == [[0] * 52 + [2]]


def test_no_chain_through_an_equal_answer(tmp_path: Path):
    spec = replace(SPEC, fields=DuplicateFields(exact="answer"))
    talks = [
        [("user", QUESTION), ("assistant", "one")],
        [("user", QUESTION + "！"), ("assistant", "two")],  # near the first
        [("user", "an unlike question"), ("assistant", "two")],  # equal only to one that went
    ]
    source = stored(tmp_path / "a", sft_batch(talks), spec, kind="sft")
    assert fates(decide([source], spec)) == [[0, 2, 0]]


def test_only_training_records_near_a_held_out_one_are_leaked(tmp_path: Path):
    text = " ".join(f"w{i}" for i in range(60))
    batch = text_batch([text, text + " end", "train only", "train only", "held out"])
    is_held_out = np.array([True, False, False, False, True])
    source = stored(tmp_path / "a", batch, SPEC)
    train, held_out = replace(source, alive=~is_held_out), replace(source, alive=is_held_out)
    decided = leaked([train], [held_out], SPEC)
    assert fates(decided) == [[0, 2, 0, 0, 0]]
    assert decided[0].kept_record[1] == 0


def test_slices_nulls_dictionaries_and_large_strings_read_alike():
    texts = [None, *corpus(11, 60), "tail"]
    plain = dedupe(pa.table({"text": pa.array(texts)})).removed
    for array in (
        pa.array(texts, pa.large_string()),
        pa.array(texts).dictionary_encode(),
        pa.array(["before", *texts, "after"]).slice(1, len(texts)),
        pa.chunked_array([texts[:7], [], texts[7:]]),
    ):
        assert dedupe(pa.table({"text": array})).removed.equals(plain)


def test_signatures_of_another_spec_are_refused(tmp_path: Path):
    source = stored(tmp_path / "a", text_batch(["a"]), DedupeSpec(near=NearSpec(bands=4, rows=4)))
    with pytest.raises(DataError, match="4 bands, but 18"):
        decide([source], SPEC)


def test_texts_longer_than_the_window_are_read_whole():
    words = [f"w{i}" for i in range(30_000)]
    long = " ".join(words)
    wide = "".join(chr(0x4E00 + i % 8000) for i in range(50_000))
    texts = [long, long[:-6] + "edited", wide, wide[:-1] + "末", "é" * 70_000, "é" * 70_000 + "!"]
    removed = dedupe(pa.table({"text": texts})).removed.to_pylist()
    assert [(r["row"], r["kept_row"], r["method"]) for r in removed] == [
        (1, 0, "near"),
        (3, 2, "near"),
        (5, 4, "near"),
    ]
    assert removed[0]["similarity"] == np.float32(jaccard(texts[0], texts[1]))
    assert removed[1]["similarity"] == np.float32(jaccard(texts[2], texts[3]))
