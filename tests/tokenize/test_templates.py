"""Every chat template: the text is what transformers renders, what is trained is the answer and its end, text stays text."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import encode_batches as make
import pytest
from encode_batches import Message
from encode_tokenizers import FAMILIES, SENTENCEPIECE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

IM_END = "<|im_end|>"
DEEPSEEK_END = "<｜end▁of▁sentence｜>"
# (content, is it the last turn) -> what is trained of that turn
ANSWERS: dict[str, Callable[[str, bool], str]] = {
    "chatml": lambda text, _: text + IM_END,
    "chatml-without-prompt": lambda text, _: text + IM_END,
    "qwen2.5": lambda text, _: text + IM_END,
    "qwen3": lambda text, last: ("<think>\n\n</think>\n\n" + text.lstrip("\n") if last else text) + IM_END,
    "llama3.1": lambda text, _: text.strip() + "<|eot_id|>",
    "mistral-v3": lambda text, _: (
        "  " + text.strip() + "</s>"
    ),  # the template's blank, and SentencePiece's before it
    "mistral-tekken": lambda text, _: text + "</s>",
    "gemma2": lambda text, _: text.strip() + "<end_of_turn>",
    "gemma3": lambda text, _: text.strip() + "<end_of_turn>",
    "phi3": lambda text, last: text + ("<|end|> \n<|endoftext|>" if last else "<|end|>"),
    "phi4": lambda text, _: text + IM_END,
    "deepseek-v3": lambda text, _: text + DEEPSEEK_END,
    "deepseek-r1": lambda text, _: text + DEEPSEEK_END,
    "chatglm4": lambda text, _: "\n" + text + "<|user|>",
    "vicuna": lambda text, _: " " + text.strip() + "</s>",
    "alpaca": lambda text, last: text + "\n\n</s>" if last else text,
}
NO_SYSTEM = {"gemma2"}
LITERALS = sorted({token for special, added, _, _ in FAMILIES.values() for token in [*special, *added]})

words = st.sampled_from(
    [
        "hello",
        "世界",
        " ",
        "\n",
        "\n\n",
        "  ",
        "\t",
        "。",
        "1234",
        "don't",
        "👩‍👩‍👧‍👦",
        "é",
        "e\u0301",
        "{",
        '"',
        "\\",
        "\x00",
        "\u2028",
    ]
)
texts = st.lists(
    words | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=6
)
contents = texts.map("".join).filter(str.strip)
nasty = st.lists(words | st.sampled_from(LITERALS), min_size=1, max_size=6).map("".join).filter(str.strip)


def conversations(content: st.SearchStrategy[str]) -> st.SearchStrategy[list[Message]]:
    exchange = st.tuples(content.map(make.user), content.map(make.assistant)).map(list)
    exchanges = st.lists(exchange, min_size=1, max_size=3).map(
        lambda parts: [turn for part in parts for turn in part]
    )
    opening = st.lists(content.map(make.system), max_size=1)
    return st.tuples(opening, exchanges).map(lambda both: both[0] + both[1])


@pytest.fixture(autouse=True, scope="module")
def frozen_clock() -> Iterator[None]:
    """transformers' own rendering reads the clock: give it the day that datamix gives."""
    from transformers.utils import chat_template_utils

    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return datetime.datetime(2024, 7, 26)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", Day)
        yield


def fitting(name: str, batch: list[list[Message]]) -> list[list[Message]]:
    return (
        [[turn for turn in one if turn["role"] != "system"] for one in batch] if name in NO_SYSTEM else batch
    )


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(batch=st.lists(conversations(contents), min_size=1, max_size=6))
def test_answers_and_their_ends_are_trained_and_nothing_else(
    name: str, batch: list[list[Message]], tokenizers: dict[str, Path]
) -> None:
    encoder = make.encoder(tokenizers[name])
    batch = fitting(name, batch)
    tokens, _ = encoder.encode(make.sft(batch), "sft")
    for messages, row in zip(batch, tokens.to_pylist(), strict=True):
        assert row["reason"] is None
        answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        wanted = [ANSWERS[name](text, at == len(answers) - 1) for at, text in enumerate(answers)]
        found = make.trained_text(encoder, row)
        assert found == wanted
        assert row["loss"] == sum(row["mask"])
        assert row["length"] == len(row["ids"])
        assert row["mask"][0] == 0


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - SENTENCEPIECE))
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(batch=st.lists(conversations(contents), min_size=1, max_size=6))
def test_the_text_is_what_transformers_renders(
    name: str, batch: list[list[Message]], tokenizers: dict[str, Path]
) -> None:
    encoder = make.encoder(tokenizers[name])
    tokens, _ = encoder.encode(make.sft(batch), "sft")
    for messages, row in zip(batch, tokens.to_pylist(), strict=True):
        added = "<|user|>" if name == "chatglm4" else ""
        assert encoder.decode(row["ids"]) == make.rendered(tokenizers[name], messages) + added


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(batch=st.lists(conversations(nasty), min_size=1, max_size=6))
def test_no_literal_in_a_text_becomes_a_control_token(
    name: str, batch: list[list[Message]], tokenizers: dict[str, Path]
) -> None:
    encoder = make.encoder(tokenizers[name], inline_tags="text")
    batch = fitting(name, batch)
    plain = [[{**turn, "content": "x"} for turn in one] for one in batch]
    control = {token.id for token in encoder.control.tokens}
    tokens, counts = encoder.encode(make.sft(batch), "sft")
    wanted, _ = encoder.encode(make.sft(plain), "sft")
    for row, reference in zip(tokens.to_pylist(), wanted.to_pylist(), strict=True):
        if row["reason"] is None:
            assert [id_ for id_ in row["ids"] if id_ in control] == [
                id_ for id_ in reference["ids"] if id_ in control
            ]
        else:
            assert row["reason"] == "template"
            assert name in ("qwen3", "deepseek-r1")
    own = [token.text for token in encoder.control.tokens]
    held = sum(any(text in turn["content"] for turn in one for text in own) for one in batch)
    assert counts.get("special_text", 0) == held


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_equal_encoding_the_whole_rendering_at_once(name: str, tokenizers: dict[str, Path]) -> None:
    conversation = [
        make.user("How do I add 1 and 2?"),
        make.assistant("像这样: print(1 + 2)\n\nThree."),
        make.user("谢谢!"),
    ]
    conversation.append(make.assistant("You're welcome."))
    encoder = make.encoder(tokenizers[name])
    row = encoder.encode(make.sft([conversation]), "sft")[0].to_pylist()[0]
    text = make.rendered(tokenizers[name], conversation)
    whole = make.reference(tokenizers[name])(text, add_special_tokens=False)["input_ids"]
    user = {token.text: token.id for token in encoder.control.tokens}.get("<|user|>")
    added = {"chatglm4": [user], "alpaca": [encoder.spec.tokenizer.eos_token_id]}.get(name, [])
    assert row["ids"] == [*whole, *added]


def test_a_template_that_refuses_a_conversation_gives_its_reason(tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["gemma2"])
    rows = [
        [make.system("Be kind."), make.user("q"), make.assistant("a")],
        [make.user("q"), make.assistant("a")],
    ]
    tokens, counts = encoder.encode(make.sft(rows), "sft")
    assert tokens.column("reason").to_pylist() == ["template", None]
    assert tokens.column("ids").to_pylist()[0] == []
    assert counts == {"template: System role not supported": 1}
