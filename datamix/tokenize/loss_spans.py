"""The trained spans of each assistant turn, located in the rendering of its conversation.

The rule: what the model must produce, to its stop, and nothing else. A turn is trained from where its
generation prompt ends (the model is given the turn's header) to the token that ends the turn, included; the
newline after it is not. ``template_traits`` knows which tokens end a turn. If a turn has none of its own and
the next turn opens with a control token at once (GLM's ``<|user|>`` and ``<|observation|>``), that token is
the stop and is trained; at the end of the conversation it is added. Where no token stops an answer (Alpaca's
text headers) EOS is added at the end and nothing elsewhere.

A turn has one span; two where a template writes the results of its calls before its content.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from datamix.tokenize.chat_template import TemplateFailure
from datamix.tokenize.placeholders import SENTINEL, PlaceholderRender, Rendering
from datamix.tokenize.special_tokens import ControlTokens
from datamix.tokenize.template_traits import TemplateTraits, common_prefix


@dataclass(frozen=True)
class LossSpan:
    """A trained span ``[start, end)`` of a rendering; ``ending``: a token to add after it where none stops it."""

    start: int
    end: int
    ending: int | None = None


@dataclass(frozen=True)
class _TurnBorders:
    """Where a turn begins and ends, relative to the control tokens next to its texts."""

    start: int  # from the end of the last control token before its first text
    header: str  # the text between the two
    end: int  # from the start of the first control token after its last text
    gap: str  # the text between the two
    ending: int | None


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
        self._starts = [piece.start for piece in self._slots]
        self._places: dict[int, list[int]] = {}  # the places of each turn's slots in self._slots
        for place, piece in enumerate(self._slots):
            self._places.setdefault(piece.turn, []).append(place)

    def spans(self, turn: int) -> list[LossSpan]:
        """The spans of one assistant turn; none where the template wrote nothing of it.

        Raises TemplateFailure where the turn is written but its borders cannot be determined, and where its
        calls, or its content in a turn without calls, are not written.
        """
        spans: list[LossSpan] = []
        slots = self._slots
        for run in _runs(self._written_places(turn)):
            first, last = run[0], run[-1]
            low = slots[first - 1].end if first else 0
            high = slots[last + 1].start if last + 1 < len(slots) else len(self._full.text)
            before, after = (low, slots[first].start), (slots[last].end, high)
            spans.append(self._between(turn, before, after, continues=bool(spans)))
        spans = spans or self._span_without_text(turn)
        self._require_written(turn, "".join(self._full.text[span.start : span.end] for span in spans))
        return spans

    def _written_places(self, turn: int) -> list[int]:
        """The places of a turn's slots that belong to the turn.

        A template may repeat a call's name in the header of its result, or write results inside the turn:
        the places are those that it also writes when the turn is the last, in their order.
        """
        places = self._places.get(turn, [])
        indices = [piece.slot.index for place in places if (piece := self._slots[place]).slot is not None]
        is_plain = len(set(indices)) == len(indices) and len(_runs(places)) == 1
        if is_plain or not places or turn + 1 == len(self._placeholders.messages):
            return places
        alone = self._placeholders.render(turn + 1, generation_prompt=False)
        expected = [piece.slot.index for piece in alone.slots() if piece.slot and piece.turn == turn]
        written = []
        for place, index in zip(places, indices, strict=True):
            if index in expected:
                written.append(place)
                expected = expected[expected.index(index) + 1 :]
        return written

    def _between(
        self, turn: int, before: tuple[int, int], after: tuple[int, int], continues: bool
    ) -> LossSpan:
        """The span of a turn that begins in the constant text ``before`` and ends in that of ``after``.

        ``continues``: the turn had a span before it, and goes on after what the template wrote between.
        """
        text = self._full.text
        left = before[0] + max((match.end for match in self._control.find(text[slice(*before)])), default=0)
        right = after[0] + min((match.start for match in self._control.find(text[slice(*after)])), default=0)
        kinds = (*map(self._kind, range(turn - 1, turn + 2)), self._next_role(after[1]), continues)
        context = (kinds, text[before[0] : left], text[right : after[1]])
        borders = self._borders.get(context)
        if borders is not None:
            start, end = left + borders.start, right + borders.end
            header, gap = text[left : max(start, left)], text[min(end, right) : right]
            is_equal = header == borders.header and gap == borders.gap
            if is_equal and start <= before[1] and end >= after[0]:
                return LossSpan(start, end, borders.ending)
        end, ending = self._stop(turn, after, self._tail_length(turn, *after))
        end += after[0]
        start = left if continues else self._start(turn, *before)
        header, gap = text[left : max(start, left)], text[min(end, right) : right]
        self._borders[context] = _TurnBorders(start - left, header, end - right, gap, ending)
        return LossSpan(start, end, ending)

    def _span_without_text(self, turn: int) -> list[LossSpan]:
        """The span of a turn without a slot: empty content, or calls without a free text."""
        low = max((piece.end for piece in self._slots if piece.turn < turn), default=0)
        starts = (piece.start for piece in self._slots if piece.turn > turn and piece.start >= low)
        high = next(starts, len(self._full.text))
        tail = self._tail_length(turn, low, high)
        start = self._start(turn, low, high)
        if start > low + tail:  # also where the template writes nothing for such a turn
            return []
        end, ending = self._stop(turn, (start, high), low + tail - start)
        return [LossSpan(start, start + end, ending)] if end else []

    def _kind(self, turn: int) -> tuple[Any, ...] | None:
        """Role and fields of a turn, and whether its content is blank; None where there is no such turn."""
        if not 0 <= turn < len(self._placeholders.messages):
            return None
        message = self._placeholders.messages[turn]
        return (message["role"], *message, not _content(message).strip())

    def _require_written(self, turn: int, written: str) -> None:
        """Raise where the template wrote nothing of a call, or dropped the content of a turn without calls."""
        message = self._placeholders.messages[turn]
        content, calls = _content(message).strip(), message.get("tool_calls")
        if not calls and content and content not in written:
            raise TemplateFailure("the template does not write the content of an assistant turn")
        present = _slots_in(written)
        for call in calls if isinstance(calls, list) else []:
            fields = call if isinstance(call, dict) else {}
            function = fields.get("function")
            arguments = function.get("arguments") if isinstance(function, dict) else call
            has_identity = isinstance(fields.get("id"), str) and fields["id"] in written
            if not (_slots_in(arguments) <= present and (has_identity or _slots_in(call) & present)):
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
        tail = _after_last_slot(prompt)  # the template rewrote earlier turns: compare only what follows
        shared = low + common_prefix(tail, text[low:first])
        if shared == low + len(tail):
            return self._after_header(shared, first)
        header = text.rfind(self._traits.header, low, first) if self._traits.header else -1
        if header >= 0:
            fallback = header + len(self._traits.header)
        else:  # where the turns before end, by their own rendering
            tail = _after_last_slot(self._placeholders.render(turn, generation_prompt=False))
            fallback = low + len(tail) if text.startswith(tail, low) else first
        return self._snap(low, shared, first, fallback)

    def _after_header(self, place: int, first: int) -> int:
        """Behind the turn's header, where the generation prompt at ``place`` did not include it."""
        after = place + len(self._traits.header)
        return after if after <= first and self._full.text.startswith(self._traits.header, place) else place

    def _snap(self, low: int, place: int, first: int, fallback: int) -> int:
        """The last border of a control token or after white space up to ``place``; else ``fallback``."""
        if place == first:
            return place
        matches = self._control.find(self._full.text[low:first])
        edges = [low + edge for match in matches for edge in (match.start, match.end)]
        borders = [edge for edge in edges if low < edge <= place]
        borders += [at for at in range(low + 1, place + 1) if self._full.text[at - 1].isspace()]
        inside = {at for match in matches for at in range(low + match.start + 1, low + match.end)}
        return max((at for at in borders if at not in inside), default=fallback)

    def _stop(self, turn: int, between: tuple[int, int], tail: int) -> tuple[int, int | None]:
        """Where the stop of a turn ends in the text ``between``, of which ``tail`` characters are the turn's.

        The second value is the token to add after it, where the template writes none.
        """
        messages, after = self._placeholders.messages, self._full.text[slice(*between)]
        is_last = turn + 1 == len(messages)
        continues = self._next_role(between[1]) == "assistant"
        matches = self._control.find(after)
        tail = min((match.start for match in matches if match.start < tail < match.end), default=tail)
        stop = self._traits.stop_end(after, tail, matches, is_last, continues)
        if stop is not None:
            return stop, None
        if not is_last:
            return len(after[:tail].rstrip()), None
        has_calls = bool(messages[turn].get("tool_calls"))
        return len(after), self._traits.end_of_call if has_calls else self._traits.end_of_answer

    def _next_role(self, place: int) -> str | None:
        """The role of the turn whose text comes next at or after ``place``."""
        at = bisect_left(self._starts, place)
        return (
            self._placeholders.messages[self._slots[at].turn].get("role") if at < len(self._slots) else None
        )

    def _tail_length(self, turn: int, last: int, high: int) -> int:
        """How much of the text ``[last, high)`` the template also writes when the turn is the last."""
        after = self._full.text[last:high]
        if turn + 1 == len(self._placeholders.messages):
            return len(after)
        alone = self._placeholders.render(turn + 1, generation_prompt=False)
        if len(alone.text) >= last and self._full.text.startswith(alone.text):
            return min(len(alone.text) - last, len(after))
        index = next((piece.slot.index for piece in self._slots if piece.slot and piece.end == last), None)
        if index is None:  # no text comes before the turn
            return common_prefix(alone.text, after)
        ends = [piece.end for piece in alone.slots() if piece.slot and piece.slot.index == index]
        if not ends:
            raise TemplateFailure("the template does not write an assistant turn when it is the last")
        return common_prefix(alone.text[ends[-1] :], after)


class RealTurnFinder:
    """Finds trained spans from the real texts alone, for records whose texts change what the template writes.

    A turn begins where the rendering of the turns before it, with generation prompt, ends. It ends at its
    stop, within what the template also writes when the turn is the last. Anything less certain is a
    TemplateFailure.
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

    def spans(self, turn: int) -> list[LossSpan]:
        """The span of one assistant turn. Raises TemplateFailure where it cannot be determined."""
        full, is_last = self._full.text, turn + 1 == len(self._placeholders.messages)
        prompt = self._placeholders.render(turn, generation_prompt=True).text
        if full.startswith(prompt + self._traits.header):
            prompt += self._traits.header
        if not full.startswith(prompt):
            raise TemplateFailure(
                "the template reacts to the text of a turn and rewrites the turns before it"
            )
        alone = full if is_last else self._placeholders.render(turn + 1, generation_prompt=False).text
        after = full[len(prompt) :]
        tail = common_prefix(alone[len(prompt) :], after) if alone.startswith(prompt) else 0
        stop = self._traits.stop_end(after, tail, self._control.find(after), is_last)
        if stop is None or not tail:
            raise TemplateFailure(
                "the template reacts to the text of a turn and has no token that ends a turn"
            )
        return [LossSpan(len(prompt), len(prompt) + stop)]


def _runs(places: list[int]) -> list[list[int]]:
    """Consecutive numbers together: ``[1, 2, 5]`` -> ``[[1, 2], [5]]``."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] + 1 == place:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _slots_in(value: Any) -> set[str]:
    """The numbers of the slots whose sentinels are in a text or in JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {number for number, _ in SENTINEL.findall(text)}


def _after_last_slot(rendering: Rendering) -> str:
    slots = rendering.slots()
    return rendering.text[slots[-1].end :] if slots else rendering.text


def _content(message: dict[str, Any]) -> str:
    """The text of a message's content."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
