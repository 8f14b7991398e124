from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamix.clean import STEPS, Step, clean, script
from datamix.clean.web_quality import dup_share, token_arrays, top_share
from datamix.core.records import SCHEMAS

ENGLISH = (
    "Most back pain gets better within a few weeks. Staying active, even if it hurts a little, works better than "
    "staying in bed, and that is what most guidelines say today. See a doctor soon if there is numbness, trouble "
    "passing urine, weakness in a leg, fever, or weight loss that you cannot explain.\n"
    "A warm bath in the evening and a short walk in the morning have helped many people to sleep again."
)
CHINESE = (
    "多数腰痛在几个星期内会自行好转。与其一直躺在床上，不如在能忍受的范围内多活动，这也是现在大多数指南的建议。\n"
    "如果出现会阴部麻木、排尿困难、腿的力气变小、发热，或者说不清原因的消瘦，就要尽快去看医生。\n"
    "晚上洗一个热水澡，早上出去走一走，很多人因此又睡得着了。平时搬重物要先蹲下，不要弯着腰硬搬。"
)


def reason(name: str, text: str, **options: Any) -> str | None:
    batch = pa.RecordBatch.from_pylist([{"slice": 0, "record": 0, "text": text}], schema=SCHEMAS["text"])
    return clean(batch, "text", [Step(name, STEPS[name](**options))]).dropped.get(0)


@pytest.mark.parametrize("name", ["gopher_quality", "gopher_repetition", "fineweb_quality", "c4_pages"])
@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_good_prose_passes_in_both_languages(name: str, text: str) -> None:
    assert reason(name, text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short text", "min_words"),
        ("太短的中文。" * 10, "min_words"),
        ("of the and to " * 20, "mean_word_chars"),
        ("supercalifragilistic " * 60, "mean_word_chars"),
        ("word " * 60 + "# " * 10, "symbol_share"),
        ("今天天气不错……" * 30, "symbol_share"),
        ("\n".join(f"- item number {i} of the shopping list" for i in range(20)), "bullet_lines"),
        ("\n".join(f"• 第{i}项要买的东西" for i in range(40)), "bullet_lines"),
        (
            "\n".join("and then we went on and on to the old house near the..." for _ in range(6)),
            "ellipsis_lines",
        ),
        ("12345 67890 " * 40 + "the and to of", "alpha_words"),
        ("nothing here reads like prose keyword stuffing page rank shoes cheap " * 10, "stop_words"),
        ("高血压糖尿病冠心病脑梗塞骨质疏松甲状腺结节胆囊息肉" * 8, "stop_words"),
    ],
)
def test_gopher_quality_names_the_rule_that_is_broken(text: str, expected: str) -> None:
    assert reason("gopher_quality", text) == f"gopher_quality_{expected}"


def test_stop_words_are_asked_only_of_english_and_chinese() -> None:
    russian = (
        "Большинство болей в спине проходит само за несколько недель если человек остаётся активным. " * 6
    )
    japanese = "腰痛の多くは数週間のうちに自然によくなります。痛くても少し動くほうがよいです。" * 6
    assert reason("gopher_quality", russian) is None
    assert reason("gopher_quality", japanese) is None
    assert reason("gopher_quality", "keyword stuffing page rank shoes cheap " * 10, min_stop_words=0) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ENGLISH + "\nBuy now!" * 5, "dup_lines"),
        (CHINESE + "\n立即购买" * 5, "dup_lines"),
        ("buy cheap shoes today and " * 20, "top_2gram"),
        ("买便宜的鞋就来这里" * 20, "top_2gram"),
        (f"{ENGLISH} {ENGLISH}", "dup_5gram"),
        (CHINESE.replace("\n", "") + CHINESE.replace("\n", "，"), "dup_5gram"),
    ],
)
def test_repetition_is_found_in_both_languages(text: str, expected: str) -> None:
    assert reason("gopher_repetition", text) == f"gopher_repetition_{expected}"


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.integers(1, 6))
def test_ngram_shares_equal_counting_by_hand(tokens: list[str], n: int) -> None:
    words = [t * (ord(t) - 96) for t in tokens]  # a, bb, ccc, dddd: lengths differ
    ids, lengths = token_arrays(words)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    again = [i for i, g in enumerate(grams) if grams.count(g) > 1]
    inside = {j for i in again for j in range(i, i + n)}
    total = sum(map(len, words))
    assert np.isclose(dup_share(ids, lengths, n), sum(len(words[j]) for j in inside) / total)
    most = max(map(grams.count, grams), default=0)
    top = max((sum(map(len, g)) for g in grams if grams.count(g) == most), default=0) * most / total
    assert np.isclose(top_share(ids, lengths, n), top if most > 1 else 0.0)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("Lorem ipsum dolor sit amet. One. Two. Three.", {}, "lorem_ipsum"),
        ("One. Two. Three. {code}", {}, "curly_bracket"),
        ("One. Two.", {}, "min_sentences"),
        ("第一句。第二句！", {}, "min_sentences"),
        ("第一句。第二句！第三句？", {}, None),
        ("version 3.5.7 and 2.1", {"min_sentences": 1}, "min_sentences"),
    ],
)
def test_c4_pages(text: str, options: dict[str, Any], expected: str | None) -> None:
    assert reason("c4_pages", text, **options) == (expected and f"c4_pages_{expected}")


def test_c4_lines_keep_sentences_and_drop_the_rest() -> None:
    text = "\n".join(
        [
            "Menu",
            "This is a whole sentence of eight words.[1]",
            "Too short.",
            "This one trails off into nothing at all...",
            "Please enable JavaScript to see this page properly.",
            "Read our privacy policy before you use the site.",
            "这是一个足够长的中文句子。",
            "太短了。",
            "这一行没有句号所以会被去掉",
        ]
    )
    batch = pa.RecordBatch.from_pylist([{"slice": 0, "record": 0, "text": text}], schema=SCHEMAS["text"])
    cleaned = clean(batch, "text", [Step("c4_lines", STEPS["c4_lines"]())])
    kept = cleaned.batch.column("text")[0].as_py().split("\n")
    assert kept == ["This is a whole sentence of eight words.", "这是一个足够长的中文句子。"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n".join(f"a line of the table without any mark number {i}" for i in range(10)), "closed_lines"),
        (
            "\n".join(["短。", "也短。", "还是短。", "这一行稍微长一些，有三十个字母那么宽，可以算一行。"]),
            "short_lines",
        ),
        (
            "\n".join(["The same long line stands here more than once."] * 2 + ["And this one is another."]),
            "dup_line_chars",
        ),
        ("", None),
    ],
)
def test_fineweb_quality(text: str, expected: str | None) -> None:
    assert reason("fineweb_quality", text) == (expected and f"fineweb_quality_{expected}")


def test_a_chinese_word_is_two_characters() -> None:
    words = script.split("我用 Git 提交了 3 次，很顺利。")
    assert words.tokens == ["我", "用", "Git", "提", "交", "了", "3", "次", "很", "顺", "利"]
    assert words.count == 2 + 9 / 2
    assert words.is_dense
    assert script.width("abc 中文") == 4 + 6
