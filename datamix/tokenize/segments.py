"""From a rendering to what is encoded: ids of control tokens, and segments of plain text.

A rendering is cut at every control token that the *template* wrote and at the borders of trained spans. Each
segment between two cuts is encoded as plain text by itself. For clean text this gives the ids of encoding the
whole rendering at once (the tokenizer cuts at control tokens too) with one exception: where a trained span
begins or ends inside a segment, no token straddles the border. Content that begins with white space could
merge with the newline of the header before it (1 in 3,500 Chinese records, Qwen2.5); here it does not, as at
inference, where the prompt ends at that border. So the trained tokens decode to exactly the text of the
answer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from datamix.tokenize.placeholders import Piece, Slot
from datamix.tokenize.special_tokens import WHITE_SPACE, ControlTokens, unescape


@dataclass(frozen=True)
class TextSegment:
    """Plain text between two cuts: constants and slots."""

    parts: tuple[str | Slot, ...]
    begins: bool  # at the start of the rendering, or after a control token where the tokenizer restarts there
    lstrip: bool = False  # the control token before it swallows white space
    rstrip: bool = False  # the one after it does

    def fill(self, texts: Sequence[str]) -> str:
        """The text of the segment with its slots filled."""
        copied = self._one_copied_slot
        if copied is not None:
            before, index, after = copied
            return f"{before}{texts[index]}{after}"
        text = "".join(part if isinstance(part, str) else part.fill(texts[part.index]) for part in self.parts)
        if self.lstrip:
            text = text.lstrip(WHITE_SPACE)
        return text.rstrip(WHITE_SPACE) if self.rstrip else text

    @cached_property
    def _one_copied_slot(self) -> tuple[str, int, str] | None:
        """(text before, slot index, text after) of a segment with one copied slot: nearly all segments."""
        slots = [place for place, part in enumerate(self.parts) if isinstance(part, Slot)]
        if len(slots) != 1 or self.lstrip or self.rstrip:
            return None
        before, slot, after = self.parts[: slots[0]], self.parts[slots[0]], self.parts[slots[0] + 1 :]
        if not isinstance(slot, Slot) or not slot.copies:
            return None
        return "".join(map(str, before)), slot.index, "".join(map(str, after))

    @cached_property
    def is_constant(self) -> bool:
        return all(isinstance(part, str) for part in self.parts)


@dataclass(frozen=True)
class Layout:
    """What is encoded for one shape of conversation: entries in order, each trained or not."""

    entries: tuple[int | TextSegment, ...]  # a control id, or text
    trained: tuple[bool, ...]
    weights: tuple[float, ...] | None = None  # of the loss of each entry, where turns have any but 1

    @cached_property
    def slots(self) -> tuple[tuple[int, TextSegment], ...]:
        """The entries that depend on the record's texts, each with its place."""
        return tuple(
            (place, entry)
            for place, entry in enumerate(self.entries)
            if isinstance(entry, TextSegment) and not entry.is_constant
        )

    @cached_property
    def constants(self) -> tuple[tuple[TextSegment, tuple[int, ...]], ...]:
        """The constant texts, each with the places of its entries."""
        places: dict[TextSegment, list[int]] = {}
        for place, entry in enumerate(self.entries):
            if isinstance(entry, TextSegment) and entry.is_constant:
                places.setdefault(entry, []).append(place)
        return tuple((segment, tuple(at)) for segment, at in places.items())

    @cached_property
    def controls(self) -> tuple[int, ...]:
        """-1 less the id of each entry that is a control token; 0 in place of texts."""
        return tuple(-1 - entry if isinstance(entry, int) else 0 for entry in self.entries)

    def part(self, trained: bool) -> Layout:
        """Only the entries that are trained, or only the others."""
        entries = tuple(e for e, flag in zip(self.entries, self.trained, strict=True) if flag == trained)
        return Layout(entries, (trained,) * len(entries))


class _LayoutBuilder:
    """Collects entries; text accumulates until a cut."""

    def __init__(self, restarts: bool) -> None:
        self._restarts = restarts
        self.entries: list[int | TextSegment] = []
        self.trained: list[bool] = []
        self._parts: list[str | Slot] = []
        self._begins = True
        self._lstrip = False

    def text(self, part: str | Slot) -> None:
        self._parts.append(part)

    def cut(self, trained: bool, rstrip: bool = False) -> None:
        """End the current segment, which is ``trained`` or not."""
        if self._parts:
            segment = TextSegment(tuple(self._parts), self._begins, self._lstrip, rstrip)
            if segment.is_constant:
                segment = TextSegment((segment.fill(()),), self._begins)
            if segment.parts != ("",):
                self.entries.append(segment)
                self.trained.append(trained)
            self._begins = False
            self._lstrip = False
            self._parts = []

    def control(self, token_id: int, trained: bool, rstrip: bool) -> None:
        self.entries.append(token_id)
        self.trained.append(trained)
        self._begins = self._restarts
        self._lstrip = rstrip


class _TrainedSpans:
    """The trained spans of a rendering: in order, disjoint."""

    def __init__(self, spans: Sequence[tuple[int, int]], cuts: Sequence[tuple[int, int]]) -> None:
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]
        self._borders = sorted({place for span in cuts for place in span})

    def contains(self, place: int) -> bool:
        return bisect_right(self._starts, place) > bisect_right(self._ends, place)

    def borders(self, first: int, stop: int) -> list[int]:
        """The borders in ``[first, stop)``."""
        return self._borders[bisect_left(self._borders, first) : bisect_left(self._borders, stop)]


def build_layout(
    pieces: Sequence[Piece],
    spans: Sequence[tuple[int, int]],
    control: ControlTokens,
    restarts: bool,
    cuts: Sequence[tuple[int, int]] | None = None,
) -> Layout:
    """Cut pieces at control tokens and at the borders of ``spans`` (trained, in order, disjoint).

    ``cuts``: other spans at whose borders to cut, for the same entries with other ones trained.
    ``restarts``: whether the tokenizer treats text after a control token as the beginning of a text.
    """
    builder, trained = _LayoutBuilder(restarts), _TrainedSpans(spans, spans if cuts is None else cuts)
    for piece in pieces:
        if trained.borders(piece.start, piece.start + 1):
            builder.cut(trained.contains(piece.start - 1))
        if piece.slot is not None:
            builder.text(piece.slot)
            continue
        at = piece.start
        for match in [*control.find(piece.text), None]:
            stop = piece.end if match is None else piece.start + match.start
            for border in trained.borders(at + 1, stop):
                builder.text(unescape(piece.text[at - piece.start : border - piece.start]))
                builder.cut(trained.contains(border - 1))
                at = border
            if stop > at:
                builder.text(unescape(piece.text[at - piece.start : stop - piece.start]))
            if match is not None:
                builder.cut(trained.contains(stop - 1), rstrip=match.token.lstrip)
                builder.control(match.token.id, trained.contains(stop), match.token.rstrip)
                at = piece.start + match.end
    builder.cut(bool(pieces) and trained.contains(pieces[-1].end - 1))
    return Layout(tuple(builder.entries), tuple(builder.trained))


def with_ending(layout: Layout, token_id: int, trained: bool) -> Layout:
    """The layout with one more token at its end."""
    weights = layout.weights and (*layout.weights, layout.weights[-1] if layout.trained[-1] else 1.0)
    return Layout((*layout.entries, token_id), (*layout.trained, trained), weights)
