"""Long texts are encoded in pieces, with the ids of the whole."""

from __future__ import annotations

import random
from pathlib import Path

import encode_batches as make
import numpy as np
import pytest
from encode_tokenizers import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

from datamix.tokenize import long_texts, tokenizer
from datamix.tokenize.tokenizer import PlainEncoder

PARTS = ["word", "Straße", "世界你好", "don't", "12345", "。", "，", ", ", ". ", " ", "  ", "\n", "\n\n", "\t", "\r\n", "é", "e\u0301",
         "👩‍👩‍👧", "<|im_end|>", "</s>", "\u3000", "\xa0", "ﬁ", "a_b", "x=1;", "नमस्ते", "สวัสดี", "한국어"]  # fmt: skip
PROSE = "The quick brown fox\njumps over 12 dogs, and sleeps.\n\n他说，今天天气很好。然后就走了\n第二天 he came back"


def plain(folder: Path) -> PlainEncoder:
    return make.encoder(folder).plain


def shorter(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for module in (long_texts, tokenizer):
        monkeypatch.setattr(module, "PIECE_CHARS", size)


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_give_the_ids_and_places_of_the_whole(
    name: str, tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = plain(tokenizers[name])
    chance = random.Random(name)
    texts = ["".join(chance.choices(PARTS, k=400)) for _ in range(12)] + [
        PROSE * 20,
        "short",
        "",
        "\n".join(["line"] * 300),
    ]
    begins = [n % 3 != 1 for n in range(len(texts))]
    whole, starts = encoder.encode(texts, begins), [encoder.character_starts(text) for text in texts]
    shorter(monkeypatch, 100)
    cut = encoder.encode(texts, begins)
    assert np.array_equal(whole.offsets, cut.offsets)
    assert np.array_equal(whole.ids, cut.ids)
    assert [encoder.character_starts(text) for text in texts] == starts
    pieces = encoder.long_texts.cut(PROSE * 20)
    assert "".join(pieces) == PROSE * 20
    assert len(pieces) > 5, "no safe border was found in plain prose"


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(PARTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=120
    )
)
@pytest.mark.parametrize("name", ["llama3.1", "mistral-v3", "vicuna", "gemma2"])
def test_any_text_has_the_same_ids_in_pieces(
    name: str, parts: list[str], tokenizers: dict[str, Path]
) -> None:
    text = "".join(parts)
    encoder = plain(tokenizers[name])
    whole = encoder.encode([text]).ids
    with pytest.MonkeyPatch.context() as patch:
        shorter(patch, 16)
        encoder.long_texts._failed = [0] * len(encoder.long_texts._failed)
        assert np.array_equal(encoder.encode([text]).ids, whole)


def test_a_border_that_an_entry_of_the_vocabulary_crosses_is_refused() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    vocab = {"a": 0, "b": 1, "\n": 2, "\nb": 3, " ": 4, "a\n": 5, "a\nb": 6}
    crossing = Tokenizer(BPE(vocab, [("\n", "b"), ("a", "\n"), ("a", "\nb")]))
    cutter = long_texts.LongTexts(crossing)
    assert not cutter._is_safe("aaaa\nbbbb", 5)
    assert not cutter._is_safe("aaaa\nbbbb", 4)
    assert cutter._is_safe("aaaa bbbb", 4)


def test_a_text_without_borders_is_encoded_whole_and_counted(
    tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = plain(tokenizers["qwen2.5"])
    text = "".join(random.Random(1).choices("0123456789", k=3000))
    whole = encoder.encode([text]).ids
    before = encoder.long_texts.num_whole
    shorter(monkeypatch, 200)
    assert np.array_equal(encoder.encode([text]).ids, whole)
    assert encoder.long_texts.num_whole == before + 1
    assert "encoded whole" in (tokenizer.whole_texts_notice("t", 1) or "")
