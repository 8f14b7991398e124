"""How the functions in every room's ``kernels/`` are made; imports numba, and is imported by them alone.

They allocate nothing, so nothing counts references; ways in for Python are left out, because ``compiled`` calls the machine code.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import njit
from numba.extending import intrinsic as _intrinsic

intrinsic: Any = _intrinsic  # a few LLVM instructions as a function
_njit: Any = njit
kernel: Any = functools.partial(
    _njit, _nrt=False, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)
inline: Any = functools.partial(kernel, inline="always")  # written into its callers
