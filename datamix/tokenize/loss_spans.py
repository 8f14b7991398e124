"""What an assistant turn is trained on, found in the rendering of its conversation.

A turn is trained from where the generation prompt for that turn ends (the turn's header is what the
model is given) to the token that ends the turn, included; the newline after it is not. Three cases have no such token
of their own. If the next turn opens with a control token at once (ChatGLM4's ``<|user|>``), that token is the stop and
is trained. At the end of the conversation the tokenizer's EOS is added. Otherwise (Alpaca's text headers) nothing is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from datamix.tokenize.chat_template import TemplateFailure
from datamix.tokenize.placeholders import CORE, Piece, PlaceholderRender, Rendering, TemplateTraits
from datamix.tokenize.special_tokens import ControlTokens


@dataclass(frozen=True)
class LossSpan:
    """A trained stretch ``[start, end)``; ``stops`` is False where EOS has to be added after it."""

    start: int
    end: int
    stops: bool


@dataclass(frozen=True)
class _Borders:
    """Where a turn begins and ends, seen from the control tokens next to its texts."""

    start: int  # from the end of the last control token before its first text
    header: str  # what stands between the two
    end: int  # from the start of the first control token after its last text
    gap: str  # what stands between the two
    stops: bool


class TurnFinder:
    """Finds the trained spans of assistant turns in one conversation's rendering.

    A border costs a rendering of the turns up to it. Where the template wrote the same around turns of the same kinds, the
    borders found for the first are those of the others: a conversation of a hundred turns costs a few renderings. They are not
    carried over to other conversations, so that spans depend on nothing else.
    """

    def __init__(
        self, sketch: PlaceholderRender, full: Rendering, control: ControlTokens, habits: TemplateTraits
    ) -> None:
        self._sketch = sketch
        self._full = full
        self._control = control
        self._habits = habits
        self._known: dict[Any, _Borders] = {}
        self._slots = full.slots()
        self._places: dict[int, list[int]] = {}  # of each turn's slots among them
        for place, piece in enumerate(self._slots):
            self._places.setdefault(piece.turn, []).append(place)

    def span(self, turn: int) -> LossSpan | None:
        """The span of one assistant turn; None where the template wrote nothing of it.

        Raises TemplateFailure where the turn is there but its borders cannot be told.
        """
        slots, places = self._slots, self._places.get(turn, [])
        self._require_all_said(turn, [slots[place] for place in places])
        if not places:
            return None
        first, last = places[0], places[-1]
        if last - first >= len(places):
            raise TemplateFailure("the template mixes an assistant turn with others")
        low = slots[first - 1].end if first else 0
        high = slots[last + 1].start if last + 1 < len(slots) else len(self._full.text)
        return self._between(turn, (low, slots[first].start), (slots[last].end, high))

    def _between(self, turn: int, before: tuple[int, int], after: tuple[int, int]) -> LossSpan:
        """The span of a turn whose borders lie in two stretches of constant text."""
        text = self._full.text
        left = before[0] + max((one.end for one in self._control.find(text[slice(*before)])), default=0)
        right = after[0] + min((one.start for one in self._control.find(text[slice(*after)])), default=0)
        kinds = tuple(map(self._kind, range(turn - 1, turn + 2)))
        around = (kinds, text[before[0] : left], text[right : after[1]])
        known = self._known.get(around)
        if known is not None:
            start, end = left + known.start, right + known.end
            alike = (
                text[left : max(start, left)] == known.header and text[min(end, right) : right] == known.gap
            )
            if alike and start <= before[1] and end >= after[0]:
                return LossSpan(start, end, known.stops)
        end, stops = self._end(turn, *after)
        start = self._start(turn, *before)
        header, gap = text[left : max(start, left)], text[min(end, right) : right]
        self._known[around] = _Borders(start - left, header, end - right, gap, stops)
        return LossSpan(start, end, stops)

    def _kind(self, turn: int) -> tuple[Any, ...] | None:
        """What a turn is made of, None where there is none."""
        if not 0 <= turn < len(self._sketch.messages):
            return None
        message = self._sketch.messages[turn]
        return (message["role"], *message, not (message.get("content") or "").strip())

    def _require_all_said(self, turn: int, mine: list[Piece]) -> None:
        """Content and calls of a trained turn must be in the rendering (its reasoning may be dropped)."""
        message = self._sketch.messages[turn]
        found = "".join(piece.text for piece in mine)
        content = message.get("content")
        if content and not content.isspace() and content.strip() not in found:
            raise TemplateFailure("the template does not write what an assistant turn says")
        calls = message.get("tool_calls")
        names = CORE.findall(json.dumps(calls, ensure_ascii=False)) if calls else []
        if names and not any(
            piece.slot is not None and str(piece.slot.index) == names[0][0] for piece in mine
        ):
            raise TemplateFailure("the template does not write the tool calls of an assistant turn")

    def _start(self, turn: int, low: int, first: int) -> int:
        """Where the generation prompt for a turn ends, between the last text before it and its own first text."""
        text = self._full.text
        try:
            prompt = self._sketch.render(turn, generation_prompt=True)
        except TemplateFailure:  # no template renders a conversation without turns
            return first
        if low <= len(prompt.text) <= first and text.startswith(prompt.text):
            return self._after_header(len(prompt.text), first)
        given = prompt.slots()  # history was rewritten: compare what follows the last text only
        tail = prompt.text[given[-1].end :] if given else prompt.text
        shared = low + _common_prefix(tail, text[low:first])
        if shared == low + len(tail):
            return self._after_header(shared, first)
        return self._snap(low, shared, first)

    def _after_header(self, place: int, first: int) -> int:
        """Past the turn's header, where the template has no generation prompt that would hold it."""
        after = place + len(self._habits.header)
        return after if after <= first and self._full.text.startswith(self._habits.header, place) else place

    def _snap(self, low: int, place: int, first: int) -> int:
        """The last natural border up to ``place``: a control token's, or after white space; else the first text."""
        if place == first:
            return place
        found = self._control.find(self._full.text[low:first])
        borders = [low + edge for one in found for edge in (one.start, one.end) if low + edge <= place]
        borders += [at for at in range(low + 1, place + 1) if self._full.text[at - 1].isspace()]
        inside = {at for one in found for at in range(low + one.start + 1, low + one.end)}
        return max((at for at in borders if at not in inside), default=first)

    def _end(self, turn: int, last: int, high: int) -> tuple[int, bool]:
        """Where a turn ends, and whether a token there says so."""
        after = self._full.text[last:high]
        own = len(after)
        if turn + 1 < len(self._sketch.messages):
            own = self._own_tail(turn, last, after)
        found = self._control.find(after)
        mine = [one for one in found if one.end <= own]
        if mine:
            ending = next((one for one in mine if one.token.text == self._habits.ending), None)
            return last + (ending or mine[-1]).end, True
        if own == len(after) and high == len(self._full.text):
            return last + len(after), False
        following = next((one for one in found if one.start >= own), None)
        if following is not None and not after[own : following.start].strip():
            return last + following.end, True
        return last + len(after[:own].rstrip()), True

    def _own_tail(self, turn: int, last: int, after: str) -> int:
        """How much of the text after a turn's last slot is the turn's: what also stands there when it is the last."""
        alone = self._sketch.render(turn + 1, generation_prompt=False)
        if len(alone.text) >= last and self._full.text.startswith(alone.text):
            return min(len(alone.text) - last, len(after))
        closing = next(piece.slot for piece in self._full.slots() if piece.end == last)
        ends = [
            piece.end
            for piece in alone.slots()
            if piece.slot and closing and piece.slot.index == closing.index
        ]
        if not ends:
            raise TemplateFailure("the template does not write an assistant turn when it is the last")
        return _common_prefix(alone.text[ends[-1] :], after)


class RealTurnFinder:
    """Finds trained spans by the real texts alone, for records whose content changes how the template renders.

    A turn begins where the rendering of the turns before it, with generation prompt, ends, and ends at the first
    control token of the template's that ends an answer. Anything less certain is a TemplateFailure.
    """

    def __init__(
        self, sketch: PlaceholderRender, full: Rendering, control: ControlTokens, habits: TemplateTraits
    ) -> None:
        self._sketch = sketch
        self._full = full
        self._control = control
        self._habits = habits

    def span(self, turn: int) -> LossSpan | None:
        """The span of one assistant turn."""
        prompt = self._sketch.render(turn, generation_prompt=True).text + self._habits.header
        if not self._full.text.startswith(prompt):
            raise TemplateFailure("the template acts on what a turn says and rewrites the turns before it")
        found = self._control.find(self._full.text[len(prompt) :])
        ending = next((one for one in found if one.token.text == self._habits.ending), None)
        if ending is None:
            raise TemplateFailure("the template acts on what a turn says and has no token that ends a turn")
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
