"""Words in a text of any script, so that rules made for English hold for Chinese too.

Chinese and Japanese put no blanks between words. A word there is about two characters long (1.6 to 1.8 in
running Chinese by the usual segmenters), and an English one about six letters with its blank. So one *dense*
character counts as half a word, and as three letters where a rule counts characters. No dictionary, no model:
the same on every machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DENSE_PER_WORD = 2
LETTERS_PER_DENSE = 3

_HAN = "\u2e80-\u2eff\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3040-\u30ff\u31f0-\u31ff"
_MARKS = (
    "\u2010-\u2027\u2030-\u205e\u3000-\u3003\u3008-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_TOKEN = re.compile(f"[{_HAN}{_KANA}]|[^\\s{_HAN}{_KANA}{_MARKS}]+")
_DENSE = re.compile(f"[{_HAN}{_KANA}]")
_KANA_ONLY = re.compile(f"[{_KANA}]")


@dataclass(frozen=True)
class Words:
    """The tokens of a text: blank-separated words, and dense characters one by one; marks of their own left
    out.
    """

    tokens: list[str]
    num_spaced: int
    num_dense: int

    @property
    def count(self) -> float:
        """Words, a dense character counting half."""
        return self.num_spaced + self.num_dense / DENSE_PER_WORD

    @property
    def is_dense(self) -> bool:
        """Whether most of the words are written without blanks."""
        return self.num_dense / DENSE_PER_WORD > self.num_spaced


def split(text: str) -> Words:
    """``"用 Git 提交"`` -> tokens ``用 Git 提 交``: 2.5 words."""
    tokens = _TOKEN.findall(text)
    num_dense = len(_DENSE.findall(text))
    return Words(tokens, len(tokens) - num_dense, num_dense)


def is_dense(token: str) -> bool:
    return _DENSE.match(token) is not None


def has_kana(text: str) -> bool:
    """Whether a text without blanks is Japanese rather than Chinese."""
    return _KANA_ONLY.search(text) is not None


def width(line: str) -> int:
    """Length in letters, a dense character counting three."""
    return len(line) + (LETTERS_PER_DENSE - 1) * len(_DENSE.findall(line))
