"""The skeleton of a rendered conversation: what the template wrote, and where the data's texts stand.

A template is rendered once per *shape* of conversation (roles, which fields there are, tools, arguments) with sentinels
in the slots. Each sentinel stands in white space of a known form, so that the rendering shows not only where a slot is
but what the template does to it: nothing, strip newlines, strip all, write it as JSON. The rest is constant. Filled with
a record's texts, the skeleton gives its rendering; the encoder compares it with the real one wherever the template is
not known to be blind to what texts say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datamix.tokenize.chat_template import Renderer, TemplateFailure
from datamix.tokenize.conversation import ChatTurn, Conversation, exact_json, to_message
from datamix.tokenize.special_tokens import RESERVED, ControlTokens, unescape

_NEWLINES = 7  # more than any template writes in a row
_LEFT, _RIGHT = "\n" * _NEWLINES + "\u2003", "\u2003" + "\n" * _NEWLINES  # white space around a sentinel
_JSON_LEFT, _JSON_RIGHT = _LEFT.replace("\n", "\\n"), _RIGHT.replace("\n", "\\n")
CORE = re.compile('\U000f5e00(\\d+)(\\\\?)"\U000f5e01')


@dataclass(frozen=True)
class Slot:
    """Where a text of the data stands, and what the template does to it on the way."""

    index: int  # into Conversation.slots()
    left: str | None  # characters stripped: "" none, None all white space
    right: str | None
    json: bool  # written as the inside of a JSON string

    @property
    def copies(self) -> bool:
        """Whether the template writes the text as it is."""
        return self.left == "" and self.right == "" and not self.json

    def fill(self, text: str) -> str:
        """The text as the template writes it."""
        if self.left != "":
            text = text.lstrip(self.left)
        if self.right != "":
            text = text.rstrip(self.right)
        return json.dumps(text, ensure_ascii=False)[1:-1] if self.json else text


@dataclass(frozen=True)
class Piece:
    """A constant text, or a slot, at ``[start, end)`` of the rendering with sentinels."""

    start: int
    end: int
    text: str
    slot: Slot | None
    turn: int  # the turn whose slot it is; -1 for constants


@dataclass(frozen=True)
class Rendering:
    """A conversation rendered with sentinels, cut into pieces when they are asked for."""

    text: str
    owners: tuple[int, ...]  # the turn of each sentinel

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Constants and slots in order. Raises TemplateFailure where the template cut a sentinel."""
        return tuple(_pieces(self.text, self.owners))

    def slots(self) -> list[Piece]:
        """The pieces that are slots, in order."""
        return [piece for piece in self.pieces if piece.slot is not None]

    def fill(self, texts: list[str]) -> str:
        """The rendering with real texts in the slots."""
        return "".join(
            unescape(piece.text) if piece.slot is None else piece.slot.fill(texts[piece.slot.index])
            for piece in self.pieces
        )


class PlaceholderRender:
    """A conversation ready to be rendered in part: the first turns, with or without generation prompt.

    With ``slots`` the slots hold sentinels; without, the texts themselves. The data's other strings are escaped.
    ``known`` keeps what was rendered with sentinels: conversations that begin alike share it.
    """

    def __init__(
        self,
        conversation: Conversation,
        renderer: Renderer,
        control: ControlTokens,
        slots: bool,
        known: dict[Any, Rendering] | None = None,
    ) -> None:
        self._renderer = renderer
        self._shape = conversation.shape() if slots and known is not None else None
        self._known = known if known is not None else {}
        owners: list[int] = []

        def exact(text: str) -> str:
            if RESERVED.search(text):
                raise TemplateFailure("the text holds private-use characters that are kept for marking")
            return control.escape(text)

        def sentinel(_: str) -> str:
            owners.append(len(self.messages))  # the turn that is being dressed
            return f'{_LEFT}\U000f5e00{len(owners) - 1}"\U000f5e01{_RIGHT}'

        self.messages: list[dict[str, Any]] = []
        for turn in conversation.turns:
            self.messages.append(to_message(turn, sentinel if slots else exact, exact))
        self.tools = exact_json(conversation.tools, exact)
        self.kwargs = exact_json(conversation.kwargs, exact)
        self.owners = owners

    def render(self, num_turns: int, generation_prompt: bool) -> Rendering:
        """The first turns of the conversation, in pieces. Raises TemplateFailure."""
        key = None
        if self._shape is not None:
            turns, tools, kwargs = self._shape
            key = (turns[:num_turns], tools, kwargs, generation_prompt)
            if key in self._known:
                return self._known[key]
        text = self._renderer.render(self.messages[:num_turns], self.tools, self.kwargs, generation_prompt)
        found = Rendering(text, tuple(self.owners))
        if key is not None:
            self._known[key] = found
        return found

    def leaves_out(self, full: Rendering) -> bool:
        """Whether the template does not write something that a turn says, thoughts of earlier turns aside."""
        written = {piece.slot.index for piece in full.slots() if piece.slot is not None}
        history = {
            int(match.group(1))
            for message in self.messages[:-1]
            for match in CORE.finditer(message.get("reasoning_content", ""))
        }
        return not written | history >= set(range(len(self.owners)))


def _pieces(text: str, owners: Sequence[int]) -> list[Piece]:
    pieces: list[Piece] = []
    at = 0
    for match in CORE.finditer(text):
        is_json = bool(match.group(2))
        left, width = _padding_before(text, at, match.start(), is_json)
        right, end = _padding_after(text, match.end(), is_json)
        start, end = match.start() - width, match.end() + end
        if start > at:
            pieces.append(Piece(at, start, text[at:start], None, -1))
        index = int(match.group(1))
        pieces.append(Piece(start, end, text[start:end], Slot(index, left, right, is_json), owners[index]))
        at = end
    if at < len(text):
        pieces.append(Piece(at, len(text), text[at:], None, -1))
    if any(
        RESERVED.search(piece.text) for piece in pieces if piece.slot is None and "\U000f5e00" in piece.text
    ):
        raise TemplateFailure("the template cuts or rewrites what a turn says")
    return pieces


def _padding_before(text: str, low: int, place: int, is_json: bool) -> tuple[str | None, int]:
    """What was stripped before a sentinel at ``place``, and how many characters of padding are left there."""
    whole = _JSON_LEFT if is_json else _LEFT
    if text.endswith(whole, low, place):
        return "", len(whole)
    return ("\n", 1) if text.endswith("\u2003", low, place) else (None, 0)


def _padding_after(text: str, place: int, is_json: bool) -> tuple[str | None, int]:
    """The same after a sentinel that ends at ``place``."""
    whole = _JSON_RIGHT if is_json else _RIGHT
    if text.startswith(whole, place):
        return "", len(whole)
    return ("\n", 1) if text.startswith("\u2003", place) else (None, 0)


@dataclass(frozen=True)
class TemplateTraits:
    """What a template does with an ordinary question and answer."""

    ending: str | None  # the control token after an answer
    header: str  # what stands before an answer, where the template has no generation prompt
    writes_reasoning: bool
    writes_calls: bool  # of calls without an id: those read from inline tags have none


def template_traits(renderer: Renderer, control: ControlTokens) -> TemplateTraits:
    """Learn a template's habits from four short conversations."""
    question = ChatTurn("user", "q")
    plain = _rendered(renderer, control, (question, ChatTurn("assistant", "a")))
    prompt = _rendered(renderer, control, (question,), generation_prompt=True)
    bare = _rendered(renderer, control, (question,))
    ending, header = None, ""
    if plain is not None and plain.slots() and plain.slots()[-1].turn == 1:
        answer = plain.slots()[-1]
        found = control.find(plain.text[answer.end :])
        ending = found[0].token.text if found else None
        if prompt is not None and bare is not None and prompt.text == bare.text:
            written = plain.text[len(prompt.text) : answer.start]
            header = written if plain.text.startswith(prompt.text) and written.strip() else ""
    thought = _rendered(renderer, control, (question, ChatTurn("assistant", "a", reasoning="r")))
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": "y"}}}]
    called = _rendered(renderer, control, (question, ChatTurn("assistant", None, calls=calls)))
    return TemplateTraits(ending, header, _writes(thought, 2), _writes(called, 1))


def _rendered(
    renderer: Renderer, control: ControlTokens, turns: tuple[ChatTurn, ...], generation_prompt: bool = False
) -> Rendering | None:
    try:
        sketch = PlaceholderRender(Conversation(turns, None, None), renderer, control, slots=True)
        return sketch.render(len(turns), generation_prompt)
    except TemplateFailure:
        return None


def _writes(rendering: Rendering | None, slot: int) -> bool:
    return rendering is not None and any(
        piece.slot and piece.slot.index == slot for piece in rendering.slots()
    )
