"""Scores of texts against their definitions: hashed n-grams, DSIR, the linear classifier, fastText; Chinese and English."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datamix.core.errors import DataError, RecipeError
from datamix.scoring import (
    FastText,
    LinearClassifier,
    NgramImportance,
    count_ngrams,
    fit_importance,
    fit_linear,
    parse_method,
)
from datamix.scoring.classifiers import label_weights
from datamix.scoring.ngrams import hashed_ngrams

BUCKETS = 1 << 40  # so many that no two n-grams share one


def grams(text: str) -> Counter[int]:
    return Counter(hashed_ngrams([text], BUCKETS).buckets.tolist())


def test_words_and_pairs_of_neighbours_are_counted_and_chinese_characters_are_words() -> None:
    assert grams("The fever, the FEVER") == grams("the fever the fever")
    assert grams("a b").total() == 3
    assert grams("a b")[next(iter(grams("a")))] == 1
    assert set(grams("a b")) != set(grams("b a"))
    assert grams("高血压x1").total() == 4 + 3
    assert grams("高 血 压 x1") == grams("高血压x1")
    assert grams("").total() == grams("?! ...").total() == 0


def test_pairs_do_not_reach_over_the_end_of_a_text() -> None:
    together = hashed_ngrams(["a b", "", "c", "d e"], BUCKETS)
    assert np.diff(together.offsets).tolist() == [3, 0, 1, 3]
    alone = [hashed_ngrams([text], BUCKETS).buckets.tolist() for text in ("a b", "c", "d e")]
    assert together.buckets.tolist() == [*alone[0], *alone[1], *alone[2]]
    assert hashed_ngrams(["a b", None], 7).buckets.max() < 7


def test_importance_is_the_mean_log_ratio_of_the_two_bags(tmp_path: Path) -> None:
    domain, everything, size = ["fever and cough", "fever"], ["stock market", "fever market", "a"], 64
    np.save(
        tmp_path / "ratios.npy", fit_importance(count_ngrams(domain, size), count_ngrams(everything, size))
    )
    scores = NgramImportance(tmp_path / "ratios.npy").score_texts(["fever market", "", "unseen words"])

    def bag(texts: list[str]) -> dict[int, float]:
        counts = Counter(int(b) for text in texts for b in hashed_ngrams([text], size).buckets)
        return {b: (counts[b] + 1) / (counts.total() + size) for b in range(size)}

    p, q = bag(domain), bag(everything)
    own = hashed_ngrams(["fever market"], size).buckets.tolist()
    assert math.isclose(scores[0], sum(math.log(p[b] / q[b]) for b in own) / len(own), rel_tol=1e-12)
    assert math.isnan(scores[1])


@pytest.mark.parametrize(
    ("good", "other"),
    [("高血压患者应当按时服药并监测血压", "股市今日大幅上涨成交量放大"), ("the patient takes tablets for fever", "stocks rose on the market today")],
)  # fmt: skip
def test_a_linear_classifier_tells_good_records_from_others(tmp_path: Path, good: str, other: str) -> None:
    rng = np.random.default_rng(0)

    def drawn(text: str, count: int) -> list[str]:
        words = text.split() if " " in text else list(text)
        return [" ".join(rng.choice(words, 6)) for _ in range(count)]

    pytest.importorskip("sklearn")
    weights, auc = fit_linear(drawn(good, 60), drawn(other, 200))
    assert auc > 0.99
    np.save(tmp_path / "w.npy", weights)
    scorer = LinearClassifier(tmp_path / "w.npy")
    assert scorer.score_texts(drawn(good, 20)).min() > 0.5 > scorer.score_texts(drawn(other, 20)).max()
    assert math.isnan(scorer.score_texts(["..."])[0])
    assert np.array_equal(fit_linear(drawn(good, 20), drawn(other, 20))[0].shape, weights.shape)
    with pytest.raises(DataError, match="good files hold 3 records"):
        fit_linear(["a", "b", "c"], drawn(other, 20))


def test_labels_that_cannot_be_told_apart_give_no_signal() -> None:
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(list("abcdefghij"), 8)) for _ in range(800)]
    assert 0.3 < fit_linear(texts[:400], texts[400:])[1] < 0.7


def test_a_fasttext_model_scores_by_its_label_or_by_labels_that_are_numbers(tmp_path: Path) -> None:
    fasttext = pytest.importorskip("fasttext", reason="fasttext-community is not installed (extra `score`)")
    lines = [
        f"__label__{i % 2 * 4} {('定理 证明 引理', 'buy cheap now')[i % 2]} w{i % 17}\n" for i in range(400)
    ]
    (tmp_path / "train.txt").write_text("".join(lines), encoding="utf-8")
    model = fasttext.train_supervised(str(tmp_path / "train.txt"), epoch=10, thread=1, verbose=0)
    model.save_model(str(tmp_path / "edu.bin"))
    texts = ["定理\n证明", "buy\ncheap", ""]
    by_label = FastText(str(tmp_path / "edu.bin"), "4").score_texts(texts)
    assert by_label[0] < 0.1 < 0.9 < by_label[1]
    assert math.isnan(by_label[2])
    expected = FastText(str(tmp_path / "edu.bin")).score_texts(texts)
    assert np.allclose(expected[:2], 4 * by_label[:2], atol=1e-3)
    with pytest.raises(RecipeError, match="no label 'hq'; its labels: "):
        FastText(str(tmp_path / "edu.bin"), "hq").check()
    (tmp_path / "bad.bin").write_bytes(b"no model")
    with pytest.raises(DataError, match="is no fastText model"):
        FastText(str(tmp_path / "bad.bin")).check()


def test_a_model_with_words_for_labels_asks_which_one_is_meant() -> None:
    with pytest.raises(RecipeError, match="which label is meant"):
        label_weights(["__label__hq", "__label__cc"], None, "--by x")
    assert label_weights(["__label__hq", "__label__cc"], "cc", "--by x").tolist() == [0, 1]
    assert label_weights(["__label__hq", "__label__cc"], "__label__hq", "--by x").tolist() == [1, 0]
    assert label_weights(["0", "1", "2.5"], None, "--by x").tolist() == [0, 1, 2.5]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("nll:path/to/model", ("nll", "path/to/model", None)),
        ("nll:http://127.0.0.1:8000/v1#qwen", ("nll", "http://127.0.0.1:8000/v1", "qwen")),
        ("fasttext:edu#1.bin#hq", ("fasttext", "edu#1.bin", "hq")),
        ("linear:good/*.jsonl,other.jsonl", ("linear", "good/*.jsonl,other.jsonl", None)),
        ("dsir:a#b.jsonl", ("dsir", "a#b.jsonl", None)),
    ],
)
def test_a_method_is_read(text: str, parts: tuple[str, str, str | None]) -> None:
    method = parse_method(text)
    assert (method.name, method.target, method.detail) == parts


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("perplexity:m", "no score is called 'perplexity'"),
        ("nll", "needs what it is made from: nll:MODEL"),
        ("nll:http://host/v1", "is not named: nll:URL#MODEL"),
        ("linear:good.jsonl", "linear takes two files"),
        ("fasttext:#hq", "something is missing beside `#`"),
    ],
)
def test_a_method_that_cannot_be_read_says_what_is_missing(text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        parse_method(text)
