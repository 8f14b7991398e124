"""What is looked for in a text that a model wrote: refusals, its script, numbers, calls, code.

Plain rules for Chinese and English, each decided in microseconds; none asks a model.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections import Counter

_HEAD = 160  # characters in which a refusal stands
_REFUSALS = re.compile(
    r"\b(i('m| am) (really |very |so )?sorry,? (but )?(i|as an|this|that)\b|(i('m| am)|we('re| are)) (not able|unable) to\b"
    r"|i (can(no|')t|can not|won't|will not|must decline to|am afraid i can't) (\w+ )?(assist|help|provide|fulfill?|comply|answer|do that|"
    r"generate|create|write|discuss|share|give|offer|engage|support|access|browse)"
    r"|as an? (ai|artificial intelligence|large language|language|chat ?bot|virtual assistant)\b|i('m| am) not (equipped|designed|capable|allowed) (to|of)\b|i (do not|don't) have (personal|the (ability|capability|capacity)|access)"
    r"|(against|violates?) (my|our|the) (\w+ )?(guidelines|policy|policies|programming))",
    re.IGNORECASE,
)
_REFUSALS_ZH = re.compile(
    "(很|非常|十分)?(抱歉|对不起)[，,、。！!]?\\s*(但|不过)?(是)?(，|,)?(我|这|作为|您|你)|作为(一个|一名|一种)?(人工智能|AI|语言模型|大模型|大型语言模型)"
    "|我(无法|不能|没有办法|没法|不便|不会)(为(您|你))?(提供|回答|协助|帮助|满足|生成|完成|讨论|访问|执行|继续)|违反(了)?(相关)?(法律|政策|规定|准则)"
    "|(我)?(没有|不具备)(个人|实时|访问)"
)
_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])[-+]?\d[\d,]*(?:\.\d+)?%?")
_ENUMERATOR = re.compile(r"(?m)^[ \t]*(?:\(?\d{1,2}[.)、:：]|第\d{1,2}[步条点章节])(?!\d)")
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_FUNCTION = re.compile(r"\A\s*\[?\s*([A-Za-z_][\w.]*\(.*\))\s*\]?\s*\Z", re.DOTALL)
_FENCE = re.compile(r"^```[ \t]*(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def is_refusal(text: str) -> bool:
    """Whether an answer begins by declining, in English or Chinese."""
    head = text[:_HEAD].replace("\u2019", "'")
    return bool(_REFUSALS.search(head) or _REFUSALS_ZH.search(head))


def script_of(text: str) -> str:
    """The script that most letters of a text have: han, kana, hangul, latin, cyrillic, ...; empty where it has none."""
    counts: Counter[str] = Counter()
    for char in text[:4000]:
        if char.isalpha():
            name = unicodedata.name(char, "").split(" ")[0]
            counts["han" if name == "CJK" else name.lower()] += 1
    if not counts:
        return ""
    kana = counts["hiragana"] + counts["katakana"]
    if kana and kana * 10 >= counts["han"]:
        return "kana"
    counts["han"] *= 3  # a character of Chinese says as much as three letters
    return counts.most_common(1)[0][0]


SCRIPTS = {"zh": "han", "en": "latin", "ja": "kana", "ko": "hangul", "ru": "cyrillic", "ar": "arabic"}


def fits_language(text: str, language: str) -> bool:
    """Whether a text's script is that of a language; unknown languages and texts without letters fit."""
    script = script_of(text)
    return not script or script == SCRIPTS.get(language, "latin" if language.isascii() else script)


def numbers(text: str) -> frozenset[str]:
    """The numbers of a text, without the enumerators of lists: ``"1. Take 2,000 mg (２ x)"`` -> 2000, 2."""
    text = unicodedata.normalize("NFKC", text)
    found = (match.replace(",", "").lstrip("+") for match in _NUMBER.findall(_ENUMERATOR.sub("", text)))
    return frozenset(n.rstrip("0").rstrip(".") if "." in n and not n.endswith("%") else n for n in found)


def last_number(text: str) -> str | None:
    """The number that an answer ends on."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    last = found[-1].replace(",", "").rstrip(".") if found else None
    return last.rstrip("0").rstrip(".") if last and "." in last else last


def calls(text: str) -> tuple[str, ...]:
    """The tool calls in a text, or the whole of it where it is one call, without blanks."""
    found = _CALL.findall(text) or ([whole[1]] if (whole := _FUNCTION.match(text)) else [])
    return tuple("".join(call.split()) for call in found)


def code_is_whole(reference: str, text: str) -> bool:
    """Whether a text has code where the reference has it, and its Python parses."""
    if not _FENCE.search(reference):
        return True
    blocks = _FENCE.findall(text)
    for language, code in blocks:
        if language.lower() in ("python", "py"):
            try:
                ast.parse(code)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                return False
    return bool(blocks)


def words(text: str) -> list[str]:
    """Words for comparison: of Chinese, Japanese and Thai each character is one."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


_WORD = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)


def rouge_l(first: list[str], second: list[str]) -> float:
    """F measure of the longest common subsequence of two lists of words; 0 for empty ones."""
    if not first or not second:
        return 0.0
    places: dict[str, int] = {}
    for at, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << at
    row = 0  # bit-parallel longest common subsequence (Hyyrö, 2004): one step a word
    mask = (1 << len(second)) - 1
    row = mask
    for word in first:
        match = places.get(word, 0) & row
        row = ((row + match) | (row - match)) & mask
    length = len(second) - row.bit_count()
    return 2 * length / (len(first) + len(second))
