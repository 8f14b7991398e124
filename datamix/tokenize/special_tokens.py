"""Control tokens: the literals that a tokenizer maps to one id each, and how text that spells one stays text.

Every added token of a tokenizer (special like ``<|im_end|>`` or not, like ``<think>``) is control, except
*layout* tokens: not special and only white space (Gemma's and CodeGen's runs of newlines and blanks), which
such a tokenizer uses for ordinary text.

Text that goes through a template but must hold no literal is *escaped*: the first character of each literal
is written as its code point between two private-use characters. ``unescape`` restores it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.tokenize.conversation import Conversation, map_strings, to_message

_OPEN, _CLOSE = "\U000f5e10", "\U000f5e11"
_ESCAPED = re.compile(f"{_OPEN}([0-9a-f]+){_CLOSE}")
RESERVED = re.compile("[\U000f5e00-\U000f5e1f]")  # private use of this package: sentinels and escapes
WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680"
    + "".join(map(chr, range(0x2000, 0x200B)))
    + "\u2028\u2029\u202f\u205f\u3000"
)


@dataclass(frozen=True)
class ControlToken:
    """An added token as tokenizer.json describes it."""

    id: int
    text: str
    lstrip: bool  # swallows the white space before it
    rstrip: bool  # swallows the white space after it
    single_word: bool  # matched only between characters that are no letters


@dataclass(frozen=True)
class TokenMatch:
    """A control token at ``[start, end)`` of a text."""

    start: int
    end: int
    token: ControlToken


@dataclass(frozen=True)
class ControlTokens:
    """All control tokens of one tokenizer."""

    tokens: tuple[ControlToken, ...]

    @cached_property
    def _by_text(self) -> dict[str, ControlToken]:
        return {token.text: token for token in self.tokens}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._by_text, key=lambda text: (-len(text), text))
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _openings(self) -> tuple[str, ...]:
        """The first two characters of every literal: few, so a substring search clears most texts."""
        return tuple(sorted({text[:2] for text in self._by_text}))

    def find(self, text: str) -> list[TokenMatch]:
        """The control tokens in a text as the tokenizer matches them: leftmost, longest, no overlap."""
        if not any(opening in text for opening in self._openings):
            return []
        matches = []
        for match in self._pattern.finditer(text):
            token = self._by_text[match.group()]
            if token.single_word and (_is_letter(text, match.start() - 1) or _is_letter(text, match.end())):
                continue
            matches.append(TokenMatch(match.start(), match.end(), token))
        return matches

    def is_in(self, text: str) -> bool:
        """Whether a text holds the literal of a control token."""
        return any(opening in text for opening in self._openings) and self._pattern.search(text) is not None

    def escape(self, text: str) -> str:
        """The text without control literals: ``a<s>`` -> ``a[3c]s>``, where the brackets are private-use."""
        while self.is_in(text):
            text = self._pattern.sub(lambda m: f"{_OPEN}{ord(m.group()[0]):x}{_CLOSE}{m.group()[1:]}", text)
        return text

    def are_in(self, texts: pa.Array) -> pa.Array:
        """Which strings hold a control literal (null counts as none)."""
        if not self.tokens:
            return pa.array([False] * len(texts), pa.bool_())
        return pc.fill_null(pc.match_substring_regex(texts, self._arrow_pattern), False)

    @cached_property
    def _arrow_pattern(self) -> str:
        """All literals as one RE2 pattern, each character by its code point."""
        literals = ("".join(f"\\x{{{ord(char):x}}}" for char in text) for text in sorted(self._by_text))
        return "|".join(literals)


def control_tokens(added_tokens: list[dict[str, Any]]) -> ControlTokens:
    """The control tokens among the ``added_tokens`` of a tokenizer.json."""
    control = [token for token in added_tokens if not is_layout(token) and token["content"]]
    return ControlTokens(
        tuple(
            ControlToken(
                id=token["id"],
                text=token["content"],
                lstrip=bool(token.get("lstrip")),
                rstrip=bool(token.get("rstrip")),
                single_word=bool(token.get("single_word")),
            )
            for token in sorted(control, key=lambda token: int(token["id"]))
        )
    )


def is_layout(token: dict[str, Any]) -> bool:
    """Whether an added token only encodes white space: then it counts as text."""
    return not token.get("special") and not token["content"].replace("▁", " ").strip()


def unescape(text: str) -> str:
    """Undo ``ControlTokens.escape``."""
    if _OPEN not in text:
        return text
    return _ESCAPED.sub(lambda match: chr(int(match.group(1), 16)), text)


def _is_letter(text: str, place: int) -> bool:
    return 0 <= place < len(text) and (text[place].isalnum() or text[place] == "_")


_TURN_FIELDS = ("content", "reasoning", "tool_calls", "tool_call_id", "name")


def rows_with_candidates(batch: pa.RecordBatch, control: ControlTokens) -> list[int]:
    """The rows that may hold control text, in order."""
    flagged = np.zeros(batch.num_rows, np.bool_)
    for name in ("messages", "chosen", "rejected"):
        if name in batch.schema.names:
            column = batch.column(name)
            turns = column.flatten()
            parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
            for field in _TURN_FIELDS:
                flagged[parents[_may_hold(turns.field(field), control)]] = True
    for name in ("tools", "kwargs"):
        flagged |= _may_hold(batch.column(name), control)
    return [int(row) for row in np.flatnonzero(flagged)]


def _may_hold(texts: pa.Array, control: ControlTokens) -> NDArray[np.bool_]:
    if texts.null_count == len(texts):
        return np.zeros(len(texts), np.bool_)
    has_escape = pc.fill_null(pc.match_substring(texts, "\\u"), False)  # of JSON: it may spell a literal
    either = pc.or_(control.are_in(texts), has_escape).to_numpy(zero_copy_only=False)
    return np.asarray(either, np.bool_)


def holds_control(conversations: Iterable[Conversation], control: ControlTokens) -> bool:
    """Whether any string of these conversations holds the literal of a control token."""
    is_found = False

    def check(text: str) -> str:
        nonlocal is_found
        is_found = is_found or control.is_in(text)
        return text

    for conversation in conversations:
        for turn in conversation.turns:
            to_message(turn, check, check)
        map_strings(conversation.tools, check)
        map_strings(conversation.kwargs, check)
    return is_found
