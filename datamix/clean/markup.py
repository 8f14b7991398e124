"""Remove what a scraper left behind: HTML remains, and the lines that every page has.

Code is not markup: fenced and inline code stays as it is, and only names that are HTML elements count as
tags, so ``<think>``, ``<|im_end|>`` and ``a < b`` stay. Boilerplate is removed by whole short lines with a
known pattern, English and Chinese; a sentence that merely speaks of cookies stays. Python reads only the
texts, or the lines, in which a columnar search matches a tag, an entity or a word of boilerplate.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamix.clean.fields import replace_matching
from datamix.core.arrays import lists_by_row, parent_rows

_BLOCKS = (
    "address|article|aside|blockquote|body|br|caption|center|dd|div|dl|dt|fieldset|figcaption|figure|"
    "footer|form|h1|h2|h3|h4|h5|h6|head|header|hr|html|legend|li|main|menu|nav|noscript|ol|option|p|pre|"
    "section|select|table|tbody|td|tfoot|th|thead|title|tr|ul"
)
_INLINE = (
    "a|abbr|acronym|b|bdi|bdo|big|button|cite|del|dfn|em|embed|font|i|iframe|img|input|ins|kbd|label|link|"
    "mark|meta|object|param|path|picture|q|s|samp|small|source|span|strike|strong|sub|sup|svg|tt|u|var|"
    "video|wbr"
)
_HIDDEN = re.compile(
    r"<!--.*?-->|<(script|style)\b[^>]*>.*?</\1\s*>|<!doctype[^>]*>", re.IGNORECASE | re.DOTALL
)
_ATTRIBUTES = r"(?:\s+[^<>]*)?\s*/?>"
_BLOCK = re.compile(rf"[ \t]*</?(?:{_BLOCKS}){_ATTRIBUTES}[ \t]*", re.IGNORECASE)
_SPAN = re.compile(rf"</?(?:{_INLINE}){_ATTRIBUTES}", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
_SUSPECT = r"<[/!a-zA-Z]|&[#a-zA-Z]"
_LINES = re.compile(r"\n{3,}")

_MAX_LINE_CHARS = 160  # a longer line is a paragraph that happens to name something
# What a line must hold before the patterns are tried (RE2).
_KEYWORD = (
    "(?i)cookie|javascript|©|\\(c\\)|copyright|rights reserved|privacy|terms|contact us|about us|skip to|back to top"
    "|read more|click here|advertisement|sponsored|share|follow us|newsletter|home"
    "|首页|主页|版权|著作权|转载|编辑|责编|审核|来源|作者"
    "|一篇|一页|点击|扫描|扫码|长按|分享|转发到|顶部|网站地图|友情链接|ICP|公网安备|相关|热门推荐|猜你喜欢|延伸阅读|关注|免责声明"
)
_BOILERPLATE = re.compile(
    "|".join(
        (
            r"(?:this|our) (?:web)?site uses cookies.*",
            r".{0,60}(?:accept (?:all )?cookies|cookie (?:policy|settings|preferences)).{0,20}",
            r"(?:please )?enable javascript.*|javascript is (?:disabled|required).*",
            r"(?:©|\(c\)|copyright (?:©|\(c\)|[12][0-9]{3})).*|.*all rights reserved\.?",
            r"(?:privacy policy|terms (?:of (?:use|service)|and conditions)|contact us|about us)(?: ?[|·•-] ?.*)?",
            r"(?:skip to (?:main )?content|back to top|read more|click here.{0,40}|advertisement|sponsored) ?[.>»…]*",
            r"(?:share (?:this )?(?:on|via|with)|follow us on) .{0,40}|sign up for our newsletter.{0,60}",
            r"(?:home|首页|主页)(?: ?[|›»>/·] ?[^|›»>/·]{1,24}){1,12}",
            r".{0,40}(?:版权所有|著作权所有).{0,40}|未经.{0,10}(?:授权|许可|允许).{0,20}转载.{0,20}",
            r"[(（\[【]?(?:责任编辑|责编|编辑|审核|来源|作者)[：:].{1,20}",
            r"(?:上一篇|下一篇|上一页|下一页)(?:[：:].{0,40})?",
            r".{0,10}(?:点击|扫描|扫码|长按).{0,12}(?:查看|下载|关注|这里|二维码|识别|购买|咨询).{0,20}",
            r"(?:分享到|分享至|转发到)[：:]?.{0,30}|(?:返回|回到)(?:顶部|首页)|网站地图|友情链接.{0,40}",
            r".{0,12}ICP(?:备|证).{0,30}|.{0,10}公网安备.{0,30}",
            r"(?:相关(?:阅读|推荐|文章|链接|新闻)|热门推荐|猜你喜欢|延伸阅读)[：:]?",
            r".{0,10}关注.{0,15}(?:公众号|微信号|微博).{0,20}|(?:免责声明|本文转载自|文章来源)[：:].{0,60}",
        )
    ),
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Html:
    """Options of ``html``."""

    tags: bool = True  # scripts, styles and comments go whole; block tags become line ends
    entities: bool = True  # &amp; -> &


@dataclass(frozen=True)
class Boilerplate:
    """Options of ``boilerplate``: none."""


def strip_html(texts: pa.Array, options: Html) -> pa.Array:
    """``"<p>Fish &amp; chips</p><script>x()</script>"`` -> ``"Fish & chips"``; null stays null."""

    def strip(text: str) -> str:
        parts = _CODE.split(text)  # prose, code, prose, ...
        for i in range(0, len(parts), 2):
            if options.tags:
                parts[i] = _SPAN.sub("", _BLOCK.sub("\n", _HIDDEN.sub("", parts[i])))
            if options.entities:
                parts[i] = _ENTITY.sub(lambda m: html.unescape(m[0]).replace("\u00a0", " "), parts[i])
        stripped = "".join(parts)
        return stripped if stripped == text else _LINES.sub("\n\n", stripped).strip("\n")

    return replace_matching(texts, _SUSPECT, strip)


def drop_boilerplate(texts: pa.Array, _: Boilerplate) -> pa.Array:
    """``"Home | About | Contact\\nThe library opens at nine."`` -> the second line; null stays null."""
    lines = pc.split_pattern(texts, "\n")
    flat = lines.flatten()
    suspects = pc.and_(
        pc.less_equal(pc.utf8_length(flat), _MAX_LINE_CHARS), pc.match_substring_regex(flat, pattern=_KEYWORD)
    )
    stays = np.ones(len(flat), bool)
    for row in np.flatnonzero(suspects.to_numpy(zero_copy_only=False)):
        stays[row] = _BOILERPLATE.fullmatch(flat[row].as_py().strip()) is None
    rest = lists_by_row(flat.filter(pa.array(stays)), parent_rows(lines)[stays], len(texts))
    return pc.if_else(texts.is_null(), texts, pc.binary_join(rest, "\n"))
