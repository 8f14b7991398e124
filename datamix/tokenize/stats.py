"""How well a tokenizer suits a text: tokens a character, and the shares it does not know or spells in bytes.

A domain that a tokenizer was not made for shows in many tokens a character, unknown tokens and single bytes.
Every UTF-8 character has one byte that begins it, so the characters of a text are the sum, over its tokens,
of the characters that begin in each: one number for each entry of the vocabulary, and no text is decoded.
Cost: one pass over the vocabulary (a second for 150,000 tokens); after that it works on counts of ids.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from datamix.tokenize.plain_spec import unknown_id, vocabulary_size
from datamix.tokenize.special_tokens import control_tokens

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
# The byte behind each character of GPT-2's byte-level alphabet: printable bytes are themselves.
_BYTE_LEVEL = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + at): byte for at, byte in enumerate(b for b in range(0x100) if b not in _PRINTABLE)
}


@dataclass(frozen=True)
class VocabularyAlphabet:
    """What each token of a vocabulary spells. Arrays are ``[vocab_size]``."""

    num_chars: NDArray[np.int32]  # characters that begin in it; 0 for control tokens
    is_text: NDArray[np.bool_]  # not a control token
    is_byte: NDArray[np.bool_]  # a single byte of a multi-byte character
    unknown: int | None  # the token for characters that the vocabulary lacks


@dataclass(frozen=True)
class Fertility:
    """Counts over some texts, without control tokens."""

    num_chars: int
    num_tokens: int
    num_unknown: int
    num_bytes: int

    @property
    def tokens_per_char(self) -> float:
        """Tokens a character, 0 for no text. English is near 0.25, Chinese with its tokenizers 0.6 to 0.8."""
        return self.num_tokens / self.num_chars if self.num_chars else 0.0

    @property
    def unknown_share(self) -> float:
        """Of all tokens."""
        return self.num_unknown / self.num_tokens if self.num_tokens else 0.0

    @property
    def byte_share(self) -> float:
        """Of all tokens."""
        return self.num_bytes / self.num_tokens if self.num_tokens else 0.0


def read_alphabet(folder: Path) -> VocabularyAlphabet:
    """The alphabet of the tokenizer.json in a folder."""
    return vocabulary_alphabet(orjson.loads((folder / "tokenizer.json").read_bytes()))


def vocabulary_alphabet(spec: dict[str, Any]) -> VocabularyAlphabet:
    """The alphabet of a parsed tokenizer.json."""
    size, model = vocabulary_size(spec), spec["model"]
    vocab = model["vocab"]
    entries = vocab.items() if isinstance(vocab, dict) else ((e[0], i) for i, e in enumerate(vocab))
    steps = orjson.dumps([spec.get(name) for name in ("pre_tokenizer", "decoder", "normalizer")])
    bytes_of = _BYTE_LEVEL if b'"ByteLevel"' in steps else None
    prefix = model.get("continuing_subword_prefix") or ""
    num_chars, is_byte = np.zeros(size, np.int32), np.zeros(size, np.bool_)
    for token, index in entries:
        byte = _BYTE.fullmatch(token)
        if bytes_of is not None:
            spelled = [bytes_of[char] for char in token if char in bytes_of]
            num_chars[index] = sum(value & 0xC0 != 0x80 for value in spelled)
            is_byte[index] = len(spelled) == 1 and spelled[0] >= 0x80
        elif byte is not None:
            num_chars[index] = int(byte[1], 16) & 0xC0 != 0x80
            is_byte[index] = True
        else:
            num_chars[index] = len(token.removeprefix(prefix))
    for token in spec.get("added_tokens") or []:
        num_chars[token["id"]] = len(token["content"])
    unknown = unknown_id(spec)
    is_text = np.ones(size, np.bool_)
    is_text[[token.id for token in control_tokens(spec.get("added_tokens") or []).tokens]] = False
    if unknown is not None:
        num_chars[unknown], is_text[unknown] = 1, True
    return VocabularyAlphabet(np.where(is_text, num_chars, 0), is_text, is_byte, unknown)


def fertility(uses: NDArray[np.int64], alphabet: VocabularyAlphabet) -> Fertility:
    """From how often each id occurs, ``[vocab_size]``."""
    return Fertility(
        num_chars=int(uses @ alphabet.num_chars),
        num_tokens=int(uses[alphabet.is_text].sum()),
        num_unknown=0 if alphabet.unknown is None else int(uses[alphabet.unknown]),
        num_bytes=int(uses[alphabet.is_byte].sum()),
    )
