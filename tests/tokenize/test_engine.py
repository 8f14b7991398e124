"""The plain tokenizer and the engines that run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from encode_tokenizers import byte_level, sentencepiece_bpe, unigram, word_piece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from datamix.tokenize.plain_spec import parsed_spec, without_prefix
from datamix.tokenize.special_tokens import control_tokens, unescape
from datamix.tokenize.tokenizer import FlatIds, PlainEncoder, hard_strings


def with_control(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    return tokenizer


BUILDERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: with_control(byte_level()),
    "sentencepiece": lambda: with_control(sentencepiece_bpe(["<unk>", "<s>", "</s>"])),
    "unigram": lambda: with_control(unigram(["<s>", "<pad>", "</s>", "<unk>"])),
    "word piece": lambda: with_control(word_piece(["[UNK]", "[CLS]", "[SEP]"])),
}


def plain_encoder(tokenizer: Tokenizer) -> PlainEncoder:
    spec = json.loads(tokenizer.to_str())
    return PlainEncoder(parsed_spec(spec), control_tokens(spec["added_tokens"]))


@pytest.fixture(scope="module")
def encoders() -> dict[str, tuple[Tokenizer, PlainEncoder]]:
    return {name: (tokenizer := build(), plain_encoder(tokenizer)) for name, build in BUILDERS.items()}


@pytest.mark.parametrize("name", BUILDERS)
def test_no_literal_of_an_added_token_is_ever_encoded_as_it(
    name: str, encoders: dict[str, tuple[Tokenizer, PlainEncoder]]
) -> None:
    tokenizer, plain = encoders[name]
    added = {id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items()}
    unknown = [id_ for id_, content in added.items() if content in ("<unk>", "[UNK]")]
    texts = [
        f"{before}{content}{after}"
        for content in added.values()
        for before in ("", "a ", "\n")
        for after in ("", " b", content)
    ]
    for begins in (True, False):
        ids = plain.encode(texts, [begins] * len(texts)).ids.tolist()
        assert set(ids) & set(added) <= set(unknown)


@pytest.mark.parametrize("name", BUILDERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=5))
def test_text_without_literals_has_the_tokenizers_own_ids(
    name: str, texts: list[str], encoders: dict[str, tuple[Tokenizer, PlainEncoder]]
) -> None:
    tokenizer, plain = encoders[name]
    flat = plain.encode(texts)
    wanted = [one.ids for one in tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert [flat.ids[a:b].tolist() for a, b in zip(flat.offsets, flat.offsets[1:], strict=False)] == wanted


def test_a_text_that_spells_a_renamed_entry_is_text_too() -> None:
    tokenizer = unigram(["<s>", "</s>", "<unk>"])
    plain = plain_encoder(tokenizer)
    end = tokenizer.token_to_id("</s>")
    texts = ["a", f"\U0010fffe{end}\U0010fffe", "\0b"]
    flat = plain.encode(texts)
    assert end not in flat.ids.tolist()
    assert flat.offsets.tolist()[1] == len(plain.encode(["a"]).ids)


def test_a_text_that_continues_gets_no_blank_before_it() -> None:
    tokenizer = sentencepiece_bpe(["<unk>", "<s>", "</s>"])
    plain = plain_encoder(tokenizer)
    flat = plain.encode(["aspirin", "aspirin", " aspirin"], [True, False, False])
    first, second, third = (
        flat.ids[a:b].tolist() for a, b in zip(flat.offsets, flat.offsets[1:], strict=False)
    )
    assert first == third == tokenizer.encode("aspirin").ids
    assert second != first
    assert tokenizer.decode([*tokenizer.encode("x").ids, *second]) == "xaspirin"


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, {"normalizer": None}),
        (
            {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}},
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}],
                }
            },
        ),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}},
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}},
        ),
    ],
)
def test_the_prefix_is_taken_out_of_a_spec(spec: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert without_prefix(spec) == wanted


def test_layout_tokens_stay_text() -> None:
    tokenizer = sentencepiece_bpe(["<unk>", "<bos>"], prefix=False)
    tokenizer.add_tokens(
        [
            AddedToken("\n\n", special=False, normalized=False),
            AddedToken("<table>", special=False, normalized=False),
        ]
    )
    plain = plain_encoder(tokenizer)
    assert tokenizer.token_to_id("\n\n") in plain.encode(["a\n\nb"]).ids.tolist()
    assert tokenizer.token_to_id("<table>") not in plain.encode(["a<table>b"]).ids.tolist()


class Lying:
    """An engine that gets one text wrong."""

    name = "lying"

    def __init__(self, truth: Any) -> None:
        self._truth = truth

    def encode(self, texts: list[str]) -> FlatIds:
        flat = self._truth.encode(texts)
        ids = flat.ids.copy()
        ids[flat.offsets[:-1][np.array(["wrong" in text for text in texts], bool)]] += 1
        return FlatIds(ids, flat.offsets)


def test_an_engine_that_disagrees_on_the_data_is_dropped_before_it_counts() -> None:
    plain = plain_encoder(with_control(byte_level()))
    truth = plain.truth.encode(["right", "this is wrong"])
    plain._fast = [Lying(plain.truth)]
    assert plain.engine == "fastokens"
    flat = plain.encode(["right", "this is wrong"])
    assert flat.ids.tolist() == truth.ids.tolist()
    assert plain.engine == "tokenizers"


def test_the_nasty_set_is_large_and_fixed() -> None:
    control = control_tokens(json.loads(with_control(byte_level()).to_str())["added_tokens"])
    strings = hard_strings(control)
    assert strings == hard_strings(control)
    assert len(strings) > 1000
    assert any("<|im_end|>" in text for text in strings)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    parts=st.lists(
        st.sampled_from(["<|im_end|>", "<think>", "<", "|im_end|>", "a", " ", "\n", "世"]), max_size=8
    )
)
def test_escaping_hides_every_literal_and_is_undone(parts: list[str]) -> None:
    control = control_tokens(
        [
            {"id": 1, "content": "<|im_end|>", "special": True},
            {"id": 2, "content": "<think>", "special": False},
        ]
    )
    text = "".join(parts)
    escaped = control.escape(text)
    assert not control.is_in(escaped)
    assert unescape(escaped) == text
    assert [text[found.start : found.end] for found in control.find(text)] == list(_joined(text))


def _joined(text: str) -> list[str]:
    import re

    return re.findall(r"<\|im_end\|>|<think>", text)


def test_lowercasing_and_stripping_normalisers_keep_working() -> None:
    tokenizer = with_control(byte_level())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    plain = plain_encoder(tokenizer)
    assert plain.encode(["Aspirin 500"]).ids.tolist() == tokenizer.encode("Aspirin 500").ids
    assert plain.encode(["Aspirin"], [False]).ids.tolist() != plain.encode(["Aspirin"]).ids.tolist()
