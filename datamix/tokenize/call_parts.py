"""Where a template writes the arguments and the names of calls, for recipes that do not train them.

The place of a part is found by rendering the conversation once more without it: what the two renderings do not
share at their beginning and end is the part, whatever form the template gives it (JSON, XML, Python). Cost: one
rendering for each call of a shape, only with ``encode.mask``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from datamix.tokenize.placeholders import SENTINEL, PlaceholderRender, Rendering
from datamix.tokenize.special_tokens import ControlTokens
from datamix.tokenize.template_traits import common_prefix

Range = tuple[int, int]


def masked_parts(
    placeholders: PlaceholderRender, full: Rendering, control: ControlTokens, mask: Sequence[str]
) -> list[Range]:
    """The parts of calls in a rendering that ``mask`` names (``tool_args``, ``tool_names``), ``[start, end)`` each.

    Raises TemplateFailure where the template cannot write a call without the part.
    """
    keys = [key for name, key in (("tool_args", "arguments"), ("tool_names", "name")) if name in mask]
    slots = [piece for piece in full.pieces if piece.slot is not None]
    ranges = []
    calls = [
        (turn, number, function)
        for turn, message in enumerate(placeholders.messages)
        for number, function in enumerate(_functions_of(message))
    ]
    for turn, number, function in calls:
        for key in keys:
            name = SENTINEL.search(str(function.get("name"))) if key == "name" else None
            if name is not None:
                index = int(name.group(1))
                ranges += [
                    (piece.start, piece.end) for piece in slots if piece.slot and piece.slot.index == index
                ]
                continue
            messages = copy.deepcopy(placeholders.messages)
            empty: Any = "{}" if key == "arguments" and isinstance(function.get(key), str) else {}
            changed = _functions_of(messages[turn])[number]
            changed[key] = empty if key == "arguments" else ""
            start, end = _difference(full.text, placeholders.render_messages(messages), control)
            start = min((p.start for p in slots if p.start < start < p.end), default=start)
            end = max((p.end for p in slots if p.start < end < p.end), default=end)
            ranges.append((start, end))
    return sorted(span for span in ranges if span[0] < span[1])


def without(spans: list[Range], masked: list[Range]) -> list[Range]:
    """``spans`` less ``masked``; both are in order."""
    result = []
    for start, end in spans:
        for first, last in masked:
            if first < end and last > start:
                if first > start:
                    result.append((start, first))
                start = max(start, last)
        if start < end:
            result.append((start, end))
    return result


def _functions_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    calls = message.get("tool_calls")
    entries = (
        [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    )
    return [function for function in entries if isinstance(function, dict)]


def _difference(text: str, other: str, control: ControlTokens) -> Range:
    """What ``text`` has and ``other`` has not: ``a<x>b</x>c``, ``a<y>c`` -> the place of ``<x>b</x>``.

    A range can be moved while the character before it equals its last one: it is moved out of control tokens.
    """
    start = common_prefix(text, other)
    end = len(text) - common_prefix(text[start:][::-1], other[start:][::-1])
    inside = [(match.start, match.end) for match in control.find(text)]
    while any(low < place < high for low, high in inside for place in (start, end)):
        if not start or text[start - 1] != text[end - 1]:
            start = min((low for low, high in inside if low < start < high), default=start)
            end = max((high for low, high in inside if low < end < high), default=end)
            break
        start, end = start - 1, end - 1
    return start, end
