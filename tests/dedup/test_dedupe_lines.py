from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamix.core.errors import RecipeError
from datamix.dedup import LineSpec, count_lines, cut_lines, repeated

FOOTER = "Subscribe to our newsletter!"
DOCUMENTS = [f"文章{i}的正文在这里，每一篇都不相同。\n{FOOTER}\n}}\n" for i in range(5)] + [
    f"{FOOTER}\n{FOOTER}",
    None,
]


def cut(texts, spec, batches=1):
    parts = [pa.array(list(texts[i::batches]), pa.string()) for i in range(batches)]
    boilerplate = repeated([count_lines(part, spec) for part in parts], spec)
    return [cut_lines(part, boilerplate, spec) for part in parts]


def test_a_line_in_many_documents_is_cut_and_short_lines_stay():
    (found,) = cut(DOCUMENTS, LineSpec(max_documents=5))
    assert found.texts.to_pylist() == [f"文章{i}的正文在这里，每一篇都不相同。\n}}\n" for i in range(5)] + [
        "",
        None,
    ]
    assert found.num_lines.tolist() == [1] * 5 + [2, 0]


def test_a_line_counts_once_a_document():
    (found,) = cut([f"{FOOTER}\n" * 9, "other"], LineSpec(max_documents=1))
    assert found.texts.to_pylist() == [f"{FOOTER}\n" * 9, "other"]


def test_batches_are_counted_together():
    first, second = cut(DOCUMENTS, LineSpec(max_documents=5), batches=2)
    assert first.num_lines.tolist() == [1, 1, 1, 0]
    assert second.num_lines.tolist() == [1, 1, 2]


def test_by_words_numbers_and_case_do_not_tell_lines_apart():
    pages = [f"Page {i} of 9 pages\nbody of its own {chr(97 + i) * 20}" for i in range(4)]
    (exact,) = cut(pages, LineSpec(max_documents=2))
    (words,) = cut(pages, LineSpec(max_documents=2, match="words"))
    assert exact.num_lines.tolist() == [0] * 4
    assert words.num_lines.tolist() == [1] * 4


def test_paragraphs_are_parted_by_empty_lines():
    notice = "版权所有，未经许可不得转载。\n如有疑问请联系我们的编辑部。"
    texts = [f"正文第{i}段\n\n{notice}\n\n结尾" for i in "甲乙丙"]
    (found,) = cut(texts, LineSpec(max_documents=2, unit="paragraph"))
    assert found.texts.to_pylist() == [f"正文第{i}段\n\n结尾" for i in "甲乙丙"]


@given(st.lists(st.text("ab \n\r\t。", max_size=60), max_size=8))
def test_nothing_repeated_means_nothing_changed(texts):
    spec = LineSpec(max_documents=1000)
    (found,) = cut(texts, spec)
    assert found.texts.to_pylist() == texts
    assert not np.any(found.num_lines)


def test_a_limit_of_no_document_is_refused():
    with pytest.raises(RecipeError, match="at least 1"):
        LineSpec(max_documents=0)
