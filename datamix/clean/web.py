"""C4's and FineWeb's rules for pages from the web, line by line and page by page.

Sources: Raffel et al., 2020 (T5, arXiv 1910.10683), section 2.2; Penedo et al., 2024 (FineWeb, arXiv 2406.17557),
section 3.6; the defaults are their numbers. Full-width marks end a Chinese sentence, and a Chinese character counts as
half a word, or as three letters, as ``script`` says. They are made for prose from the web: code, tables and poems fail.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from datamix.clean import script

_CLOSED = tuple(".!?\"'。！？”’」』…;；：:)）")
_C4_ENDS = tuple('.!?"。！？”」』')
_SENTENCES = re.compile(r"[.!?](?=\s|[\"')\]]|\Z)|[。！？]")
_POLICY = re.compile(
    r"terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies|隐私政策|使用条款|cookie政策",
    re.IGNORECASE,
)
_CITATION = r"\[(?:\d{1,3}|edit|citation needed|来源请求|编辑)\]"


@dataclass(frozen=True)
class C4Lines:
    """Options of ``c4_lines``, which takes lines out of a text."""

    end_mark: bool = True  # a line must end with a terminal mark, and not with an ellipsis
    min_words: int = 5
    policy: bool = True  # lines about cookies, privacy and terms of use
    javascript: bool = True  # lines that speak of it
    citations: bool = True  # [1], [edit], [citation needed]: the mark goes, the line stays


@dataclass(frozen=True)
class C4Pages:
    """Options of ``c4_pages``, which drops whole texts."""

    min_sentences: int = 3
    lorem_ipsum: bool = True
    curly_bracket: bool = True  # a page with "{" is code, not prose


@dataclass(frozen=True)
class FineWebQuality:
    """Options of ``fineweb_quality``; shares of the lines that are not empty."""

    min_closed_lines: float = 0.12  # lines that end with a mark
    max_dup_line_chars: float = 0.1  # characters in lines that stood before
    max_short_lines: float = 0.67
    short_line_chars: int = 30  # a Chinese character counts three


def keep_c4_lines(texts: pa.Array, options: C4Lines) -> pa.Array:
    """Take C4's bad lines out: ``"Menu\\nThis is the first sentence of all."`` -> the second line."""
    if options.citations:
        texts = pc.replace_substring_regex(texts, pattern=_CITATION, replacement="")
    mended = [
        None if t is None else "\n".join(line for line in t.split("\n") if _is_kept(line, options))
        for t in texts.to_pylist()
    ]
    return pa.array(mended, texts.type)


def _is_kept(line: str, options: C4Lines) -> bool:
    words = line.strip()
    if options.end_mark and (not words.endswith(_C4_ENDS) or words.endswith("...")):
        return False
    if options.javascript and "javascript" in words.lower():
        return False
    if options.policy and _POLICY.search(words):
        return False
    return script.split(words).count >= options.min_words


def judge_c4(texts: pa.Array, options: C4Pages) -> pa.Array:
    """``c4_pages_RULE`` of the first rule that each text breaks, else null."""
    return _judged(texts, lambda text: _c4_reason(text, options))


def _c4_reason(text: str, options: C4Pages) -> str | None:
    if options.lorem_ipsum and "lorem ipsum" in text.lower():
        return "c4_pages_lorem_ipsum"
    if options.curly_bracket and "{" in text:
        return "c4_pages_curly_bracket"
    if len(_SENTENCES.findall(text)) < options.min_sentences:
        return "c4_pages_min_sentences"
    return None


def judge_fineweb(texts: pa.Array, options: FineWebQuality) -> pa.Array:
    """``fineweb_quality_RULE`` of the first rule that each text breaks, else null; an empty text passes."""
    return _judged(texts, lambda text: _fineweb_reason(text, options))


def _fineweb_reason(text: str, options: FineWebQuality) -> str | None:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    if sum(line.endswith(_CLOSED) for line in lines) < options.min_closed_lines * len(lines):
        return "fineweb_quality_closed_lines"
    if sum(script.width(line) < options.short_line_chars for line in lines) > options.max_short_lines * len(
        lines
    ):
        return "fineweb_quality_short_lines"
    again = sum(len(line) * (count - 1) for line, count in Counter(lines).items())
    if again > options.max_dup_line_chars * sum(map(len, lines)):
        return "fineweb_quality_dup_line_chars"
    return None


def _judged(texts: pa.Array, reason: Callable[[str], str | None]) -> pa.Array:
    return pa.array([None if t is None else reason(t) for t in texts.to_pylist()], pa.string())
