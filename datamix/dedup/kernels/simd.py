"""Machine operations that numba lacks: 64 bytes as one vector, unaligned loads, reads at an address.

Each operation is a few LLVM instructions, which LLVM turns into what the processor has (AVX-512, AVX2, NEON,
plain words).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

from datamix.core.jit import intrinsic

_copy: Any = cgutils.raw_memcpy
_BLOCK = 64


def _element(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic  # type: ignore[untyped-decorator]
def word_mask(_typing: Any, window: Any, _index: Any) -> Any:
    """Bit i: byte ``index + i`` is an ASCII letter, digit, underscore, or part of another character."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), _BLOCK)
        place = _element(context, builder, signature.args[0], *args)
        block = builder.load(builder.bitcast(place, vector.as_pointer()))
        block.align = 1

        def constant(byte: int) -> Any:
            return ir.Constant(vector, [byte] * _BLOCK)

        folded = builder.or_(block, constant(0x20))
        letter = builder.icmp_unsigned("<", builder.sub(folded, constant(ord("a"))), constant(26))
        digit = builder.icmp_unsigned("<", builder.sub(block, constant(ord("0"))), constant(10))
        underscore = builder.icmp_unsigned("==", block, constant(ord("_")))
        wide = builder.icmp_unsigned(">=", block, constant(0x80))
        mask = builder.or_(builder.or_(letter, digit), builder.or_(underscore, wide))
        return builder.bitcast(mask, ir.IntType(64))

    return types.uint64(window, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def eight_bytes(_typing: Any, window: Any, _index: Any) -> Any:
    """The eight bytes from ``index`` on, little end first."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _element(context, builder, signature.args[0], *args)
        value = builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()))
        value.align = 1
        return value

    return types.uint64(window, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(_typing: Any, _mask: Any) -> Any:
    """The place of the lowest bit of a mask that has one."""

    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), build


@intrinsic  # type: ignore[untyped-decorator]
def copy_bytes(_typing: Any, target: Any, _address: Any, _length: Any) -> Any:
    """Copy ``length`` bytes from a memory address to the start of a uint8 array."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, address, length = args
        place = _element(context, builder, signature.args[0], target, ir.Constant(ir.IntType(64), 0))
        source = builder.inttoptr(address, ir.IntType(8).as_pointer())
        _copy(builder, place, source, length, 1)
        return context.get_dummy_value()

    return types.void(target, types.int64, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def byte_at(_typing: Any, _address: Any) -> Any:
    """The byte at a memory address."""

    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(8).as_pointer()))

    return types.uint8(types.int64), build
