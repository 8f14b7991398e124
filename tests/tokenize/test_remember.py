"""A plain encoder that keeps what it encoded gives what it would have given."""

from __future__ import annotations

import json

import numpy as np
import pytest
from encode_tokenizers import byte_level, sentencepiece_bpe
from hypothesis import given
from hypothesis import strategies as st

from datamix.tokenize.plain_spec import parsed_spec
from datamix.tokenize.special_tokens import control_tokens
from datamix.tokenize.tokenizer import CachedEncoder, PlainEncoder


def plain(name: str) -> PlainEncoder:
    tokenizer = byte_level() if name == "byte level" else sentencepiece_bpe(["<unk>", "<s>", "</s>"])
    spec = json.loads(tokenizer.to_str())
    return PlainEncoder(parsed_spec(spec), control_tokens(spec["added_tokens"]))


PLAIN = {name: plain(name) for name in ("byte level", "sentencepiece")}
PART = st.tuples(st.sampled_from(["", "question", "问题 ", " answer", "\n回答"]), st.booleans())


@pytest.mark.parametrize("name", PLAIN)
@given(rounds=st.lists(st.lists(PART, max_size=6), min_size=1, max_size=3))
def test_texts_met_again_have_the_same_tokens(name: str, rounds: list[list[tuple[str, bool]]]) -> None:
    remembering = CachedEncoder(PLAIN[name])
    for parts in rounds:
        texts, begins = [text for text, _ in parts], [begin for _, begin in parts]
        wanted, found = PLAIN[name].encode(texts, begins), remembering.encode(texts, begins)
        assert np.array_equal(wanted.ids, found.ids)
        assert np.array_equal(wanted.offsets, found.offsets)


def test_where_tokens_begin_is_remembered_too() -> None:
    remembering = CachedEncoder(PLAIN["byte level"])
    for _ in range(2):
        assert remembering.character_starts("问 question") == PLAIN["byte level"].character_starts(
            "问 question"
        )


def test_what_an_engine_has_proved_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = plain("byte level")
    encoder.encode(["question 问题 " * (1 << 15)])
    monkeypatch.setattr(encoder, "_agree", lambda *_: pytest.fail("proved twice"))
    CachedEncoder(encoder).encode(["an answer"])
