"""Where a long text may be cut so that its pieces give the ids of the whole.

A tokenizer keeps about 150 bytes for each byte of the text that it encodes. Long texts are therefore cut into pieces of half a million
characters, at a border where nothing can join both sides: beside a single newline, blank or comma with letters around it. A border
counts only after two proofs. By the vocabulary: either the tokenizer splits texts there before it merges, or no entry holds
both characters, so that no merge and no path can cross. By the place: two thousand characters on each side, encoded together
and apart, give the same ids. A tokenizer or a text without such borders is encoded whole, and that is counted. Cost: below one
per cent of the encoding. Source: merges and paths are local; Sennrich et al. 2016, Kudo 2018.
"""

from __future__ import annotations

import re
from typing import Any

PIECE_CHARS = 1 << 19  # shorter texts are encoded whole
_CONTEXT_CHARS = 2000  # on each side of a border
_MAX_FAILED = 3  # borders of one kind that a tokenizer or text may refuse before the kind is given up
_LETTER = r"[^\W\d_]"
_KINDS = (  # a border is where the match ends
    re.compile(rf"(?<={_LETTER})\n(?={_LETTER})"),
    re.compile(rf"(?<={_LETTER})(?=\n{_LETTER})"),
    re.compile(rf"(?<={_LETTER})(?= {_LETTER})"),
    re.compile(rf"(?<={_LETTER})(?=[,;:!?，。；：！？、]\s?{_LETTER})"),
)


class LongTexts:
    """Cuts long texts for one tokenizer; ``tokenizer`` adds no prefix, for a piece continues the text before it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._can_cross: dict[
            str, bool
        ] = {}  # two characters -> whether an entry of the vocabulary may join them
        self._failed = [0] * len(_KINDS)
        self.num_whole = 0  # long texts that were encoded whole

    def cut(self, text: str) -> list[str]:
        """``text`` in pieces: ``"".join(pieces) == text``."""
        pieces: list[str] = []
        start = 0
        while len(text) - start > PIECE_CHARS:
            border = self._border(text, start)
            if border is None:
                break
            pieces.append(text[start:border])
            start = border
        pieces.append(text[start:])
        self.num_whole += len(pieces[-1]) > 4 * PIECE_CHARS
        return pieces

    def _border(self, text: str, start: int) -> int | None:
        """A border between half a piece and four pieces behind ``start``."""
        for stop in (start + PIECE_CHARS, start + 4 * PIECE_CHARS):
            for kind, pattern in enumerate(_KINDS):
                at = start + PIECE_CHARS // 2
                while self._failed[kind] < _MAX_FAILED and (match := pattern.search(text, at, stop)):
                    at = match.end()
                    if self._is_safe(text, at):
                        return at
                    self._failed[kind] += 1
        return None

    def _is_safe(self, text: str, at: int) -> bool:
        pair = text[at - 1 : at + 1]
        if pair not in self._can_cross:
            self._can_cross[pair] = self._joins(pair)
        if self._can_cross[pair]:
            return False
        left, right = text[max(0, at - _CONTEXT_CHARS) : at], text[at : at + _CONTEXT_CHARS]
        texts = [left + right, left, right]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        together, first, second = (encoding.ids for encoding in encodings)
        return bool(together == first + second)

    def _joins(self, pair: str) -> bool:
        """Whether an entry of the vocabulary may join two characters: the tokenizer splits no texts, and an entry holds both."""
        split = self._tokenizer.pre_tokenizer
        normalizer = self._tokenizer.normalizer
        plain = pair if normalizer is None else normalizer.normalize_str(pair)
        parts = [plain] if split is None else [part for part, _ in split.pre_tokenize_str(plain)]
        if len(parts) > 1:
            return False
        return len(parts[0]) != 2 or any(
            parts[0] in entry for entry in self._tokenizer.get_vocab(with_added_tokens=False)
        )
