"""A plain encoder that keeps what it encoded: for texts that come again and again, as when conversations are made shorter.

Memory: the texts and their tokens, for as long as it lives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datamix.encode.engine import Flat, PlainEncoder


class Remembering(PlainEncoder):
    """The engines of ``plain``, asked once for each text."""

    def __init__(self, plain: PlainEncoder) -> None:
        self._plain = plain  # what it has proved of its engine stays proved
        self.restarts_after_control = plain.restarts_after_control
        self._ids: dict[tuple[str, bool], NDArray[np.int32]] = {}
        self._starts: dict[str, list[int]] = {}

    def encode(self, texts: list[str], begins: list[bool] | None = None) -> Flat:
        """The same as ``PlainEncoder.encode``."""
        wanted = list(zip(texts, begins or [True] * len(texts), strict=True))
        new = [one for one in dict.fromkeys(wanted) if one not in self._ids]
        flat = self._plain.encode([text for text, _ in new], [begins for _, begins in new])
        for one, start, stop in zip(new, flat.offsets[:-1].tolist(), flat.offsets[1:].tolist(), strict=True):
            self._ids[one] = flat.ids[start:stop]
        lists = [self._ids[one] for one in wanted]
        offsets = np.zeros(len(lists) + 1, np.int64)
        np.cumsum([len(ids) for ids in lists], out=offsets[1:])
        return Flat(np.concatenate([np.empty(0, np.int32), *lists]), offsets)

    def character_starts(self, text: str) -> list[int]:
        """The same as ``PlainEncoder.character_starts``."""
        if text not in self._starts:
            self._starts[text] = self._plain.character_starts(text)
        return self._starts[text]
