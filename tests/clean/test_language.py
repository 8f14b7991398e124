from __future__ import annotations

import importlib.util

import pyarrow as pa
import pytest

from datamix.clean import Step, require
from datamix.clean.language import Language, judge_language
from datamix.core.errors import RecipeError

HAS_DETECTOR = importlib.util.find_spec("py3langid") is not None
needs_detector = pytest.mark.skipif(not HAS_DETECTOR, reason="py3langid is not installed (extra: language)")


@needs_detector
def test_texts_of_other_languages_are_named_by_their_code() -> None:
    texts = pa.array(
        [
            "高血压患者每天食盐摄入量应少于五克，大约是一个啤酒瓶盖装满的量。",
            "Blood pressure is written as two numbers, the upper and the lower.",
            "La tension artérielle s'écrit avec deux chiffres, le plus haut d'abord.",
            "court",
            None,
        ]
    )
    assert judge_language(texts, Language()).to_pylist() == [None, None, "language_fr", None, None]
    only = judge_language(texts, Language(keep=("fr",)))
    assert only.to_pylist() == ["language_zh", "language_en", None, None, None]


@pytest.mark.skipif(HAS_DETECTOR, reason="py3langid is installed")
def test_a_missing_detector_is_told_with_its_cure() -> None:
    with pytest.raises(RecipeError, match=r"datamix\[language\]"):
        require([Step("language", Language())])
    require([Step("length", None)])
