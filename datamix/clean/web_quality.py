"""Published quality rules for web text: Gopher's, C4's and FineWeb's; their numbers are the defaults.

Words are counted as ``script`` says: a Chinese character is half a word, or three letters, so an n-gram of n
words is one of 2n characters; full-width marks end a Chinese sentence. The rules are for prose of a page or
more: code, tables and poems fail, short questions and answers fail ``min_words`` by nature. Cost: one pass of
Python over the words, for the n-grams then numpy; about 5 MB/s a core.

Sources: Rae et al., 2021 (Gopher, arXiv 2112.11446), appendix A1.1; Raffel et al., 2020 (T5 and C4, arXiv
1910.10683), section 2.2; Penedo et al., 2024 (FineWeb, arXiv 2406.17557), section 3.6.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.clean import script
from datamix.core.arrays import offsets_from_lengths

_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_STOP_CHARACTERS = frozenset("的了是在和不有一")
_ELLIPSIS = re.compile(r"\.\.\.+|…+|。。。+")
_BULLETS = tuple("-*•●■▪◦·‣–—○◆◇★")
_LETTER = re.compile(r"[^\W\d_]")
_FIRST_NOT_LATIN = "\u0250"
_TRIM = "\"'“”‘’()[]{}<>.,;:!?"
_PARAGRAPH_END = re.compile(r"\n\s*\n")

_CLOSED = tuple(".!?\"'。！？”’」』…;；：:)）")
_C4_ENDS = tuple('.!?"。！？”」』')
_SENTENCES = re.compile(r"[.!?](?=\s|[\"')\]]|\Z)|[。！？]")
_POLICY = re.compile(
    r"terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies|隐私政策|使用条款|cookie政策",
    re.IGNORECASE,
)
_CITATION = r"\[(?:\d{1,3}|edit|citation needed|来源请求|编辑)\]"


@dataclass(frozen=True)
class GopherQuality:
    """Options of ``gopher_quality``; shares are of the words or of the lines that are not empty."""

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_chars: float = 3.0  # of words between blanks, where they are the most
    max_mean_word_chars: float = 10.0
    max_symbol_share: float = 0.1  # number signs, or ellipses, to words
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alpha_words: float = 0.8  # words with a letter in them
    min_stop_words: int = 2  # different ones, English or Chinese; 0 for corpora of other languages


@dataclass(frozen=True)
class GopherRepetition:
    """Options of ``gopher_repetition``: the largest shares that a text may have."""

    dup_lines: float = 0.30  # of lines that occurred before
    dup_paragraphs: float = 0.30
    dup_line_chars: float = 0.20  # of characters in such lines
    dup_paragraph_chars: float = 0.20
    top_2gram: float = 0.20  # of characters in the most frequent n-gram
    top_3gram: float = 0.18
    top_4gram: float = 0.16
    dup_5gram: float = 0.15  # of characters in any n-gram that occurs twice or more
    dup_6gram: float = 0.14
    dup_7gram: float = 0.13
    dup_8gram: float = 0.12
    dup_9gram: float = 0.11
    dup_10gram: float = 0.10


@dataclass(frozen=True)
class C4Lines:
    """Options of ``c4_lines``, which removes lines of a text."""

    end_mark: bool = True  # a line must end with a terminal mark, and not with an ellipsis
    min_words: int = 5
    policy: bool = True  # lines about cookies, privacy and terms of use
    javascript: bool = True  # lines that speak of it
    citations: bool = True  # [1], [edit], [citation needed]: the mark is removed, the line stays


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
    max_dup_line_chars: float = 0.1  # characters in lines that occurred before
    max_short_lines: float = 0.67
    short_line_chars: int = 30  # a Chinese character counts three


def _judge(step: str, rule: Callable[[str, Any], str | None]) -> Callable[[pa.Array, Any], pa.Array]:
    """A judge from a function that names the first rule of ``step`` that a text breaks."""

    def judge(texts: pa.Array, options: Any) -> pa.Array:
        broken = [None if text is None else rule(text, options) for text in texts.to_pylist()]
        return pa.array([None if name is None else f"{step}_{name}" for name in broken], pa.string())

    return judge


def _gopher_quality(text: str, options: GopherQuality) -> str | None:
    words = script.split(text)
    num_words = words.count
    if num_words < options.min_words:
        return "min_words"
    if num_words > options.max_words:
        return "max_words"
    spaced = [t for t in words.tokens if not script.is_dense(t)]
    if not words.is_dense and spaced:
        mean = sum(map(len, spaced)) / len(spaced)
        if not options.min_mean_word_chars <= mean <= options.max_mean_word_chars:
            return "mean_word_chars"
    if max(text.count("#"), len(_ELLIPSIS.findall(text))) > options.max_symbol_share * num_words:
        return "symbol_share"
    lines = _filled(text.split("\n"))
    if sum(line.startswith(_BULLETS) for line in lines) > options.max_bullet_lines * len(lines):
        return "bullet_lines"
    if sum(line.endswith(("...", "…", "。。。")) for line in lines) > options.max_ellipsis_lines * len(lines):
        return "ellipsis_lines"
    num_alpha = sum(_LETTER.search(t) is not None for t in spaced) + words.num_dense / script.DENSE_PER_WORD
    if num_alpha < options.min_alpha_words * num_words:
        return "alpha_words"
    # Different stop words of its language; plenty where the script is neither English nor Chinese.
    num_stop_words = len(_STOP_WORDS)
    if words.is_dense:
        if not script.has_kana(text):
            num_stop_words = len(_STOP_CHARACTERS.intersection(text))
    elif sum(t[0] >= _FIRST_NOT_LATIN for t in words.tokens) * 2 <= len(words.tokens):
        num_stop_words = len(_STOP_WORDS.intersection(t.strip(_TRIM).lower() for t in words.tokens))
    return None if num_stop_words >= options.min_stop_words else "stop_words"


def _gopher_repetition(text: str, options: GopherRepetition) -> str | None:
    for name, parts in (("line", text.split("\n")), ("paragraph", _PARAGRAPH_END.split(text))):
        parts = _filled(parts)
        num_chars = sum(map(len, parts))
        if num_chars and (len(parts) - len(set(parts))) / len(parts) > getattr(options, f"dup_{name}s"):
            return f"dup_{name}s"
        if num_chars and _repeated_chars(parts) / num_chars > getattr(options, f"dup_{name}_chars"):
            return f"dup_{name}_chars"
    words = script.split(text)
    if not words.tokens:
        return None
    ids, lengths = token_arrays(words.tokens)
    scale = script.DENSE_PER_WORD if words.is_dense else 1
    for n in (2, 3, 4):
        if top_share(ids, lengths, n * scale) > getattr(options, f"top_{n}gram"):
            return f"top_{n}gram"
    limits = {n: getattr(options, f"dup_{n}gram") for n in range(5, 11)}
    for n, limit in limits.items():
        share = dup_share(ids, lengths, n * scale)
        if share > limit:
            return f"dup_{n}gram"
        if share <= min(limits.values()):  # a repeated longer n-gram is made of repeated shorter ones
            return None
    return None


def _c4_pages(text: str, options: C4Pages) -> str | None:
    if options.lorem_ipsum and "lorem ipsum" in text.lower():
        return "lorem_ipsum"
    if options.curly_bracket and "{" in text:
        return "curly_bracket"
    return "min_sentences" if len(_SENTENCES.findall(text)) < options.min_sentences else None


def _fineweb_quality(text: str, options: FineWebQuality) -> str | None:
    lines = _filled(text.split("\n"))
    if sum(line.endswith(_CLOSED) for line in lines) < options.min_closed_lines * len(lines):
        return "closed_lines"
    num_short = sum(script.width(line) < options.short_line_chars for line in lines)
    if num_short > options.max_short_lines * len(lines):
        return "short_lines"
    if _repeated_chars(lines) > options.max_dup_line_chars * sum(map(len, lines)):
        return "dup_line_chars"
    return None


# Each gives ``STEP_RULE`` of the first rule that a text breaks, else null.
judge_quality = _judge("gopher_quality", _gopher_quality)
judge_repetition = _judge("gopher_repetition", _gopher_repetition)
judge_c4 = _judge("c4_pages", _c4_pages)
judge_fineweb = _judge("fineweb_quality", _fineweb_quality)


def keep_c4_lines(texts: pa.Array, options: C4Lines) -> pa.Array:
    """Remove C4's bad lines: ``"Menu\\nThis is the first sentence of all."`` -> the second line."""
    if options.citations:
        texts = pc.replace_substring_regex(texts, pattern=_CITATION, replacement="")

    def stays(line: str) -> bool:
        words = line.strip()
        if options.end_mark and (not words.endswith(_C4_ENDS) or words.endswith("...")):
            return False
        if options.javascript and "javascript" in words.lower():
            return False
        if options.policy and _POLICY.search(words):
            return False
        return script.split(words).count >= options.min_words

    results = [None if t is None else "\n".join(filter(stays, t.split("\n"))) for t in texts.to_pylist()]
    return pa.array(results, texts.type)


def _filled(parts: list[str]) -> list[str]:
    """Lines or paragraphs that are not empty, trimmed."""
    return [part.strip() for part in parts if part.strip()]


def _repeated_chars(parts: list[str]) -> int:
    """Characters in parts that occurred before: ``["ab", "c", "ab"]`` -> 2."""
    return sum(len(part) * (count - 1) for part, count in Counter(parts).items())


def token_arrays(tokens: list[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A number a token, equal for equal tokens, and its length in characters; both ``[num_tokens]``."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(t, len(numbers)) for t in tokens], np.uint64)
    return ids, np.array([len(t) for t in tokens], np.int64)


def _ngrams(ids: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A 64-bit hash of every n-gram, ``[num_tokens - n + 1]``: a polynomial modulo 2^64 over the tokens'
    numbers.
    """
    num = len(ids) - n + 1
    rolled = np.zeros(max(num, 0), np.uint64)
    for k in range(n if num > 0 else 0):
        rolled = (rolled + ids[k : k + num] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        rolled ^= rolled >> np.uint64(29)
    return rolled


def top_share(ids: NDArray[np.uint64], lengths: NDArray[np.int64], n: int) -> float:
    """The share of characters in the n-gram that occurs most often (of several, the longest), if it occurs
    twice.
    """
    _, first, counts = np.unique(_ngrams(ids, n), return_index=True, return_counts=True)
    most = counts.max(initial=0)
    if most < 2:
        return 0.0
    ends = offsets_from_lengths(lengths)
    starts = first[counts == most]
    return float(most * (ends[starts + n] - ends[starts]).max() / ends[-1])


def dup_share(ids: NDArray[np.uint64], lengths: NDArray[np.int64], n: int) -> float:
    """The share of characters inside n-grams that occur more than once, each character counted once."""
    _, inverse, counts = np.unique(_ngrams(ids, n), return_inverse=True, return_counts=True)
    starts = np.flatnonzero(counts[inverse] > 1)
    edges = np.zeros(len(ids) + 1, np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + n, -1)
    inside = np.cumsum(edges[:-1]) > 0
    return float(lengths[inside].sum() / lengths.sum())
