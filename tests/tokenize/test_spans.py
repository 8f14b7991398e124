"""Borders found once for turns alike are those that every turn would be given by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from encode_batches import call, encoder
from encode_tokenizers import FAMILIES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamix.tokenize.chat_template import ChatTemplate, TemplateFailure
from datamix.tokenize.conversation import ChatTurn, Conversation
from datamix.tokenize.loss_spans import LossSpan, TurnFinder
from datamix.tokenize.placeholders import PlaceholderRender

ASK, ANSWER = ChatTurn("user", "问 q"), ChatTurn("assistant", "答 a")
NUMBERS = st.integers(0, 10**6)


def _call(number: int, says: bool) -> list[ChatTurn]:
    calls = [call("find", {"n": number, "q": "what", "more": bool(number % 2)})]
    return [
        ChatTurn("assistant", "let me see" if says else None, calls=calls),
        ChatTurn("tool", "found", tool_call_id="abcdefghi"),
    ]


exchanges = st.one_of(
    st.just([ASK, ANSWER]),
    st.just([ASK, ChatTurn("assistant", "a", reasoning="r")]),
    st.just([ASK, ANSWER._replace(train=False)]),
    st.lists(st.tuples(NUMBERS, st.booleans()), min_size=1, max_size=3).map(
        lambda steps: [ASK, *(turn for step in steps for turn in _call(*step)), ANSWER]
    ),
    st.just([ANSWER]),
    st.just([ASK, ChatTurn("assistant", " ")]),
)  # fmt: skip
conversations = st.tuples(st.booleans(), st.lists(exchanges, min_size=1, max_size=7)).map(
    lambda made: [
        *([ChatTurn("system", "be brief")] if made[0] else []),
        *(t for some in made[1] for t in some),
    ]
)


def found(finder: TurnFinder, turn: int) -> list[LossSpan] | str:
    try:
        return finder.spans(turn)
    except TemplateFailure as failure:
        return str(failure)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(turns=conversations)
def test_borders_of_turns_alike_are_those_of_each_alone(
    name: str, tokenizers: dict[str, Path], turns: list[ChatTurn]
) -> None:
    one: Any = encoder(tokenizers[name])
    chat = one._renderer
    sketch = PlaceholderRender(Conversation(turns, None, None), chat._template, one.control, slots=True)
    try:
        full = sketch.render(len(turns), generation_prompt=False)
        full.slots()
    except TemplateFailure:
        return
    together = TurnFinder(sketch, full, one.control, chat.traits)
    for place, turn in enumerate(turns):
        if turn.role == "assistant":
            alone = TurnFinder(sketch, full, one.control, chat.traits)
            assert found(together, place) == found(alone, place)


def test_a_long_conversation_costs_a_few_renderings(
    tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one: Any = encoder(tokenizers["qwen2.5"])
    turns = [turn for number in range(100) for turn in (ASK, *_call(number, says=number % 3 == 0), ANSWER)]
    chat, counted = one._renderer, []
    render = ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", lambda *given: counted.append(1) or render(*given))
    chat.render(Conversation(turns, None, None), "assistant")
    assert len(counted) < 25
