"""Whether a template can see what texts say, or only that they are there.

Most templates only copy content: then the skeleton of a shape is right for every record of it. Some look inside
(``'</think>' in content``, ``content.split(...)``). ``sight`` reads the template's syntax tree once. If everything it does
is known, it returns the strings that the template compares with or looks for: a record that holds none of them is
rendered as its skeleton says. If the template does anything else (indexing or measuring strings, unknown filters), each
record is compared with its own rendering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sight:
    """What a template reacts to in a text; None for ``anything``."""

    words: tuple[str, ...] | None

    def is_blind_to(self, texts: Sequence[str]) -> bool:
        """Whether no text holds anything the template could react to."""
        return self.words is not None and not any(word in text for text in texts for word in self.words)


def sight(template: str) -> Sight:
    """What a chat template can see in a text."""
    return Sight(None)
