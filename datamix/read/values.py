"""Strict JSON values from bytes: orjson for what is right, a diagnosis for what is not.

``parse_clean`` is the way nearly all records go: one guard, one ``map(orjson.loads)``. Only when something in a chunk
is out of the ordinary does ``parse_one`` look at its records one by one. Strict means RFC 8259: no NaN or
Infinity, no lone surrogates, valid UTF-8. Of duplicate keys the last wins. Integers outside 64 bit, which orjson would
round to floats, are kept exactly, as text. Nesting deeper than ``MAX_DEPTH`` is refused before any parser sees it.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import orjson

MAX_DEPTH = 256
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_LONG_INTEGER = re.compile(rb"(?<![0-9.eE+-])-?[0-9]{19,}+(?![.eE])")
_DIGITS = bytes(48 if 48 <= b <= 57 else 32 for b in range(256))
_LONG_RUN = b"0" * 19  # the shortest integer outside 64 bit has 19 digits
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1

Problem = tuple[str, str]  # reason code, one sentence


def parse_clean(raws: list[bytes]) -> list[Any] | None:
    """The objects in ``raws``, or None where any of them needs ``parse_one``."""
    for raw in raws:
        if len(raw) > 2 * MAX_DEPTH and raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
            return None
    try:
        values = list(map(orjson.loads, raws))
    except orjson.JSONDecodeError:
        return None
    if not set(map(type, values)) <= {dict} or _may_hold_long_integer(raws):
        return None
    return values


def parse_one(raw: bytes) -> tuple[Any, Problem | None]:
    """The object in ``raw``, or why there is none."""
    if len(raw) > 2 * MAX_DEPTH and raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and is_too_deep(raw):
        return None, ("depth", f"nested deeper than {MAX_DEPTH} levels")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None, _diagnosis(raw)
    if type(value) is not dict:
        return None, ("not_object", f"expected an object, found {_kind(value)}")
    if raw.translate(_DIGITS).find(_LONG_RUN) >= 0 and _holds_long_integer(raw):
        value = json.loads(raw, parse_int=_exact)
    return value, None


def is_too_deep(raw: bytes) -> bool:
    """Whether brackets outside strings nest deeper than ``MAX_DEPTH``; memory stays near ``len(raw)``."""
    codes = np.frombuffer(_STRING.sub(b"", raw), np.uint8)
    depth = 0
    for start in range(0, len(codes), 1 << 20):
        steps = np.cumsum(_STEP[codes[start : start + (1 << 20)]], dtype=np.int32)
        if depth + int(steps.max()) > MAX_DEPTH:
            return True
        depth += int(steps[-1])
    return False


def ends_early(raw: bytes) -> bool:
    """Whether ``raw`` reads like the beginning of a value whose end is missing."""
    try:
        json.loads(raw.decode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated") or error.pos >= len(error.doc.rstrip())
    except RecursionError:
        return True
    return False


def _may_hold_long_integer(raws: list[bytes]) -> bool:
    """False is sure. 19 digits in a row cover one aligned word of 8, so looking at words is enough to begin with."""
    joined = b"\n".join(raws)
    words = np.frombuffer(joined, np.uint64, count=len(joined) // 8)
    found = np.flatnonzero((words & np.uint64(0xF0F0F0F0F0F0F0F0)) == np.uint64(0x3030303030303030))
    for word in found.tolist():
        near = joined[max(word * 8 - 19, 0) : word * 8 + 27]
        if near.translate(_DIGITS).find(_LONG_RUN) >= 0:
            return True
    return False


def _holds_long_integer(raw: bytes) -> bool:
    bare = _STRING.sub(b'""', raw)
    return any(isinstance(_exact(m[0].decode()), str) for m in _LONG_INTEGER.finditer(bare))


def _exact(digits: str) -> int | str:
    if len(digits) > 21:
        return digits
    number = int(digits)
    return number if -(1 << 63) <= number < 1 << 64 else digits


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return "a string"
    return "null" if value is None else f"{str(value)[:40]}"


def _diagnosis(raw: bytes) -> Problem:
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
        return "depth", f"nested deeper than {MAX_DEPTH} levels"
    except ValueError:  # an integer with more digits than Python converts
        return "number", "a number that no float can hold"
    if constants:
        return "nan", f"{constants[0]} is not JSON"
    if re.search(r"\\u[dD][89abAB]", text) or re.search(r"\\u[dD][c-fC-F]", text):
        return "surrogate", "a lone surrogate escape (\\ud800 to \\udfff), which is no character"
    return "number", "a number that no float can hold"
