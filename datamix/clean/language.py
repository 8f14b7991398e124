"""Keep the texts of some languages, told by an offline detector: py3langid, a naive Bayes over byte n-grams.

It comes as the extra ``language`` (a wheel of 4.6 MB with its model inside; nothing is downloaded). Wu,
Cantonese and classical Chinese count as Chinese. Short texts are not judged: a few words look like many languages.
About 8 MB/s a core. Source: Lui and Baldwin, 2012, "langid.py: An Off-the-shelf Language Identification Tool".
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
            'In the checkout of datamix: `pip install ".[language]"`; or take the step out.'
        )


def judge_language(texts: pa.Array, options: Language) -> pa.Array:
    """``language_CODE`` of each text that is in another language, else null: a French text -> ``language_fr``."""
    require_detector()
    keep = frozenset(options.keep)
    wanted = keep | _CHINESE if "zh" in keep else keep
    verdicts = [None if t is None or len(t) < options.min_chars else _code(t) for t in texts.to_pylist()]
    return pa.array([None if v is None or v in wanted else f"language_{v}" for v in verdicts], pa.string())


def _code(text: str) -> str:
    detector = importlib.import_module("py3langid")
    code: str = detector.classify(text[:_HEAD_CHARS])[0]
    return code
