"""Below the document: cut lines or paragraphs that many documents hold (navigation, licences, disclaimers).

``count_lines`` of each batch, ``repeated`` over all counts, ``cut_lines`` of each batch again: two passes
over the texts, and 24 bytes for each distinct line between them. A line is identified by the 128-bit hash of
its trimmed text, counted once a document; with ``match: words`` letter case, punctuation and digits are
ignored ("Page 3 of 9" is "Page 4 of 9").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.arrays import lists_by_row, parent_rows
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
    """Distinct lines and the number of documents that hold each."""

    keys: NDArray[np.void]  # [num_lines] ascending 128-bit hashes
    documents: NDArray[np.int64]  # [num_lines]


class CutLines(NamedTuple):
    """Texts without their repeated lines."""

    texts: pa.Array  # [num_texts] large_string; null stays null
    num_lines: NDArray[np.int64]  # [num_texts] lines cut from each


def count_lines(texts: pa.Array, spec: LineSpec) -> LineCounts:
    """The distinct lines of a batch of documents, each counted once a document."""
    _, documents, keys, is_long = _lines(texts, spec)
    rows = np.empty(len(keys), [("key", _KEY), ("document", np.int64)])
    rows["key"], rows["document"] = keys, documents
    distinct, counts = np.unique(np.unique(rows[is_long])["key"], return_counts=True)
    return LineCounts(distinct, counts.astype(np.int64))


def repeated(counts: Iterable[LineCounts], spec: LineSpec) -> NDArray[np.void]:
    """Keys, ascending, of the lines that more than ``spec.max_documents`` documents of all batches hold."""
    parts = list(counts)
    if not parts:
        return np.empty(0, _KEY)
    keys, places = np.unique(np.concatenate([part.keys for part in parts]), return_inverse=True)
    documents = np.zeros(len(keys), np.int64)
    np.add.at(documents, places, np.concatenate([part.documents for part in parts]))
    return keys[documents > spec.max_documents]


def cut_lines(texts: pa.Array, boilerplate: NDArray[np.void], spec: LineSpec) -> CutLines:
    """Texts without the lines whose keys are in ``boilerplate``; everything else stays byte for byte."""
    lines, documents, keys, is_long = _lines(texts, spec)
    cut = np.isin(keys, boilerplate) & is_long
    rest = lists_by_row(lines.filter(pa.array(~cut)), documents[~cut], len(texts))
    joined = pc.binary_join(rest, pa.scalar(_SEPARATORS[spec.unit], pa.large_string()))
    joined = pc.if_else(pc.is_null(texts), None, joined)
    return CutLines(joined.cast(pa.large_string()), np.bincount(documents[cut], minlength=len(texts)))


def _lines(
    texts: pa.Array, spec: LineSpec
) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.void], NDArray[np.bool_]]:
    """All lines end to end, and of each its document, its key and whether it is long enough to be cut."""
    split = pc.split_pattern(texts.cast(pa.large_string()), _SEPARATORS[spec.unit])
    flat = split.flatten()
    trimmed = pc.utf8_trim_whitespace(flat)
    is_long = pc.utf8_length(trimmed).to_numpy(zero_copy_only=False) >= spec.min_chars
    if spec.match == "words":
        words = pc.replace_substring_regex(pc.utf8_lower(trimmed), r"[^\pL\pM]+", " ")
        trimmed = pc.utf8_trim_whitespace(words)
    keys = fixed_binary(content_keys(trimmed)).view(_KEY).reshape(-1)
    return flat, parent_rows(split), keys, is_long
