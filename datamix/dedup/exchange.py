"""Signatures to and from datasketch: an index of an earlier build, or one built elsewhere from our
signatures.

Our permutations are datasketch's ``affine32`` scheme (a odd, 32 bits) with multipliers of our own, so a
signature *is* a ``datasketch.MinHash``: ``jaccard``, ``MinHashLSH``, ``MinHashLSHForest`` and pickling all
work on it. What does not work is ``update``: words are hashed here, not by datasketch, and signatures made
there by ``update`` are refused here.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from datamix.core.errors import DataError
from datamix.dedup.signatures import permutations, signature_columns, signatures
from datamix.dedup.spec import NearSpec
from datamix.dedup.text_columns import places

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

_SCHEME = "affine32"
_NO_WORDS = np.uint32(0xFFFFFFFF)


def minhash_values(texts: pa.Array, near: NearSpec) -> NDArray[np.uint32]:
    """MinHash values ``[num_texts, bands * rows]`` of texts; all ones where a text has no words."""
    bands, rows = near.banding
    values, _ = signatures(*places(texts), near.ngram, bands * rows)
    return values


def to_datasketch(values: NDArray[np.uint32]) -> list[MinHash]:
    """One ``datasketch.MinHash`` a row; they share one array of permutations."""
    from datasketch import MinHash

    shared = permutations(values.shape[1])[:, : values.shape[1]]
    return [MinHash(hashvalues=row, permutations=shared, scheme=_SCHEME) for row in values]


def to_datasketch_lsh(values: NDArray[np.uint32], names: Sequence[Hashable], near: NearSpec) -> MinHashLSH:
    """A ``datasketch.MinHashLSH`` over the rows with the spec's bands, to be queried or pickled."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=near.threshold, num_perm=values.shape[1], params=near.banding)
    for name, minhash in zip(names, to_datasketch(values), strict=True):
        index.insert(name, minhash)
    return index


def from_datasketch(minhashes: Sequence[MinHash], near: NearSpec) -> pa.RecordBatch:
    """The columns of ``sign`` from saved signatures, for a ``Signed`` without batches: it removes by
    estimate.

    Such records are never exact duplicates of anything, since their texts are unknown. Raises DataError where
    a signature has other permutations than ours, or another number of them than the spec.
    """
    bands, rows = near.banding
    shared = permutations(bands * rows)[:, : bands * rows]
    for number, minhash in enumerate(minhashes):
        ours = minhash.num_perm == bands * rows and np.array_equal(minhash.permutations, shared)
        if not ours or getattr(minhash, "scheme", None) != _SCHEME:
            raise DataError(
                f"MinHash {number} was not made by datamix for {bands} bands of {rows} rows: its "
                "permutations differ, so its values cannot be compared. Sign the old texts with datamix "
                f"once, and save those signatures."
            )
    values = np.array([m.hashvalues for m in minhashes], np.uint32).reshape(-1, bands * rows)
    exact = b"".join(xxhash.xxh3_128_digest(b"minhash%d" % i + row.tobytes()) for i, row in enumerate(values))
    has_words = (values != _NO_WORDS).any(axis=1)
    columns = signature_columns(values, has_words.astype(np.int32), np.zeros(len(values), np.uint64), bands)
    keys = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(values), [None, pa.py_buffer(exact)])
    lengths = pa.array(np.zeros(len(values), np.int64))
    return pa.RecordBatch.from_pydict({"exact": keys, "length": lengths, **columns})
