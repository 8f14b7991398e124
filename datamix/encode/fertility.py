"""How well a tokenizer suits a text: tokens a character, and the shares it does not know or spells in bytes.

A domain that a tokenizer was not made for shows here before a day of training does: many tokens a character, unknown
tokens, single bytes. Counts add up over batches and sources. Cost: a few table look-ups a token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Fertility:
    """Counts over some texts; ``a + b`` counts both."""

    num_chars: int = 0
    num_tokens: int = 0
    num_unknown: int = 0  # tokens that stand for characters the vocabulary lacks
    num_bytes: int = 0  # tokens that are one byte of a character spelled in several

    def __add__(self, other: Fertility) -> Fertility:
        return Fertility(
            self.num_chars + other.num_chars,
            self.num_tokens + other.num_tokens,
            self.num_unknown + other.num_unknown,
            self.num_bytes + other.num_bytes,
        )

    @property
    def tokens_per_char(self) -> float:
        """Tokens a character; 0 for no text. English is near 0.25, Chinese 0.6 to 0.8 with a tokenizer made for it."""
        return self.num_tokens / self.num_chars if self.num_chars else 0.0

    @property
    def unknown_share(self) -> float:
        """Of all tokens."""
        return self.num_unknown / self.num_tokens if self.num_tokens else 0.0

    @property
    def byte_share(self) -> float:
        """Of all tokens."""
        return self.num_bytes / self.num_tokens if self.num_tokens else 0.0


def fertility(
    texts: pa.Array, ids: NDArray[np.int32], is_byte: NDArray[np.bool_], unknown_id: int | None
) -> Fertility:
    """Count texts and their ids; ``is_byte`` is ``[vocab_size]`` from ``byte_tokens``."""
    return Fertility(
        num_chars=int(pc.sum(pc.utf8_length(texts)).as_py() or 0),
        num_tokens=len(ids),
        num_unknown=0 if unknown_id is None else int(np.count_nonzero(ids == unknown_id)),
        num_bytes=int(np.count_nonzero(is_byte[ids])),
    )


def byte_tokens(vocabulary: dict[str, int], vocab_size: int, is_byte_level: bool) -> NDArray[np.bool_]:
    """``[vocab_size]``: tokens that are one byte of a longer character.

    SentencePiece spells them ``<0xE4>``; a byte-level vocabulary writes bytes from 0x80 on as single characters of its
    own alphabet (code points that Latin letters and their neighbours do not use: 0xA1 to 0x143).
    """
    found = np.zeros(vocab_size, np.bool_)
    for token, index in vocabulary.items():
        if _BYTE.fullmatch(token) or (is_byte_level and len(token) == 1 and _is_high_byte(token)):
            found[index] = True
    return found


def _is_high_byte(char: str) -> bool:
    """Whether a character of the byte-level alphabet stands for a byte of 0x80 or more.

    The alphabet keeps printable bytes as they are and writes the others, in order, from U+0100 on: 33 control bytes
    (0x00-0x20), 0x7F, then 0x80-0xA0 and 0xAD.
    """
    code = ord(char)
    return 0xA1 <= code <= 0xFF or 0x100 + 34 <= code <= 0x100 + 67
