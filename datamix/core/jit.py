"""How the functions in every room's ``kernels/`` are compiled; imports numba, and is imported by them alone.

They allocate nothing, so nothing counts references; entry points for Python are left out, because
``core.kernels`` calls the machine code. Kernels of microseconds take addresses instead of arrays, and read
and write numbers there.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import njit
from numba.core import types
from numba.extending import intrinsic as _intrinsic

intrinsic: Any = _intrinsic  # a few LLVM instructions as a function
_njit: Any = njit
kernel: Any = functools.partial(
    _njit, _nrt=False, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)
inline: Any = functools.partial(kernel, inline="always")  # written into its callers


def _reader(kind: Any) -> Any:
    """A compiled read of number ``index`` at an address, as int64."""

    @intrinsic  # type: ignore[untyped-decorator]
    def read(_typing: Any, _address: Any, _index: Any) -> Any:
        def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            numbers = builder.inttoptr(args[0], context.get_value_type(kind).as_pointer())
            number = builder.load(builder.gep(numbers, [args[1]]))
            return context.cast(builder, number, kind, types.int64)

        return types.int64(types.int64, types.int64), build

    return read


int8_at, uint8_at, uint16_at = _reader(types.int8), _reader(types.uint8), _reader(types.uint16)
int32_at, int64_at = _reader(types.int32), _reader(types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def put_int64(_typing: Any, _address: Any, _index: Any, _value: Any) -> Any:
    """Write number ``index`` at an address."""

    def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        numbers = builder.inttoptr(args[0], context.get_value_type(types.int64).as_pointer())
        builder.store(args[2], builder.gep(numbers, [args[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), build


@kernel
def owner(begins, low, high, number):  # type: ignore[no-untyped-def]
    """The last of ``low..high`` whose ``begins`` (an address) is at ``number`` or before; ``low - 1`` where
    none is.
    """
    while low < high:
        middle = (low + high) // 2
        if int64_at(begins, middle) <= number:
            low = middle + 1
        else:
            high = middle
    return low - 1
