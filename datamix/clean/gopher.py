"""The Gopher rules for web text: does it read like prose, and does it repeat itself.

Source: Rae et al., 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher" (arXiv
2112.11446), appendix A1.1; the defaults are its numbers. Words are counted as ``script`` says: for Chinese a word is
two characters, so an n-gram of n words is one of 2n characters. Made for documents of a page or more: short questions
and answers fail ``min_words`` by nature. Costs one pass of Python over the words, then numpy: some 5 MB/s a core.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.clean import script

_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_STOP_CHARACTERS = frozenset("的了是在和不有一")
_ELLIPSIS = re.compile(r"\.\.\.+|…+|。。。+")
_BULLETS = tuple("-*•●■▪◦·‣–—○◆◇★")
_LETTER = re.compile(r"[^\W\d_]")
_FIRST_NOT_LATIN = "\u0250"
_TRIM = "\"'“”‘’()[]{}<>.,;:!?"


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

    dup_lines: float = 0.30  # of lines that stood before
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


def judge_quality(texts: pa.Array, options: GopherQuality) -> pa.Array:
    """``gopher_quality_RULE`` of the first rule that each text breaks, else null."""
    return _judged(texts, lambda text: _quality_reason(text, options))


def judge_repetition(texts: pa.Array, options: GopherRepetition) -> pa.Array:
    """``gopher_repetition_RULE`` of the first rule that each text breaks, else null."""
    return _judged(texts, lambda text: _repetition_reason(text, options))


def _judged(texts: pa.Array, reason: Callable[[str], str | None]) -> pa.Array:
    return pa.array([None if t is None else reason(t) for t in texts.to_pylist()], pa.string())


def _quality_reason(text: str, options: GopherQuality) -> str | None:
    words = script.split(text)
    num_words = words.count
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    spaced = [t for t in words.tokens if not script.is_dense(t)]
    if num_words < options.min_words:
        return "gopher_quality_min_words"
    if num_words > options.max_words:
        return "gopher_quality_max_words"
    if not words.is_dense and spaced:
        mean = sum(map(len, spaced)) / len(spaced)
        if not options.min_mean_word_chars <= mean <= options.max_mean_word_chars:
            return "gopher_quality_mean_word_chars"
    if max(text.count("#"), len(_ELLIPSIS.findall(text))) > options.max_symbol_share * num_words:
        return "gopher_quality_symbol_share"
    if sum(line.startswith(_BULLETS) for line in lines) > options.max_bullet_lines * len(lines):
        return "gopher_quality_bullet_lines"
    if sum(_ends_in_ellipsis(line) for line in lines) > options.max_ellipsis_lines * len(lines):
        return "gopher_quality_ellipsis_lines"
    num_alpha = sum(_LETTER.search(t) is not None for t in spaced) + words.num_dense / script.DENSE_PER_WORD
    if num_alpha < options.min_alpha_words * num_words:
        return "gopher_quality_alpha_words"
    return None if _num_stop_words(text, words) >= options.min_stop_words else "gopher_quality_stop_words"


def _ends_in_ellipsis(line: str) -> bool:
    return line.endswith(("...", "…", "。。。"))


def _num_stop_words(text: str, words: script.Words) -> int:
    """Different stop words of the text's language; plenty where it is neither English nor Chinese by its script."""
    if words.is_dense:
        return len(_STOP_WORDS) if script.has_kana(text) else len(_STOP_CHARACTERS.intersection(text))
    if sum(t[0] >= _FIRST_NOT_LATIN for t in words.tokens) * 2 > len(words.tokens):
        return len(_STOP_WORDS)
    return len(_STOP_WORDS.intersection(t.strip(_TRIM).lower() for t in words.tokens))


def _repetition_reason(text: str, options: GopherRepetition) -> str | None:
    for name, parts in (("line", text.split("\n")), ("paragraph", re.split(r"\n\s*\n", text))):
        share, chars = _repeated([p.strip() for p in parts if p.strip()])
        if share > getattr(options, f"dup_{name}s"):
            return f"gopher_repetition_dup_{name}s"
        if chars > getattr(options, f"dup_{name}_chars"):
            return f"gopher_repetition_dup_{name}_chars"
    words = script.split(text)
    if not words.tokens:
        return None
    ids, lengths = _token_arrays(words.tokens)
    scale = script.DENSE_PER_WORD if words.is_dense else 1
    for n in (2, 3, 4):
        if _top_share(ids, lengths, n * scale) > getattr(options, f"top_{n}gram"):
            return f"gopher_repetition_top_{n}gram"
    limits = {n: getattr(options, f"dup_{n}gram") for n in range(5, 11)}
    for n, limit in limits.items():
        share = _dup_share(ids, lengths, n * scale)
        if share > limit:
            return f"gopher_repetition_dup_{n}gram"
        if share <= min(
            limits.values()
        ):  # what stands in a repeated longer n-gram stands in a repeated shorter one
            return None
    return None


def _repeated(parts: list[str]) -> tuple[float, float]:
    """Shares of the parts, and of their characters, that stood before: ``["a", "b", "a"]`` -> (1/3, 1/3)."""
    counts = Counter(parts)
    num_chars = sum(map(len, parts))
    if not num_chars:
        return 0.0, 0.0
    again = sum(len(part) * (count - 1) for part, count in counts.items())
    return (len(parts) - len(counts)) / len(parts), again / num_chars


def _token_arrays(tokens: list[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A number a token, equal for equal tokens, and its length in characters; both ``[num_tokens]``."""
    seen: dict[str, int] = {}
    ids = np.array([seen.setdefault(t, len(seen)) for t in tokens], np.uint64)
    return ids, np.array([len(t) for t in tokens], np.int64)


def _ngrams(ids: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A 64-bit hash of every n-gram, ``[num_tokens - n + 1]``: a polynomial modulo 2^64 over the tokens' numbers."""
    num = len(ids) - n + 1
    rolled = np.zeros(max(num, 0), np.uint64)
    for k in range(n if num > 0 else 0):
        rolled = (rolled + ids[k : k + num] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        rolled ^= rolled >> np.uint64(29)
    return rolled


def _top_share(ids: NDArray[np.uint64], lengths: NDArray[np.int64], n: int) -> float:
    """The share of characters in the n-gram that occurs most often (of several, the longest), if it occurs twice."""
    grams = _ngrams(ids, n)
    if len(grams) < 2:
        return 0.0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    most = counts.max()
    if most < 2:
        return 0.0
    ends = np.concatenate([[0], np.cumsum(lengths)])
    starts = first[counts == most]
    return float(most * (ends[starts + n] - ends[starts]).max() / ends[-1])


def _dup_share(ids: NDArray[np.uint64], lengths: NDArray[np.int64], n: int) -> float:
    """The share of characters inside n-grams that occur more than once, each character counted once."""
    grams = _ngrams(ids, n)
    if len(grams) < 2:
        return 0.0
    _, inverse, counts = np.unique(grams, return_inverse=True, return_counts=True)
    starts = np.flatnonzero(counts[inverse] > 1)
    edges = np.zeros(len(ids) + 1, np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + n, -1)
    inside = np.cumsum(edges[:-1]) > 0
    return float(lengths[inside].sum() / lengths.sum())
