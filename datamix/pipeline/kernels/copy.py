"""Kernel: pieces of records copied to where they stand in a column. See ``phases/tokens.py``."""

from __future__ import annotations

from datamix.core.jit import kernel


@kernel
def copy(values, begin, length, out, out_begin):  # type: ignore[no-untyped-def]
    for i in range(len(begin)):
        a, b, n = begin[i], out_begin[i], length[i]
        for j in range(n):
            out[b + j] = values[a + j]
