"""Fill in the middle: some documents of code are cut in three, and the middle moved to the end.

``prefix middle suffix`` becomes ``<PRE> prefix <SUF> suffix <MID> middle``, so that a model learns to write what stands
between two texts. Cuts fall between characters, not tokens, as at inference (Bavarian et al., "Efficient Training of
Language Models to Fill in the Middle", arXiv 2207.14255). Which documents, and where they are cut, depends on the seed
and the text alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xxhash

from datamix.encode.control import ControlTokens
from datamix.identity import mix64, salt

_FAMILIES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),  # Mistral
)


class Marks(NamedTuple):
    """The ids of a tokenizer's three marks."""

    prefix: int
    suffix: int
    middle: int


def find_marks(control: ControlTokens) -> Marks | None:
    """The marks of a tokenizer, None where it has none."""
    ids = {token.text: token.id for token in control.tokens}
    for names in _FAMILIES:
        if all(name in ids for name in names):
            return Marks(*(ids[name] for name in names))
    return None


class Middle(NamedTuple):
    """How documents are cut: a share of them, by a seed, with a tokenizer's marks."""

    marks: Marks
    rate: float
    seed: int

    def cut(self, text: str) -> list[str | int] | None:
        """``[<PRE>, prefix, <SUF>, suffix, <MID>, middle]``, or None of a text that stays as it is."""
        parts = cut(text, self.rate, self.seed)
        if parts is None:
            return None
        prefix, middle, suffix = parts
        return [self.marks.prefix, prefix, self.marks.suffix, suffix, self.marks.middle, middle]


def cut(text: str, rate: float, seed: int) -> tuple[str, str, str] | None:
    """(prefix, middle, suffix) of a text that is chosen, with probability ``rate``; None of one that is not."""
    base = salt(seed, "fim") ^ np.uint64(xxhash.xxh3_64_intdigest(text.encode("utf-8")))
    draws = mix64(base + np.arange(3, dtype=np.uint64)) / np.float64(2**64)
    if draws[0] >= rate or len(text) < 2:
        return None
    first, second = sorted(int(draw * (len(text) + 1)) for draw in draws[1:])
    return text[:first], text[first:second], text[second:]
