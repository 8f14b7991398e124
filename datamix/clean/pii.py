"""Replace what points at a person: e-mail, identity card, bank card, phone number, IP address.

Each find becomes a fixed word such as ``[PHONE]``, the same for all: nothing of it is kept, so nobody can turn it back.
Numbers are checked, not only matched: an identity card by its date and its check character (GB 11643, ISO 7064 MOD
11-2), a bank card by its issuer's digits and Luhn's sum (ISO/IEC 7812), an address by being public. Full-width digits
count as digits. A rule of this sort finds the common forms, not every one. Columnar search first; Python only sees
texts that hold a candidate.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamix.clean.fields import Pass

_DASH = r"[-\u2010-\u2015 ]"
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9][A-Za-z0-9_.+%-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![A-Za-z0-9_-])"
)
_ID_CARD = re.compile(r"(?<![\dA-Za-z])[1-9１-９]\d{16}[\dXxＸｘ](?![\dA-Za-z])")
_BANK_CARD = re.compile(
    rf"(?<![\d.])[2-6２-６]\d{{3}}(?:{_DASH}?\d{{4}}){{2}}{_DASH}?\d{{3,4}}(?:{_DASH}?\d{{1,3}})?(?![\d.]?\d)"
)
_PHONES = (
    rf"(?:(?:\+|00)86{_DASH}?)?[1１][3-9３-９]\d{_DASH}?\d{{4}}{_DASH}?\d{{4}}",  # mobile, mainland China
    rf"(?:[(（][0０]\d{{2,3}}[)）]|[0０]\d{{2,3}}{_DASH}){_DASH}?[2-9２-９]\d{{6,7}}",  # landline, China
    r"(?:\+?1[-. ])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-.])[2-9]\d{2}[-.]\d{4}",  # North America
    r"\+[1-9]\d{0,2}(?:[- ]?\(?\d{2,5}\)?){2,5}",  # any country, with its code
)
_PHONE = re.compile(rf"(?<![A-Za-z_\d.])(?:{'|'.join(_PHONES)})(?!\d|\.\d)")
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]?\d)")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])(?:[0-9A-Fa-f]{1,4}:){3,7}(?::?[0-9A-Fa-f]{1,4}){1,4}(?![0-9A-Za-z:])")

# The same forms for a search over a whole column (RE2), without what may stand around them.
_CARD_LIKE = r"\p{Nd}{4}(?:[-\x{2010}-\x{2015} ]?\p{Nd}{4}){2}[-\x{2010}-\x{2015} ]?\p{Nd}{3}"
_PHONE_LIKE = "|".join(_PHONES).replace(r"\d", r"\p{Nd}").replace(r"\u2010-\u2015", r"\x{2010}-\x{2015}")
_IP_LIKE = r"\p{Nd}\.\p{Nd}+\.\p{Nd}+\.\p{Nd}|[0-9A-Fa-f]:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{1,4}:"

_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECKS = "10X98765432"


@dataclass(frozen=True)
class Pii:
    """Options of ``pii``: what to replace."""

    email: bool = True
    id_card: bool = True  # mainland China, 18 characters
    bank_card: bool = True
    phone: bool = True  # China, North America, and any number written with its country code
    ip: bool = True  # public addresses only; 127.0.0.1 and 192.168.* point at nobody


def passes(options: Pii) -> list[Pass]:
    """One pass per sort of find, counted under its own name; the stricter go first."""
    return [_pass(sort) for sort in _SORTS if getattr(options, sort.name)]


@dataclass(frozen=True)
class _Sort:
    name: str
    candidate: str  # RE2: what a text must hold before Python looks at it
    redact: Callable[[str], str]


def _pass(sort: _Sort) -> Pass:
    def text(texts: pa.Array, _: Pii) -> pa.Array:
        return _mend(texts, sort.candidate, sort.redact)

    def in_json(texts: pa.Array, _: Pii) -> pa.Array:
        return _mend(texts, sort.candidate, lambda t: redact_json(t, sort.redact))

    return Pass(f"pii_{sort.name}", text, in_json)


def _mend(texts: pa.Array, candidate: str, redact: Callable[[str], str]) -> pa.Array:
    """Apply ``redact`` to the texts that match ``candidate``; null stays null."""
    suspects = pc.fill_null(pc.match_substring_regex(texts, pattern=candidate), False)
    if not pc.any(suspects).as_py():
        return texts
    rows = pa.array(np.flatnonzero(suspects.to_numpy(zero_copy_only=False)))
    mended = [redact(text) for text in texts.take(rows).to_pylist()]
    return pc.replace_with_mask(texts, suspects, pa.array(mended, texts.type))


def redact_json(text: str, redact: Callable[[str], str]) -> str:
    """Redact the strings and whole numbers inside a JSON text; names, and texts without a find, stay as they are.

    ``'{"phone": 13812345678}'`` -> ``'{"phone": "[PHONE]"}'``.
    """
    before = json.loads(text)
    after = _walk(before, redact)
    return text if after == before else json.dumps(after, ensure_ascii=False)


def _walk(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {k: _walk(v, redact) for k, v in value.items()}
    if isinstance(value, list):
        return [_walk(v, redact) for v in value]
    if isinstance(value, int) and not isinstance(value, bool):
        words = redact(str(value))
        return value if words == str(value) else words
    return value


def is_id_card(number: str) -> bool:
    """Whether 18 characters are an identity card number: a date that exists, and the right check character."""
    digits = [int(c) for c in number[:17]]
    text = "".join(map(str, digits))
    try:
        born = datetime.date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    if not 1850 <= born.year <= 2100:
        return False
    check = _CHECKS[sum(w * d for w, d in zip(_WEIGHTS, digits, strict=True)) % 11]
    return check == number[17].upper().replace("Ｘ", "X") or (
        number[17].isdigit() and check == str(int(number[17]))
    )


def is_bank_card(number: str) -> bool:
    """Whether the digits are a card number: an issuer's first digits, 15 to 19 of them, and Luhn's sum."""
    digits = [int(c) for c in number if c.isdigit()]
    if not 15 <= len(digits) <= 19 or not _issued(digits):
        return False
    doubled = [d * 2 - 9 * (d > 4) if i % 2 else d for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _issued(digits: list[int]) -> bool:
    """The issuers whose cards have so many digits: UnionPay and Discover 16 to 19, American Express 15, others 16."""
    start, length = digits[0] * 10 + digits[1], len(digits)
    if start in (60, 62, 64, 65):
        return length >= 16
    if start in (34, 37):
        return length == 15
    return length == 16 and (digits[0] == 4 or 51 <= start <= 55 or 22 <= start <= 27 or start == 35)


def _id_card(found: re.Match[str]) -> str:
    return "[ID_CARD]" if is_id_card(found[0]) else found[0]


def _bank_card(found: re.Match[str]) -> str:
    return "[BANK_CARD]" if is_bank_card(found[0]) else found[0]


def _phone(found: re.Match[str]) -> str:
    digits = sum(c.isdigit() for c in found[0])
    return "[PHONE]" if 9 <= digits <= 17 else found[0]


def _address(found: re.Match[str]) -> str:
    try:
        is_public = ipaddress.ip_address("".join(_ascii(c) for c in found[0])).is_global
    except ValueError:
        return found[0]
    return "[IP]" if is_public else found[0]


def _ascii(character: str) -> str:
    return str(int(character)) if character.isdecimal() else character


_SORTS = (
    _Sort("email", r"[A-Za-z0-9_.+%-]@[A-Za-z0-9]", lambda text: _EMAIL.sub("[EMAIL]", text)),
    _Sort("id_card", r"\p{Nd}{17}", lambda text: _ID_CARD.sub(_id_card, text)),
    _Sort("bank_card", _CARD_LIKE, lambda text: _BANK_CARD.sub(_bank_card, text)),
    _Sort("phone", _PHONE_LIKE, lambda text: _PHONE.sub(_phone, text)),
    _Sort("ip", _IP_LIKE, lambda text: _IPV6.sub(_address, _IPV4.sub(_address, text))),
)
