"""Strict JSON values from bytes: orjson for what is right, a diagnosis for what is not.

``parse_clean`` is the way nearly all records go: one guard, one ``map(orjson.loads)``. Only when something in a chunk
is out of the ordinary does ``parse_one`` look at its records one by one. Strict means RFC 8259: no NaN or
Infinity, no lone surrogates, valid UTF-8. Of duplicate keys the last wins. Integers outside 64 bit, which orjson would
round to floats, are kept exactly, as text. Nesting deeper than ``MAX_DEPTH`` is refused (orjson itself stops at 1024
with an error, where recursive parsers crash).
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

MAX_DEPTH = 256
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_LONG_INTEGER = re.compile(rb"(?<![0-9.eE+-])-?[0-9]{19,}+(?![.eE])")
_DIGITS = bytes(48 if 48 <= b <= 57 else 32 for b in range(256))
_LONG_RUN = b"0" * 19  # the shortest integer outside 64 bit has 19 digits
_CONTAINERS = frozenset((dict, list))
_PLAIN = frozenset((str, int, bool, type(None)))  # not nested, and no float that was a long integer

JsonProblem = tuple[str, str]  # reason code, one sentence
_TOO_DEEP: JsonProblem = ("depth", f"nested deeper than {MAX_DEPTH} levels")


def parse_clean(raws: list[bytes]) -> list[Any] | None:
    """The objects in ``raws``, or None where any of them needs ``parse_one``."""
    try:
        values = list(map(orjson.loads, raws))
    except orjson.JSONDecodeError:
        return None
    if not set(map(type, values)) <= {dict}:
        return None
    for i, value in enumerate(values):
        if _PLAIN.issuperset(map(type, value.values())):
            continue
        is_deep, has_float = survey(value)
        if is_deep:
            return None
        if has_float:
            values[i] = _with_exact_integers(value, raws[i])
    return values


def parse_one(raw: bytes) -> tuple[Any, JsonProblem | None]:
    """The object in ``raw``, or why there is none."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None, _diagnosis(raw)
    if type(value) is not dict and type(value) is not list:
        return None, ("not_object", f"expected an object, found {_kind(value)}")
    is_deep, has_float = survey(value)
    if is_deep:
        return None, _TOO_DEEP
    if type(value) is list:
        return None, ("not_object", "expected an object, found a list")
    return _with_exact_integers(value, raw) if has_float else value, None


def survey(value: Any) -> tuple[bool, bool]:
    """Whether lists and objects nest deeper than ``MAX_DEPTH``, and whether a float is among the values.

    Walks level by level, without recursion.
    """
    kinds: set[type] = set()
    level = [value]
    for _ in range(MAX_DEPTH):
        children: list[Any] = []
        for parent in level:
            children += parent.values() if type(parent) is dict else parent
        kinds.update(map(type, children))
        level = [child for child in children if type(child) in _CONTAINERS]
        if not level:
            return False, float in kinds
    return True, float in kinds


def _may_be_deep(raw: bytes) -> bool:
    return len(raw) > 2 * MAX_DEPTH and raw.count(b"[") + raw.count(b"{") > MAX_DEPTH


def ends_early(raw: bytes) -> bool:
    """Whether ``raw`` reads like the beginning of a value whose end is missing."""
    try:
        json.loads(raw.decode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated") or error.pos >= len(error.doc.rstrip())
    except RecursionError:
        return True
    return False


def _with_exact_integers(value: Any, raw: bytes) -> Any:
    if raw.translate(_DIGITS).find(_LONG_RUN) >= 0 and _holds_long_integer(raw):
        return json.loads(raw, parse_int=_exact)
    return value


def _holds_long_integer(raw: bytes) -> bool:
    bare = _STRING.sub(b'""', raw)
    return any(isinstance(_exact(m[0].decode()), str) for m in _LONG_INTEGER.finditer(bare))


def _exact(digits: str) -> int | str:
    if len(digits) > 21:
        return digits
    number = int(digits)
    return number if -(1 << 63) <= number < 1 << 64 else digits


def _opens_too_deep(raw: bytes) -> bool:
    """Whether brackets outside strings nest too deep, in bytes that need not be JSON."""
    depth = 0
    for bracket in re.finditer(rb"[\[{]|[\]}]", _STRING.sub(b"", raw)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "a string"
    return "null" if value is None else f"{str(value)[:40]}"


def _diagnosis(raw: bytes) -> JsonProblem:
    if _may_be_deep(raw) and _opens_too_deep(raw):
        return _TOO_DEEP
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return "utf8", f"byte 0x{raw[error.start]:02x} at offset {error.start} is not valid UTF-8"
    if "\x00" in text:
        return "nul", f"a NUL byte at offset {raw.index(0)}"
    constants: list[str] = []
    try:
        json.loads(text, parse_constant=constants.append)
    except json.JSONDecodeError as error:
        return "json_syntax", f"{error.msg} at character {error.pos + 1}"
    except RecursionError:
        return _TOO_DEEP
    except ValueError:  # an integer with more digits than Python converts
        return "number", "a number that no float can hold"
    if constants:
        return "nan", f"{constants[0]} is not JSON"
    if re.search(r"\\u[dD][89abAB]", text) or re.search(r"\\u[dD][c-fC-F]", text):
        return "surrogate", "a lone surrogate escape (\\ud800 to \\udfff), which is no character"
    return "number", "a number that no float can hold"
