"""Conversations rendered with placeholders: the constant text of a template, and where it writes the data.

A template is rendered once per *shape* of conversation (roles, which fields are present, tools, arguments)
with a sentinel in each slot. White space of a known form pads each sentinel, so that the rendering shows
where a slot is and what the template does to its text: nothing, strip newlines, strip all, write it as JSON.
The rest is constant. With a record's texts filled in this gives the record's rendering; ``renderer`` compares
it with the real one wherever ``template_analysis`` cannot exclude that the template reacts to the texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datamix.tokenize.chat_template import ChatTemplate, TemplateFailure
from datamix.tokenize.conversation import USUAL_FORM, Conversation, MessageForm, map_strings, to_message
from datamix.tokenize.special_tokens import RESERVED, ControlTokens, unescape

_NEWLINES = 7  # more than any template writes in a row
_LEFT, _RIGHT = "\n" * _NEWLINES + "\u2003", "\u2003" + "\n" * _NEWLINES  # white space around a sentinel
_JSON_LEFT, _JSON_RIGHT = _LEFT.replace("\n", "\\n"), _RIGHT.replace("\n", "\\n")
SENTINEL = re.compile('\U000f5e00(\\d+)(\\\\?)"\U000f5e01')  # slot number; a backslash where written as JSON


@dataclass(frozen=True)
class Slot:
    """A place for a text of the data, and what the template does to that text."""

    index: int  # into Conversation.slots()
    left: str | None  # characters stripped: "" none, None all white space
    right: str | None
    json: bool  # written as the inside of a JSON string

    @property
    def copies(self) -> bool:
        """Whether the template writes the text unchanged."""
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
    """A conversation rendered with sentinels, cut into pieces on first use."""

    text: str
    slot_turns: tuple[int, ...]  # the turn of each slot

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Constants and slots in order. Raises TemplateFailure where the template cut a sentinel."""
        return tuple(_pieces(self.text, self.slot_turns))

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
    """Renders the first turns of one conversation, with or without generation prompt.

    With ``slots`` the slots hold sentinels; without, the texts themselves. The data's other strings are
    escaped. ``cache`` stores renderings with sentinels: conversations that begin alike share them.
    """

    def __init__(
        self,
        conversation: Conversation,
        template: ChatTemplate,
        control: ControlTokens,
        slots: bool,
        form: MessageForm = USUAL_FORM,
        cache: dict[Any, Rendering] | None = None,
    ) -> None:
        self._template = template
        self._shape = (*conversation.shape(), form) if slots and cache is not None else None
        self._cache = cache if cache is not None else {}
        slot_turns: list[int] = []

        def exact(text: str) -> str:
            if RESERVED.search(text):
                raise TemplateFailure("the text holds private-use characters that are reserved for marking")
            return control.escape(text)

        def sentinel(_: str) -> str:
            slot_turns.append(len(self.messages))  # the turn whose message is being built
            return f'{_LEFT}\U000f5e00{len(slot_turns) - 1}"\U000f5e01{_RIGHT}'

        self.messages: list[dict[str, Any]] = []
        for turn in conversation.turns:
            self.messages.append(to_message(turn, sentinel if slots else exact, exact, form))
        self._tools = map_strings(conversation.tools, exact)
        self._kwargs = map_strings(conversation.kwargs, exact)
        self._slot_turns = slot_turns

    def render(self, num_turns: int, generation_prompt: bool) -> Rendering:
        """The rendering of the first turns. Raises TemplateFailure where the template refuses them."""
        key = None
        if self._shape is not None:
            turns, tools, kwargs, form = self._shape
            key = (turns[:num_turns], tools, kwargs, form, generation_prompt)
            if key in self._cache:
                return self._cache[key]
        text = self._template.render(self.messages[:num_turns], self._tools, self._kwargs, generation_prompt)
        rendering = Rendering(text, tuple(self._slot_turns))
        if key is not None:
            self._cache[key] = rendering
        return rendering

    def render_messages(self, messages: list[dict[str, Any]]) -> str:
        """The text of other messages with the conversation's tools and arguments, such as changed copies."""
        return self._template.render(messages, self._tools, self._kwargs, False)

    def leaves_out(self, full: Rendering) -> bool:
        """Whether the template omits a text of the conversation, except reasoning of earlier turns."""
        written = {piece.slot.index for piece in full.slots() if piece.slot is not None}
        history = {
            int(match.group(1))
            for message in self.messages[:-1]
            for match in SENTINEL.finditer(message.get("reasoning_content", ""))
        }
        return not written | history >= set(range(len(self._slot_turns)))


def _pieces(text: str, slot_turns: Sequence[int]) -> list[Piece]:
    pieces: list[Piece] = []
    at = 0
    for match in SENTINEL.finditer(text):
        is_json = bool(match.group(2))
        before, after = text[at : match.start()], text[match.end() : match.end() + len(_JSON_RIGHT)]
        left, width = _padding(before.endswith, is_json, (_JSON_LEFT, _LEFT))
        right, width_after = _padding(after.startswith, is_json, (_JSON_RIGHT, _RIGHT))
        start, end = match.start() - width, match.end() + width_after
        if start > at:
            pieces.append(Piece(at, start, text[at:start], None, -1))
        index = int(match.group(1))
        pieces.append(
            Piece(start, end, text[start:end], Slot(index, left, right, is_json), slot_turns[index])
        )
        at = end
    if at < len(text):
        pieces.append(Piece(at, len(text), text[at:], None, -1))
    if any(piece.slot is None and "\U000f5e00" in piece.text for piece in pieces):
        raise TemplateFailure("the template cuts or rewrites the text of a turn")
    return pieces


def _padding(
    adjoins: Callable[[str], bool], is_json: bool, padding: tuple[str, str]
) -> tuple[str | None, int]:
    """What was stripped next to a sentinel, and how many characters of its padding remain."""
    whole = padding[0] if is_json else padding[1]
    if adjoins(whole):
        return "", len(whole)
    return ("\n", 1) if adjoins("\u2003") else (None, 0)
