"""The worked example at the top of the package is true, step by step."""

from __future__ import annotations

from typing import Any

import encode_batches as make
import pytest
from encode_tokenizers import SHARED, TEMPLATES

import datamix.tokenize
from datamix.tokenize import EncodeSpec, find_tokenizer, load
from datamix.tokenize.conversation import ChatTurn, Conversation
from datamix.tokenize.loss_spans import TurnFinder
from datamix.tokenize.placeholders import Piece, PlaceholderRender
from datamix.tokenize.segments import TextSegment

QWEN = SHARED / "data/tokenizers/qwen2.5"


def written(pieces: list[Piece]) -> str:
    """Pieces as the example writes them: slots in braces."""
    texts = (f"{{{piece.slot.index}}}" if piece.slot else piece.text for piece in pieces)
    return "".join(texts).replace("\n", "⏎")


@pytest.mark.shared
@pytest.mark.skipif(not QWEN.is_dir(), reason=f"the tokenizer of Qwen2.5 is not at {QWEN}")
def test_the_worked_example_shows_what_the_code_does() -> None:
    lines = [line.strip() for line in str(datamix.tokenize.__doc__).splitlines() if line.startswith("    ")]
    question, answer, rendering, span, layout, ids, mask = lines
    files = find_tokenizer(str(QWEN), ".", chat_template=str(TEMPLATES / "chatml.jinja"))
    encoder: Any = load(EncodeSpec("sft", files, "assistant"))
    messages = [
        make.user(question.removeprefix("user: ")),
        make.assistant(answer.removeprefix("assistant: ")),
    ]
    conversation = Conversation([ChatTurn(m["role"], m["content"]) for m in messages], None, None)
    chat = encoder._renderer

    placeholders = PlaceholderRender(conversation, chat._template, encoder.control, slots=True)
    full = placeholders.render(2, generation_prompt=False)
    assert written(list(full.pieces)) == rendering

    found = TurnFinder(placeholders, full, encoder.control, chat.traits).spans(1)[0]
    prompt = placeholders.render(1, generation_prompt=True)
    assert found.start == len(prompt.text)
    *_, trained_slot, ending = full.pieces
    assert (trained_slot.start, found.end) == (found.start, ending.start + len("<|im_end|>"))
    assert written([trained_slot]) + ending.text[: found.end - ending.start] == span

    entries = chat.render(conversation, "assistant").layout
    shown = [
        "+" * trained + (f"'{segment_text(entry)}'" if isinstance(entry, TextSegment) else str(entry))
        for entry, trained in zip(entries.entries, entries.trained, strict=True)
    ]
    assert " ".join(shown) == layout

    row = encoder.encode(make.sft([messages]), "sft")[0].to_pylist()[0]
    assert row["ids"] == [int(word) for word in ids.split()[1:]]
    assert row["mask"] == [int(word) for word in mask.split()[1:]]


def segment_text(segment: TextSegment) -> str:
    parts = (part if isinstance(part, str) else f"{{{part.index}}}" for part in segment.parts)
    return "".join(parts).replace("\n", "⏎")
