"""Keep the texts of some languages, recognised by an offline detector: py3langid, a naive Bayes over byte
n-grams.

It comes as the extra ``language`` (a wheel of 4.6 MB with its model inside; nothing is downloaded). Wu,
Cantonese and classical Chinese count as Chinese. Short texts are not judged: a few words look like many
languages. About 8 MB/s a core. Source: Lui and Baldwin, 2012, "langid.py: An Off-the-shelf Language
Identification Tool".
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

import pyarrow as pa

from datamix.core.errors import RecipeError

_CHINESE = frozenset({"zh", "wuu", "yue", "lzh", "hak", "nan", "gan"})
_HEAD_CHARS = 4000  # enough to know; the rest of a book changes nothing


@dataclass(frozen=True)
class Language:
    """Options of ``language``."""

    keep: tuple[str, ...] = ("zh", "en")  # ISO 639 codes
    min_chars: int = 20  # shorter texts stay


def require_detector() -> None:
    """Raises RecipeError where the detector is not installed."""
    if importlib.util.find_spec("py3langid") is None:
        raise RecipeError(
            "clean: the step `language` needs a language detector that is not installed. "
            'In the checkout of datamix: `pip install ".[language]"`; or remove the step.'
        )


def judge_language(texts: pa.Array, options: Language) -> pa.Array:
    """``language_CODE`` of each text that is in another language, else null: a French text ->
    ``language_fr``.
    """
    require_detector()
    classify = importlib.import_module("py3langid").classify  # heavy: loads its model
    keep = {*options.keep, *(_CHINESE if "zh" in options.keep else ())}
    reasons: list[str | None] = []
    for text in texts.to_pylist():
        judged = text is not None and len(text) >= options.min_chars
        code = classify(text[:_HEAD_CHARS])[0] if judged else None
        reasons.append(None if code is None or code in keep else f"language_{code}")
    return pa.array(reasons, pa.string())
