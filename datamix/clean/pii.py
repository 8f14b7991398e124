"""Replace what points at a person: e-mail, identity card, bank card, phone number, IP address.

Each match becomes a fixed word such as ``[PHONE]``, the same for all: nothing of it is saved, so nobody can
turn it back. Numbers are checked, not only matched: an identity card by its date and its check character (GB
11643, ISO 7064 MOD 11-2), a bank card by its issuer's digits and Luhn's sum (ISO/IEC 7812), an address by
being public. Full-width digits count as digits. Rules of this sort match the common forms, not every one.
Columnar search first; Python only reads texts that hold a candidate.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from datamix.clean.fields import Pass, replace_matching

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

# The same forms for a search over a whole column (RE2), without what may surround them.
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


def redact_json(text: str, redact: Callable[[str], str]) -> str:
    """Redact the strings and whole numbers inside a JSON text; names, and texts without a match, stay as they
    are.

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
    """Whether 18 characters are an identity card number: a date that exists, and the right check
    character.
    """
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
    if not 15 <= len(digits) <= 19:
        return False
    start, length = digits[0] * 10 + digits[1], len(digits)
    if start in (60, 62, 64, 65):  # UnionPay and Discover
        issued = length >= 16
    elif start in (34, 37):  # American Express
        issued = length == 15
    else:  # Visa, Mastercard, JCB
        issued = length == 16 and (digits[0] == 4 or 51 <= start <= 55 or 22 <= start <= 27 or start == 35)
    doubled = [d * 2 - 9 * (d > 4) if i % 2 else d for i, d in enumerate(reversed(digits))]
    return issued and sum(doubled) % 10 == 0


def is_phone(number: str) -> bool:
    """Whether a phone-like text has as many digits as a phone number."""
    return 9 <= sum(c.isdigit() for c in number) <= 17


def _replace(pattern: re.Pattern[str], word: str, is_valid: Callable[[str], bool], text: str) -> str:
    return pattern.sub(lambda match: word if is_valid(match[0]) else match[0], text)


def _replace_addresses(text: str) -> str:
    def is_public(address: str) -> bool:
        try:
            digits = "".join(str(int(c)) if c.isdecimal() else c for c in address)
            return ipaddress.ip_address(digits).is_global
        except ValueError:
            return False

    return _replace(_IPV6, "[IP]", is_public, _replace(_IPV4, "[IP]", is_public, text))


# Option -> what a text must hold before Python reads it (RE2), and how it is redacted; the stricter come
# first.
_RULES: dict[str, tuple[str, Callable[[str], str]]] = {
    "email": (r"[A-Za-z0-9_.+%-]@[A-Za-z0-9]", lambda text: _EMAIL.sub("[EMAIL]", text)),
    "id_card": (r"\p{Nd}{17}", partial(_replace, _ID_CARD, "[ID_CARD]", is_id_card)),
    "bank_card": (_CARD_LIKE, partial(_replace, _BANK_CARD, "[BANK_CARD]", is_bank_card)),
    "phone": (_PHONE_LIKE, partial(_replace, _PHONE, "[PHONE]", is_phone)),
    "ip": (_IP_LIKE, _replace_addresses),
}


def passes(options: Pii) -> list[Pass]:
    """One pass per sort of personal data, counted under its own name."""
    return [
        Pass(
            f"pii_{name}",
            partial(_redact, pattern, redact),
            partial(_redact, pattern, partial(redact_json, redact=redact)),
        )
        for name, (pattern, redact) in _RULES.items()
        if getattr(options, name)
    ]


def _redact(pattern: str, redact: Callable[[str], str], texts: pa.Array, _: Pii) -> pa.Array:
    return replace_matching(texts, pattern, redact)
