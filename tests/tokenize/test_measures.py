"""Fill in the middle, and how well a tokenizer suits a text."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import encode_batches as make
import numpy as np
import pytest
from encode_tokenizers import byte_level, save, sentencepiece_bpe, unigram, word_piece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from datamix.core.errors import RecipeError
from datamix.tokenize import EncodeSpec, find_tokenizer, load
from datamix.tokenize.document_encoder import cut_middle, fim_tokens
from datamix.tokenize.special_tokens import control_tokens
from datamix.tokenize.stats import VocabularyAlphabet, fertility, vocabulary_alphabet


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=40), seed=st.integers(0, 2**32))
def test_the_three_parts_are_the_text(text: str, seed: int) -> None:
    text = text.encode("utf-8", "ignore").decode()
    parts = cut_middle(text, 1.0, seed)
    assert parts is None if len(text) < 2 else parts is not None and "".join(parts) == text
    assert parts == cut_middle(text, 1.0, seed)
    assert cut_middle(text, 0.0, seed) is None


def test_the_rate_is_the_share_of_documents_that_are_cut() -> None:
    texts = [f"def f_{number}(x): return x" for number in range(4000)]
    found = [cut_middle(text, 0.5, 7) for text in texts]
    assert 0.47 < sum(parts is not None for parts in found) / len(texts) < 0.53
    assert len({len(parts[0]) for parts in found if parts}) > 20
    assert found != [cut_middle(text, 0.5, 8) for text in texts]


def test_marks_are_found_by_the_names_of_their_families() -> None:
    names = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    control = control_tokens(
        [{"id": 10 + at, "content": name, "special": False} for at, name in enumerate(names)]
    )
    assert fim_tokens(control) == (10, 12, 11)
    assert fim_tokens(control_tokens([])) is None


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece", "unigram", "word piece"])
def test_unknown_domains_show_in_tokens_and_bytes(kind: str) -> None:
    made = {
        "byte level": byte_level,
        "sentencepiece": lambda: sentencepiece_bpe(["<unk>"]),
        "unigram": lambda: unigram(["<unk>"]),
        "word piece": lambda: word_piece(["[UNK]", "[CLS]", "[SEP]"]),
    }
    tokenizer = made[kind]()
    known = vocabulary_alphabet(json.loads(tokenizer.to_str()))
    counted = {}
    for name, text in (
        ("known", "The patient was given aspirin twice a day; 患者每天服用两次阿司匹林"),
        ("strange", "ქართული ენა"),
    ):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        counted[name] = fertility(np.bincount(ids, minlength=len(known.is_byte)), known)
        if kind == "byte level":
            assert counted[name].num_chars == len(text)
    assert counted["known"].byte_share == counted["known"].unknown_share == 0
    assert 0 < counted["known"].tokens_per_char < 1
    if kind in ("byte level", "sentencepiece"):
        assert counted["strange"].byte_share > 0.8
        assert counted["strange"].tokens_per_char > 2
    else:
        assert counted["strange"].unknown_share > 0.3
    none = fertility(np.zeros(len(known.is_byte), np.int64), known)
    assert (none.tokens_per_char, none.byte_share, none.unknown_share) == (0, 0, 0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(max_size=40))
def test_the_characters_of_any_text_are_counted_without_decoding_it(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    tokenizer, known = _byte_level_alphabet()
    ids = np.array(tokenizer.encode(text).ids, np.int64)
    assert fertility(np.bincount(ids, minlength=len(known.is_byte)), known).num_chars == len(text)


@cache
def _byte_level_alphabet() -> tuple[Tokenizer, VocabularyAlphabet]:
    tokenizer = byte_level()
    return tokenizer, vocabulary_alphabet(json.loads(tokenizer.to_str()))


def test_documents_are_filled_in_the_middle_as_asked(tmp_path: Path) -> None:
    tokenizer = byte_level()
    names = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    tokenizer.add_special_tokens(["<|endoftext|>", *names])
    folder = save(tokenizer, tmp_path, None, {"eos_token": "<|endoftext|>"})
    texts = [f"def f_{number}(x):\n    return x + {number}\n" for number in range(40)]
    files = find_tokenizer(str(folder), ".")
    encoder = load(EncodeSpec("pretrain", files, "all", fim_rate=0.5, fim_seed=3))
    rows = encoder.encode(make.texts(texts), "text")[0].to_pylist()
    num_cut = 0
    for text, row in zip(texts, rows, strict=True):
        written = encoder.decode(row["ids"])
        if written.startswith(names[0]):
            prefix, rest = written.removeprefix(names[0]).split(names[1])
            suffix, middle = rest.removesuffix("<|endoftext|>").split(names[2])
            assert prefix + middle + suffix == text
            assert encoder.document_starts(text) is None  # its tokens are not in the order of its characters
            num_cut += 1
        else:
            assert written == text + "<|endoftext|>"
            assert len(encoder.document_starts(text)) == len(row["ids"]) + 1
    assert 10 < num_cut < 30
    plain = EncodeSpec("pretrain", files, "all")
    assert plain.identity() != encoder.spec.identity()
    bare = save(sentencepiece_bpe(["<unk>", "</s>"]), tmp_path / "bare", None, {"eos_token": "</s>"})
    asked = EncodeSpec("pretrain", find_tokenizer(str(bare), "."), "all", fim_rate=0.5)
    with pytest.raises(RecipeError, match="no tokens for it"):
        load(asked)
