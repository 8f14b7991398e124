"""Names for things: fingerprints of specs, content keys of records, seeds by name, permutations.

Everything that must be the same on every machine and in every run is derived here, from sha256,
xxh3 and splitmix64, never from Python's ``hash``, a library's random generator or a pickle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

_READ_BYTES = 1 << 20


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    Frozen dataclasses become objects, tuples lists, paths text; anything else that JSON lacks is an error.
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value


def digest(*values: Any) -> str:
    """sha256 (64 hex digits) over the canonical text of ``values``."""
    return hashlib.sha256(canonical(list(values)).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, read in blocks of 1 MiB."""
    state = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_READ_BYTES):
            state.update(block)
    return state.hexdigest()


def content_keys(texts: pa.Array) -> pa.Array:
    """One 128-bit xxh3 hash a text, as FixedSizeBinary(16); null counts as the empty text.

    Texts are hashed in Arrow's buffers, without Python objects of them: 0.2 us each, and 10 GB/s.
    """
    stored = texts.cast(pa.large_binary())
    _validity, offset_buffer, values = stored.buffers()
    offsets = [0]
    if len(stored):
        offsets = np.frombuffer(offset_buffer, np.int64, len(stored) + 1, stored.offset * 8).tolist()
    memory = memoryview(values if values is not None else b"")
    hash128 = xxhash.xxh3_128_digest
    keys = [hash128(memory[start:stop]) for start, stop in itertools.pairwise(offsets)]
    if stored.null_count:
        empty = hash128(b"")
        keys = [
            key if valid else empty for key, valid in zip(keys, stored.is_valid().to_pylist(), strict=True)
        ]
    buffer = pa.py_buffer(b"".join(keys))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, buffer])


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser, a bijection on uint64 (Steele et al., 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def salt(seed: int, *names: str | int) -> np.uint64:
    """A 64-bit seed by name: ``salt(42, "order", "medical", 0)``. New names move no other seed."""
    text = canonical([seed, *names]).encode()
    return np.uint64(int.from_bytes(hashlib.sha256(text).digest()[:8], "little"))


def permutation(num_rows: int, seed: np.uint64) -> NDArray[np.int64]:
    """A seeded order of ``0..num_rows-1``; needs 16 bytes a row while it sorts.

    ``mix64`` is a bijection, so keys never tie and every kind of sort gives the same order.
    """
    keys = mix64(np.arange(num_rows, dtype=np.uint64) ^ seed)
    return np.argsort(keys).astype(np.int64, copy=False)


def key_ranks(keys: NDArray[np.uint8], seed: np.uint64) -> NDArray[np.uint64]:
    """A seeded 64-bit rank of each 16-byte content key ``[num_records, 16]``: the same at any place of the
    record.
    """
    halves = np.ascontiguousarray(keys).view(np.uint64)
    return mix64(mix64(halves[:, 0] ^ seed) ^ halves[:, 1])


def fixed_binary(column: pa.ChunkedArray | pa.Array, width: int = 16) -> NDArray[np.uint8]:
    """A FixedSizeBinary column without nulls as ``uint8[num_rows, width]``."""
    chunks: Sequence[pa.Array] = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [
        np.frombuffer(c.buffers()[1], np.uint8, count=len(c) * width, offset=c.offset * width).reshape(
            -1, width
        )
        for c in chunks
        if len(c)
    ]
    return np.concatenate(parts) if parts else np.empty((0, width), np.uint8)
