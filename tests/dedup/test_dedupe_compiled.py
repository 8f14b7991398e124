"""Kernels as object files: compiled once, loaded without the compiler."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from datamix.core.kernels import Kernel, flat
from datamix.dedup import dedupe

TEXTS = ["one two three four five six seven"] * 2 + ["something else"]
PROGRAM = """
import sys
import pyarrow as pa
from datamix.dedup import dedupe
offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 33, 66)))
texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"one two three four five six seven" * 2)])
assert dedupe(pa.Table.from_arrays([texts], ["text"])).removed["row"].to_pylist() == [1]
print(*{"numba", "scipy", "pandas"} & set(sys.modules))
"""


def test_a_process_that_finds_its_kernels_loads_neither_numba_nor_what_numba_and_arrow_would_load() -> None:
    assert dedupe(pa.table({"text": TEXTS})).removed["row"].to_pylist() == [1]  # compiled by now
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_a_kernel_is_compiled_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/dev/null/nowhere")
    keys, slots = np.array([1, 2], np.uint64), np.full(4, -1, np.int32)
    Kernel("dedup", "grams", "place")(keys, slots)
    assert slots.tolist() == [-1, 0, 1, -1]


def test_arrays_of_another_kind_are_another_kernel() -> None:
    values = np.arange(8)
    assert flat(values).types != flat(values.astype(np.int32)).types
    assert flat(values).types != flat(values[::2]).types
    assert flat((values, 1)).types != flat((values, 1.0)).types
