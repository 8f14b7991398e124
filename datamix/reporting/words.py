"""The languages of the report page: English as it is in the code, Chinese from ``words.zh.json``.

A text of the page is an English template; its translation has the same fields. ``say("{n} files").format(n=3)`` gives either. Names of
fates, reasons, formats and files are those of ``manifest.json`` and ``removed/``, in every language.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from datamix.core.errors import RecipeError

LANGUAGES = ("en", "zh")
_CHINESE = Path(__file__).parent / "words.zh.json"
_JOINTS = {", ": "、", "; ": "；", " ": ""}


class Words:
    """Texts of the page in one language. Raises RecipeError for a language that the page does not have."""

    def __init__(self, language: str = "en") -> None:
        if language not in LANGUAGES:
            raise RecipeError(f"The report has no language {language!r}; it has {', '.join(LANGUAGES)}.")
        self.language = language
        self._table: dict[str, str] | None = None
        if language == "zh":
            self._table = json.loads(_CHINESE.read_text(encoding="utf-8"))

    def __call__(self, text: str) -> str:
        return text if self._table is None else self._table[text]

    def count(self, number: int, noun: str) -> str:
        """``count(1204, "record")`` -> ``1,204 records``."""
        if self._table is not None:
            return f"{number:,} {self._table[noun]}"
        return f"{number:,} {noun}" + ("" if number == 1 else "s")

    def join(self, parts: Sequence[str], joint: str = ", ") -> str:
        """``a, b``."""
        return (joint if self._table is None else _JOINTS[joint]).join(parts)


def percent(share: float, digits: int = 2) -> str:
    """``0.29984`` -> ``29.98 %``."""
    return f"{share * 100:.{digits}f} %"


def unit_words(unit: str) -> str:
    """``loss_tokens`` -> ``loss tokens``."""
    return unit.replace("_", " ")
