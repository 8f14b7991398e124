"""The trained span of each assistant turn, located in the rendering of its conversation.

A turn is trained from where its generation prompt ends (the model is given the turn's header) to the token
that ends the turn, included; the newline after it is not. Three cases have no such token. If the next turn
opens with a control token at once (ChatGLM4's ``<|user|>``), that token is the stop and is trained. At the
end of the conversation the tokenizer's EOS is added. Otherwise (Alpaca's text headers) nothing is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from datamix.tokenize.chat_template import TemplateFailure
from datamix.tokenize.placeholders import SENTINEL, Piece, PlaceholderRender, Rendering, TemplateTraits
from datamix.tokenize.special_tokens import ControlTokens


@dataclass(frozen=True)
class LossSpan:
    """A trained span ``[start, end)`` of a rendering; ``stops`` is False where EOS must be added after it."""

    start: int
    end: int
    stops: bool


@dataclass(frozen=True)
class _TurnBorders:
    """Where a turn begins and ends, relative to the control tokens next to its texts."""

    start: int  # from the end of the last control token before its first text
    header: str  # the text between the two
    end: int  # from the start of the first control token after its last text
    gap: str  # the text between the two
    stops: bool


class TurnFinder:
    """Finds the trained spans of assistant turns in the rendering of one conversation.

    A border costs a rendering of the turns up to it. Where the template wrote the same around turns of the
    same kinds, the borders of the first hold for the others: a conversation of a hundred turns costs a few
    renderings. They are not carried over to other conversations, so that spans depend on nothing else.
    """

    def __init__(
        self,
        placeholders: PlaceholderRender,
        full: Rendering,
        control: ControlTokens,
        traits: TemplateTraits,
    ) -> None:
        self._placeholders = placeholders
        self._full = full
        self._control = control
        self._traits = traits
        self._borders: dict[Any, _TurnBorders] = {}
        self._slots = full.slots()
        self._places: dict[int, list[int]] = {}  # the places of each turn's slots in self._slots
        for place, piece in enumerate(self._slots):
            self._places.setdefault(piece.turn, []).append(place)

    def span(self, turn: int) -> LossSpan | None:
        """The span of one assistant turn; None where the template wrote nothing of it.

        Raises TemplateFailure where the turn is written but its borders cannot be determined.
        """
        slots, places = self._slots, self._places.get(turn, [])
        self._require_written(turn, [slots[place] for place in places])
        if not places:
            return None
        first, last = places[0], places[-1]
        if last - first >= len(places):
            raise TemplateFailure("the template mixes an assistant turn with others")
        low = slots[first - 1].end if first else 0
        high = slots[last + 1].start if last + 1 < len(slots) else len(self._full.text)
        return self._between(turn, (low, slots[first].start), (slots[last].end, high))

    def _between(self, turn: int, before: tuple[int, int], after: tuple[int, int]) -> LossSpan:
        """The span of a turn that begins in the constant text ``before`` and ends in that of ``after``."""
        text = self._full.text
        left = before[0] + max((match.end for match in self._control.find(text[slice(*before)])), default=0)
        right = after[0] + min((match.start for match in self._control.find(text[slice(*after)])), default=0)
        kinds = tuple(map(self._kind, range(turn - 1, turn + 2)))
        context = (kinds, text[before[0] : left], text[right : after[1]])
        borders = self._borders.get(context)
        if borders is not None:
            start, end = left + borders.start, right + borders.end
            header, gap = text[left : max(start, left)], text[min(end, right) : right]
            is_equal = header == borders.header and gap == borders.gap
            if is_equal and start <= before[1] and end >= after[0]:
                return LossSpan(start, end, borders.stops)
        end, stops = self._end(turn, *after)
        start = self._start(turn, *before)
        header, gap = text[left : max(start, left)], text[min(end, right) : right]
        self._borders[context] = _TurnBorders(start - left, header, end - right, gap, stops)
        return LossSpan(start, end, stops)

    def _kind(self, turn: int) -> tuple[Any, ...] | None:
        """Role and fields of a turn, and whether its content is blank; None where there is no such turn."""
        if not 0 <= turn < len(self._placeholders.messages):
            return None
        message = self._placeholders.messages[turn]
        return (message["role"], *message, not (message.get("content") or "").strip())

    def _require_written(self, turn: int, slots: list[Piece]) -> None:
        """Content and calls of a trained turn must be in the rendering (its reasoning may be dropped)."""
        message = self._placeholders.messages[turn]
        written = "".join(piece.text for piece in slots)
        content = message.get("content")
        if content and not content.isspace() and content.strip() not in written:
            raise TemplateFailure("the template does not write the content of an assistant turn")
        calls = message.get("tool_calls")
        names = SENTINEL.findall(json.dumps(calls, ensure_ascii=False)) if calls else []
        indices = {str(piece.slot.index) for piece in slots if piece.slot is not None}
        if names and names[0][0] not in indices:
            raise TemplateFailure("the template does not write the tool calls of an assistant turn")

    def _start(self, turn: int, low: int, first: int) -> int:
        """Where the generation prompt for a turn ends, in the constant text before its first slot."""
        text = self._full.text
        try:
            prompt = self._placeholders.render(turn, generation_prompt=True)
        except TemplateFailure:  # no template renders a conversation without turns
            return first
        if low <= len(prompt.text) <= first and text.startswith(prompt.text):
            return self._after_header(len(prompt.text), first)
        slots = prompt.slots()  # the template rewrote earlier turns: compare only what follows the last slot
        tail = prompt.text[slots[-1].end :] if slots else prompt.text
        shared = low + _common_prefix(tail, text[low:first])
        if shared == low + len(tail):
            return self._after_header(shared, first)
        return self._snap(low, shared, first)

    def _after_header(self, place: int, first: int) -> int:
        """Behind the turn's header, where the template has no generation prompt that would include it."""
        after = place + len(self._traits.header)
        return after if after <= first and self._full.text.startswith(self._traits.header, place) else place

    def _snap(self, low: int, place: int, first: int) -> int:
        """The last border of a control token or after white space up to ``place``; else the first slot."""
        if place == first:
            return place
        matches = self._control.find(self._full.text[low:first])
        edges = [low + edge for match in matches for edge in (match.start, match.end)]
        borders = [edge for edge in edges if edge <= place]
        borders += [at for at in range(low + 1, place + 1) if self._full.text[at - 1].isspace()]
        inside = {at for match in matches for at in range(low + match.start + 1, low + match.end)}
        return max((at for at in borders if at not in inside), default=first)

    def _end(self, turn: int, last: int, high: int) -> tuple[int, bool]:
        """Where a turn ends, in the constant text after its last slot, and whether a stop token ends it."""
        after = self._full.text[last:high]
        tail = len(after)
        if turn + 1 < len(self._placeholders.messages):
            tail = self._tail_length(turn, last, after)
        matches = self._control.find(after)
        in_tail = [match for match in matches if match.end <= tail]
        if in_tail:
            ending = next((m for m in in_tail if m.token.text == self._traits.ending), in_tail[-1])
            return last + ending.end, True
        if tail == len(after) and high == len(self._full.text):
            return last + len(after), False
        following = next((match for match in matches if match.start >= tail), None)
        if following is not None and not after[tail : following.start].strip():
            return last + following.end, True
        return last + len(after[:tail].rstrip()), True

    def _tail_length(self, turn: int, last: int, after: str) -> int:
        """How much of the text after a turn's last slot the template also writes when the turn is last."""
        alone = self._placeholders.render(turn + 1, generation_prompt=False)
        if len(alone.text) >= last and self._full.text.startswith(alone.text):
            return min(len(alone.text) - last, len(after))
        index = next(piece.slot.index for piece in self._slots if piece.slot and piece.end == last)
        ends = [piece.end for piece in alone.slots() if piece.slot and piece.slot.index == index]
        if not ends:
            raise TemplateFailure("the template does not write an assistant turn when it is the last")
        return _common_prefix(alone.text[ends[-1] :], after)


class RealTurnFinder:
    """Finds trained spans from the real texts alone, for records whose texts change what the template writes.

    A turn begins where the rendering of the turns before it, with generation prompt, ends. It ends at the
    template's first control token after it that ends an answer. Anything less certain is a TemplateFailure.
    """

    def __init__(
        self,
        placeholders: PlaceholderRender,
        full: Rendering,
        control: ControlTokens,
        traits: TemplateTraits,
    ) -> None:
        self._placeholders = placeholders
        self._full = full
        self._control = control
        self._traits = traits

    def span(self, turn: int) -> LossSpan | None:
        """The span of one assistant turn. Raises TemplateFailure where it cannot be determined."""
        prompt = self._placeholders.render(turn, generation_prompt=True).text + self._traits.header
        if not self._full.text.startswith(prompt):
            raise TemplateFailure(
                "the template reacts to the text of a turn and rewrites the turns before it"
            )
        matches = self._control.find(self._full.text[len(prompt) :])
        ending = next((match for match in matches if match.token.text == self._traits.ending), None)
        if ending is None:
            raise TemplateFailure(
                "the template reacts to the text of a turn and has no token that ends a turn"
            )
        return LossSpan(len(prompt), len(prompt) + ending.end, True)


def _common_prefix(a: str, b: str) -> int:
    """The number of leading characters that two texts share."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # bisect on equality of slices: compares in C
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
