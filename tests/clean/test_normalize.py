from __future__ import annotations

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamix.clean.normalize import Normalize, normalize


def mended(text: str, options: Normalize) -> str:
    after = normalize(pa.array([text, None], pa.string()), options).to_pylist()
    assert after[1] is None
    return str(after[0])


NOTHING = Normalize(unicode="none", control=False)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("cafe\u0301", Normalize(), "caf\u00e9"),
        ("ＡＢＣ，１２３", Normalize(), "ＡＢＣ，１２３"),
        ("ＡＢＣ，１２３", Normalize(unicode="NFKC"), "ABC,123"),
        ("cafe\u0301\x00", NOTHING, "cafe\u0301\x00"),
        ("a\x00b\x07\ttab\nline\r\n\ufeff", Normalize(), "ab\ttab\nline\r\n"),
        ("\x1b[1;31m发热\x1b[0m", Normalize(), "发热"),
        (
            "👨\u200d👩\u200d👧 \u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            Normalize(),
            "👨\u200d👩\u200d👧 \u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),
        ("sÃ³lo dÃ­as", Normalize(ftfy=True), "sólo días"),
        ("“引号”，全角：ＡＢ &amp; x", Normalize(ftfy=True), "“引号”，全角：ＡＢ &amp; x"),
        ("医生您好".encode().decode("gb18030"), Normalize(), "鍖荤敓鎮ㄥソ"),
    ],
)
def test_normalisation_mends_what_it_names_and_nothing_else(
    text: str, options: Normalize, expected: str
) -> None:
    assert mended(text, options) == expected


@pytest.mark.parametrize("text", ["请问医生您好", "感冒发烧"])
def test_chinese_read_as_gbk_is_repaired_when_no_byte_was_lost(text: str) -> None:
    broken = text.encode().decode("gb18030")
    assert broken != text
    assert mended(f"第一行\n{broken}", Normalize(ftfy=True)) == f"第一行\n{text}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a \r\n\r\n\r\n\r\nb\t\n", "a\n\nb"),
        ("a\u2028b\u2029c\u0085d", "a\nb\nc\nd"),
        ("def f():\n    return  1  # two  blanks", "def f():\n    return  1  # two  blanks"),
        ("\n \n\u3000\u3000首行缩进。\u3000\n正文", "\u3000\u3000首行缩进。\n正文"),
        ("100\u00a0mg", "100 mg"),
        (" \n ", ""),
    ],
)
def test_whitespace_is_tidied_but_indentation_stays(text: str, expected: str) -> None:
    assert mended(text, Normalize(whitespace=True)) == expected


@given(st.lists(st.one_of(st.none(), st.text())))
def test_nfc_equals_the_standard_library(texts: list[str | None]) -> None:
    after = normalize(pa.array(texts, pa.string()), Normalize(control=False)).to_pylist()
    assigned = [t for t in texts if t and all(unicodedata.category(c) != "Cn" for c in t)]
    by_text = dict(zip(texts, after, strict=True))
    assert [by_text[t] for t in assigned] == [unicodedata.normalize("NFC", t) for t in assigned]


@given(st.text(), st.booleans(), st.sampled_from(["NFC", "none"]))
def test_normalising_twice_changes_nothing_more(text: str, control: bool, form: str) -> None:
    options = Normalize(unicode=form, control=control, whitespace=True)  # type: ignore[arg-type]
    once = mended(text, options)
    assert mended(once, options) == once
