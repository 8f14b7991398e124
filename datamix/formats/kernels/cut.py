"""Kernel: the strings of lines of JSON, exactly those of RFC 8259, and what stands around them. See ``stencil``."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types

from datamix.core.jit import intrinsic, kernel
from datamix.formats.kernels import BLOCK


@intrinsic  # type: ignore[untyped-decorator]
def copy_text(_typing: Any, source: Any, _start: Any, target: Any, _place: Any) -> Any:
    """Copy 64 bytes; of them so many come before the first quote, backslash or control character."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def block(kind: Any, array: Any, index: Any) -> Any:
            data = context.make_array(kind)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

        vector = ir.VectorType(ir.IntType(8), BLOCK)
        loaded = builder.load(block(signature.args[0], args[0], args[1]))
        loaded.align = 1
        builder.store(loaded, block(signature.args[2], args[2], args[3])).align = 1
        ends = builder.icmp_unsigned("<", loaded, ir.Constant(vector, [32] * BLOCK))
        for byte in b'"\\':
            ends = builder.or_(ends, builder.icmp_unsigned("==", loaded, ir.Constant(vector, [byte] * BLOCK)))
        return builder.cttz(builder.bitcast(ends, ir.IntType(64)), ir.Constant(ir.IntType(1), 0))

    return types.int64(source, types.int64, target, types.int64), build


_ESCAPES = np.zeros(256, np.uint8)
for _name, _value in zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True):
    _ESCAPES[_name] = _value
_HEX = np.full(256, 255, np.uint8)
for _digit in b"0123456789abcdefABCDEF":
    _HEX[_digit] = int(chr(_digit), 16)


@kernel
def cut(data, starts, texts, offsets, stencils, ends):  # type: ignore[no-untyped-def]
    """Cut each line; of one that needs a closer look the stencil stays empty."""
    for line in range(len(starts) - 1):
        stencil, number = ends[line, 0], ends[line, 1]
        bounds = (starts[line], starts[line + 1] - 1)
        stencil, number = _cut_line(data, bounds, texts, offsets, stencils, (stencil, number))
        if stencil < 0:
            stencil, number = ends[line, 0], ends[line, 1]
        ends[line + 1, 0] = stencil
        ends[line + 1, 1] = number


@kernel
def _cut_line(data, bounds, texts, offsets, stencils, position):  # type: ignore[no-untyped-def]
    """Where stencils and texts end behind this line; -1: one of its strings is none, or a byte stands outside strings
    that JSON does not have there."""
    place, stop = bounds
    stencil, number = position
    out = int(offsets[number])
    is_role = False
    while place < stop:
        byte = data[place]
        if byte == 34:
            start, begin = place, out
            place, out = _text(data, place + 1, texts, out)
            if place < 0:
                return -1, number
            after = place
            while data[after] == 32 or data[after] == 9:
                after += 1
            is_key = data[after] == 58
            if is_key or is_role or out == begin:  # stays in the stencil, as roles and empty texts do
                out = begin
                is_role = is_key and _is_role(data, start, place)
                for i in range(start, place):
                    stencils[stencil] = data[i]
                    stencil += 1
            else:
                stencils[stencil] = 1
                stencil += 1
                number += 1
                offsets[number] = out
        elif byte < 32 and byte != 9 and byte != 13:
            return -1, number
        else:
            length = _plain_number(data, place)
            stencils[stencil] = 49 if length else byte
            stencil += 1
            place += max(length, 1)
    return stencil, number


@kernel
def _text(data, place, texts, out):  # type: ignore[no-untyped-def]
    """Write the text whose first byte is at ``place``: the place behind its quote, or -1, and where it ends in ``texts``."""
    while True:  # the newline behind the line ends it at the latest
        ahead = copy_text(data, place, texts, out)
        place += ahead
        out += ahead
        if ahead == 64:
            continue
        byte = data[place]
        if byte == 34:
            return place + 1, out
        if byte != 92:
            return -1, out
        place, out = _escape(data, texts, place, out)
        if place < 0:
            return -1, out


@kernel
def _is_role(data, start, stop):  # type: ignore[no-untyped-def]
    if stop - start != 6:
        return False
    role = (
        data[start + 1] == 114
        and data[start + 2] == 111
        and data[start + 3] == 108
        and data[start + 4] == 101
    )
    origin = (
        data[start + 1] == 102
        and data[start + 2] == 114
        and data[start + 3] == 111
        and data[start + 4] == 109
    )
    return role or origin


@kernel
def _plain_number(data, place):  # type: ignore[no-untyped-def]
    """The length of a number that begins here and is at least 1, of at most 15 digits on each side; 0: none does."""
    if data[place] < 49 or data[place] > 57 or place == 0:
        return 0
    before = data[place - 1]
    if before != 58 and before != 32 and before != 91 and before != 44:
        return 0
    stop = place + 1
    while 48 <= data[stop] <= 57:
        stop += 1
    if stop - place > 15:
        return 0
    if data[stop] == 46:
        point = stop
        stop += 1
        while 48 <= data[stop] <= 57:
            stop += 1
        if stop == point + 1 or stop - point > 16:
            return 0
    after = data[stop]
    return stop - place if after == 44 or after == 125 or after == 93 or after == 32 else 0


@kernel
def _escape(data, texts, place, out):  # type: ignore[no-untyped-def]
    """Write the character of the escape at ``place``: where it ends and where the text ends; -1: it is none."""
    named = _ESCAPES[data[place + 1]]
    if named:
        texts[out] = named
        return place + 2, out + 1
    code = _code(data, place)
    place += 6
    if code < 0 or 0xDC00 <= code < 0xE000:
        return -1, out
    if 0xD800 <= code < 0xDC00:
        low = _code(data, place)
        if low < 0xDC00 or low >= 0xE000:
            return -1, out
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        place += 6
    if code < 0x80:
        texts[out] = code
        return place, out + 1
    num = 1 if code < 0x800 else 2 if code < 0x10000 else 3
    texts[out] = (0xFF00 >> (num + 1)) & 0xFF | code >> 6 * num
    for i in range(num):
        texts[out + 1 + i] = 0x80 | code >> 6 * (num - 1 - i) & 0x3F
    return place, out + num + 1


@kernel
def _code(data, place):  # type: ignore[no-untyped-def]
    """The number of ``\\uXXXX`` at ``place``; -1: it is none."""
    if place + 6 > len(data) or data[place] != 92 or data[place + 1] != 117:
        return -1
    code = 0
    for i in range(place + 2, place + 6):
        digit = _HEX[data[i]]
        if digit == 255:
            return -1
        code = code << 4 | digit
    return code
