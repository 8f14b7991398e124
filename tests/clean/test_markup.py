from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamix.clean.markup import Boilerplate, Html, drop_boilerplate, strip_html


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>Fish &amp; chips</p><script>track('x')</script>", "Fish & chips"),
        ("第一段<br/>第二段&nbsp;完", "第一段\n第二段 完"),
        ('<div class="a">\n<b>高血压</b>患者</div><!-- ad -->', "高血压患者"),
        ("<STYLE>p {color: red}</STYLE>正文", "正文"),
        ("3 &lt; 5 &#20013; &#x6587; &copy;", "3 < 5 中 文 ©"),
        ("a < b and c > d, List<int>, <think>why</think>", "a < b and c > d, List<int>, <think>why</think>"),
        ("<|im_start|>user\n<tool_call>{}</tool_call><|im_end|>",) * 2,
        ("Write `<p>` like this:\n```html\n<p>&amp;</p>\n```\n",) * 2,
        ("AT&T & R&D; 5 &unknownname; 6",) * 2,
        ("no markup at all\n\n\n\nsame",) * 2,
    ],
)
def test_html_remains_go_and_code_and_other_brackets_stay(text: str, expected: str) -> None:
    assert strip_html(pa.array([text, None]), Html()).to_pylist() == [expected, None]


def test_tags_and_entities_can_be_left_alone() -> None:
    texts = pa.array(["<b>a</b> &amp; b"])
    assert strip_html(texts, Html(tags=False)).to_pylist() == ["<b>a</b> & b"]
    assert strip_html(texts, Html(entities=False)).to_pylist() == ["a &amp; b"]


@pytest.mark.parametrize(
    "line",
    [
        "Home | About | Contact",
        "首页 > 健康 > 心血管",
        "This site uses cookies to improve your experience.",
        "© 2021 All rights reserved.",
        "Copyright 2019 The Town Library",
        "Share on Facebook",
        "Read more »",
        "版权所有 © 健康网",
        "未经授权，禁止转载",
        "责任编辑：王小明",
        "上一篇：怎样预防感冒",
        "点击关注我们的微信公众号",
        "扫描二维码，关注我们",
        "京ICP备12345678号-1",
        "相关阅读：",
        "返回顶部",
    ],
)
def test_lines_that_stand_on_every_page_go(line: str) -> None:
    text = f"正文第一句。\n  {line}\nLast sentence."
    assert drop_boilerplate(pa.array([text]), Boilerplate()).to_pylist() == ["正文第一句。\nLast sentence."]


@pytest.mark.parametrize(
    "line",
    [
        "Cookies are small files that a site leaves in your browser, and they are not all bad.",
        "我点击了按钮，可是什么也没有发生，于是又等了一会儿。",
        "The copyright of a letter belongs to the person who wrote it.",
        "| a | b | c |",
        "Copyright",
        "他在编辑部工作了三十年。",
        "来源不明的药品不要服用，也不要转送给别人。",
        "首页的设计应当简单。",
        "",
    ],
)
def test_sentences_that_speak_of_the_same_things_stay(line: str) -> None:
    assert drop_boilerplate(pa.array([line]), Boilerplate()).to_pylist() == [line]


@given(st.lists(st.one_of(st.none(), st.text("ab\n页 ", max_size=8))))
def test_texts_without_boilerplate_keep_every_line_end(texts: list[str | None]) -> None:
    assert drop_boilerplate(pa.array(texts, pa.string()), Boilerplate()).to_pylist() == texts
