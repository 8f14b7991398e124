"""``sign``: the key columns of a batch of records, from which duplicates are decided without reading it
again.

Columns, row for row: ``exact`` (128-bit xxh3 of what makes two records the same) and ``length`` (characters
of the text, or of the answer: who stays with ``rank_by: longest``). With near duplicates asked for: ``bands``
(a struct of one LSH key a band, so that the keys of one band are contiguous and read alone),
``num_shingles``, ``sketch`` (one byte of each MinHash value: a cheap estimate of the similarity), and of
conversations ``near_text`` (the text that was signed, so that verification reads just that). 18 bands of 6
rows take 280 bytes a record on disk.

Cost: 22 ns a word on one busy core; threads scale.
"""

from __future__ import annotations

import functools
from typing import NamedTuple
from unicodedata import ucd_3_2_0

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.hashing import content_keys, fixed_binary, mix64, salt
from datamix.core.kernels import Kernel
from datamix.core.records import RecordKind, identity_texts, texts
from datamix.dedup.kernels import LANES, PER_PASS, SINGLE, WINDOW_BYTES, WORD
from datamix.dedup.spec import DedupeSpec, NearSpec
from datamix.dedup.text_columns import contexts, near_texts, numbers, places

_sign = Kernel("dedup", "grams", "sign")
_band_keys = Kernel("dedup", "grams", "band_keys")


def sign(batch: pa.RecordBatch, kind: RecordKind, spec: DedupeSpec) -> pa.RecordBatch:
    """The key columns of a batch of records, row for row; pure, and the same on every machine."""
    exact_fields, near_fields = spec.fields.of(kind)
    columns: dict[str, pa.Array] = {}
    whole = identity_texts(batch, kind) if exact_fields == "all" else texts(batch, kind, exact_fields)
    columns["exact"] = content_keys(normalized(whole) if spec.normalize else whole)
    if spec.near is not None:
        compared = near_texts(batch, kind, near_fields)
        columns |= near_columns(compared, contexts(batch, kind), spec.near)
        if kind != "text":
            columns["near_text"] = compared
    ranked = texts(batch, kind, "answer" if kind in ("sft", "preference") else "all")
    lengths = pc.utf8_length(ranked).cast(pa.int64())
    columns["length"] = lengths.fill_null(0) if lengths.null_count else lengths
    return pa.RecordBatch.from_pydict(columns)


def near_columns(compared: pa.Array, context: pa.Array, near: NearSpec) -> dict[str, pa.Array]:
    """``bands``, ``num_shingles`` and ``sketch`` of texts; records of unequal context never share a band."""
    bands, rows = near.banding
    values, num_shingles = signatures(*places(compared), near.ngram, bands * rows)
    salts = np.zeros(len(compared), np.uint64)
    if context.null_count < len(context):
        salts = fixed_binary(content_keys(context)).view(np.uint64)[:, 0].copy()
        salts[pc.is_null(context).to_numpy(zero_copy_only=False)] = 0
    return signature_columns(values, num_shingles, salts, bands)


def signature_columns(
    values: NDArray[np.uint32], num_shingles: NDArray[np.int32], salts: NDArray[np.uint64], bands: int
) -> dict[str, pa.Array]:
    """The near-duplicate columns made of MinHash values ``[num_texts, num_perm]``."""
    keys = np.empty((bands, len(values)), np.uint64)
    _band_keys(values, salts, keys)
    sketch = pa.py_buffer(np.ascontiguousarray(values.astype(np.uint8)))
    sketch_type = pa.binary(values.shape[1])
    return {
        "bands": pa.StructArray.from_arrays([numbers(key) for key in keys], [str(b) for b in range(bands)]),
        "num_shingles": numbers(num_shingles),
        "sketch": pa.FixedSizeBinaryArray.from_buffers(sketch_type, len(values), [None, sketch]),
    }


def normalized(array: pa.Array) -> pa.Array:
    """Texts in NFKC, lower case, each run of white space one space: ``" Ａ\\n b" -> "a b"``."""
    folded = pc.utf8_lower(pc.utf8_normalize(array, "NFKC"))
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(folded, r"\s+", " "))


def permutations(num_perm: int) -> NDArray[np.uint32]:
    """Multipliers and offsets ``[2, num_perm rounded up to 4]``; more of them change none of the first."""
    padded = -(-num_perm // PER_PASS) * PER_PASS
    words = mix64(np.arange(2 * padded, dtype=np.uint64) ^ salt(0, "dedupe", "minhash"))
    multipliers, offsets = (words >> np.uint64(32)).astype(np.uint32).reshape(padded, 2).T
    return np.ascontiguousarray([multipliers | np.uint32(1), offsets])


def signatures(
    addresses: NDArray[np.int64], lengths: NDArray[np.int64], ngram: int, num_perm: int
) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    """Signatures ``[num_texts, num_perm]`` and numbers of shingles ``[num_texts]`` of texts in memory."""
    values = np.empty((len(addresses), num_perm), np.uint32)
    counts = np.empty(len(addresses), np.int32)
    scratch, maps = new_shingle_scratch(ngram), permutations(num_perm)
    work = (np.empty(maps.shape[1], np.uint32), np.empty(len(scratch.shingles) + LANES, np.uint32))
    _sign((addresses, lengths), ngram, alphabet(), maps, scratch, work, (values, counts))
    return values, counts


class ShingleScratch(NamedTuple):
    """The memory of one thread; never shared."""

    window: NDArray[np.uint8]  # [WINDOW_BYTES + 256]
    edges: NDArray[np.uint16]  # [WINDOW_BYTES + 64] where runs of the window start and end, in turns
    words: NDArray[np.uint64]  # [WINDOW_BYTES / 2 + 256] word hashes of the window, after those carried over
    starts: NDArray[np.int32]  # [0 or as words] byte of the window at which each word starts
    shingles: NDArray[np.uint64]  # [as words]


def new_shingle_scratch(ngram: int, starts: bool = False) -> ShingleScratch:
    """Scratch for shingles of ``ngram`` words; with ``starts`` also for the place of each word."""
    num_words = WINDOW_BYTES // 2 + 256 + ngram
    return ShingleScratch(
        np.empty(WINDOW_BYTES + 256, np.uint8),
        np.empty(WINDOW_BYTES + 64, np.uint16),
        np.empty(num_words, np.uint64),
        np.empty(num_words if starts else 0, np.int32),
        np.empty(num_words, np.uint64),
    )


_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # Han iteration mark and zero
    (0x3040, 0x312F),  # kana, bopomofo
    (0x31A0, 0x31BF),  # bopomofo
    (0x31F0, 0x31FF),  # kana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # halfwidth kana
)
_SYMBOLS = ((0x2000, 0x2BFF), (0x3000, 0x303F), (0xD800, 0xF8FF), (0xFE00, 0xFE2F), (0xFFF0, 0xFFFF))
_KELVIN = 0x212A  # its lower case is an ASCII letter, and ASCII words are hashed by their bytes


class Alphabet(NamedTuple):
    """What a character is, by code point below 65,536."""

    classes: NDArray[np.uint8]  # [65536] SEPARATOR | WORD | SINGLE
    lower: NDArray[np.uint16]  # [65536] its lower case


@functools.cache
def alphabet() -> Alphabet:
    """The alphabet of all kernels."""
    characters = [chr(point) for point in range(65536)]
    categories = "".join(map(ucd_3_2_0.category, characters)).encode()
    major, minor = np.frombuffer(categories, "S1").reshape(-1, 2).T
    letters = (major == b"L") | (major == b"N")
    words = letters | (major == b"M") | ((major == b"C") & (minor == b"n"))
    words[ord("_")] = True
    for first, last in _SYMBOLS:
        words[first : last + 1] = letters[first : last + 1]
    classes = words.astype(np.uint8)
    for first, last in _UNSPACED:
        classes[first : last + 1] *= SINGLE
    lower = np.arange(65536, dtype=np.uint16)
    for point in np.flatnonzero((classes == WORD) & letters).tolist():
        small = characters[point].lower()
        if small != characters[point] and len(small) == 1 and point != _KELVIN:
            lower[point] = ord(small)
    return Alphabet(classes, lower)
