"""Below the document: lines or paragraphs that stand in many documents (navigation, licences, disclaimers), and cutting them.

``count_lines`` of each batch, ``repeated`` over all counts, ``cut_lines`` of each batch again: two passes over the texts, and 24
bytes for each distinct line between them. A line is known by the 128-bit hash of its trimmed text, counted once a
document; with ``match: words`` letter case, punctuation and digits do not tell lines apart ("Page 3 of 9" is "Page 4 of 9").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.errors import RecipeError
from datamix.core.hashing import content_keys, fixed_binary

_SEPARATORS = {"line": "\n", "paragraph": "\n\n"}
_KEY = np.dtype([("high", ">u8"), ("low", ">u8")])


@dataclass(frozen=True)
class LineSpec:
    """Which repeated lines are cut."""

    max_documents: int  # a line in more documents than this is cut from all of them
    unit: Literal["line", "paragraph"] = "line"
    match: Literal["text", "words"] = "text"
    min_chars: int = 12  # shorter lines stay: brackets, headings and "Yes." are no boilerplate

    def __post_init__(self) -> None:
        if self.max_documents < 1:
            raise RecipeError(f"max_documents must be at least 1, not {self.max_documents}.")


class LineCounts(NamedTuple):
    """Distinct lines and the number of documents each stands in."""

    keys: NDArray[np.void]  # [num_lines] ascending 128-bit hashes
    documents: NDArray[np.int64]  # [num_lines]


class CutLines(NamedTuple):
    """Texts without their repeated lines."""

    texts: pa.Array  # [num_texts] large_string; null stays null
    num_lines: NDArray[np.int64]  # [num_texts] lines cut from each


def count_lines(texts: pa.Array, spec: LineSpec) -> LineCounts:
    """The distinct lines of a batch of documents, each counted once a document."""
    lines = _lines(texts, spec)
    rows = np.empty(len(lines.flatten()), [("key", _KEY), ("document", np.int64)])
    rows["key"], rows["document"] = _keys(lines, spec), _parents(lines)
    rows = np.unique(rows[_long_enough(lines, spec)])
    distinct, counts = np.unique(rows["key"], return_counts=True)
    return LineCounts(distinct, counts.astype(np.int64))


def repeated(counts: Iterable[LineCounts], spec: LineSpec) -> NDArray[np.void]:
    """Keys, ascending, of the lines that stand in more than ``spec.max_documents`` documents of all batches."""
    parts = list(counts)
    if not parts:
        return np.empty(0, _KEY)
    keys, places = np.unique(np.concatenate([part.keys for part in parts]), return_inverse=True)
    documents = np.zeros(len(keys), np.int64)
    np.add.at(documents, places, np.concatenate([part.documents for part in parts]))
    return keys[documents > spec.max_documents]


def cut_lines(texts: pa.Array, boilerplate: NDArray[np.void], spec: LineSpec) -> CutLines:
    """Texts without the lines whose keys are in ``boilerplate``; everything else stays byte for byte."""
    lines = _lines(texts, spec)
    gone = np.isin(_keys(lines, spec), boilerplate) & _long_enough(lines, spec)
    documents = _parents(lines)
    sizes = np.bincount(documents[~gone], minlength=len(texts))
    offsets = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    kept = pa.ListArray.from_arrays(pa.array(offsets), lines.flatten().filter(pa.array(~gone)))
    joined = pc.if_else(
        pc.is_null(texts), None, pc.binary_join(kept, pa.scalar(_SEPARATORS[spec.unit], pa.large_string()))
    )
    return CutLines(joined.cast(pa.large_string()), np.bincount(documents[gone], minlength=len(texts)))


def _lines(texts: pa.Array, spec: LineSpec) -> pa.ListArray:
    return pc.split_pattern(texts.cast(pa.large_string()), _SEPARATORS[spec.unit])


def _parents(lines: pa.ListArray) -> NDArray[np.int64]:
    parents: NDArray[np.int64] = pc.list_parent_indices(lines).to_numpy(zero_copy_only=False)
    return parents


def _keys(lines: pa.ListArray, spec: LineSpec) -> NDArray[np.void]:
    flat = pc.utf8_trim_whitespace(lines.flatten())
    if spec.match == "words":
        flat = pc.utf8_trim_whitespace(pc.replace_substring_regex(pc.utf8_lower(flat), r"[^\pL\pM]+", " "))
    return fixed_binary(content_keys(flat)).view(_KEY).reshape(-1)


def _long_enough(lines: pa.ListArray, spec: LineSpec) -> NDArray[np.bool_]:
    lengths = pc.utf8_length(pc.utf8_trim_whitespace(lines.flatten())).to_numpy(zero_copy_only=False)
    long: NDArray[np.bool_] = lengths >= spec.min_chars
    return long
