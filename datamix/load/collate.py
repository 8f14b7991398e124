"""Rows to batches: padded to the longest, or joined into one row of documents kept apart by their positions.

Ids and labels become int64, what losses and embeddings of every framework take; each value is copied once, from the
mapped file to its place in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.load.stores import Lists

IGNORED = -100  # the label that no loss counts
NewArray = Callable[[str, tuple[int, int]], NDArray[np.int64]]  # (name, shape) -> uninitialised


@dataclass(frozen=True)
class Collation:
    """How rows become a batch."""

    filler_id: int  # token id of padded places
    multiple: int  # the width is a multiple of this
    packed: bool  # one row of all documents, instead of one row each


def collate(rows: Lists, how: Collation, new: NewArray) -> None:
    """Fill the arrays that ``new`` gives out with a batch.

    Padded: ``input_ids``, ``labels`` and, as the rows have them, ``attention_mask`` or ``position_ids``, each
    ``int64[num_rows, width]``. Packed: ``input_ids``, ``labels``, ``position_ids``, each ``int64[1, width]``; positions
    restart at each document, and the first label of each is ignored, for no document predicts the next.
    """
    if how.packed:
        _join(rows, how, new)
    else:
        _pad(rows, how, new)


def _pad(rows: Lists, how: Collation, new: NewArray) -> None:
    lengths = [len(row) for row in rows["input_ids"]]
    width = _rounded(max(lengths), how.multiple)
    fills = {"input_ids": how.filler_id, "labels": IGNORED}
    for name, values in rows.items():
        out = new(name, (len(lengths), width))
        fill = fills.get(name, 0)
        for i, row in enumerate(values):
            out[i, : len(row)] = row
            if len(row) < width:
                out[i, len(row) :] = np.arange(width - len(row)) if name == "position_ids" else fill


def _join(rows: Lists, how: Collation, new: NewArray) -> None:
    lengths = [len(row) for row in rows["input_ids"]]
    total = sum(lengths)
    width = _rounded(total, how.multiple)
    ids, labels = new("input_ids", (1, width)), new("labels", (1, width))
    positions = new("position_ids", (1, width))
    ids[0, total:], labels[0, total:] = how.filler_id, IGNORED
    positions[0, total:] = np.arange(width - total)
    start = 0
    for i, length in enumerate(lengths):
        stop = start + length
        ids[0, start:stop] = rows["input_ids"][i]
        labels[0, start:stop] = rows["labels"][i]
        positions[0, start:stop] = rows["position_ids"][i] if "position_ids" in rows else np.arange(length)
        labels[0, start : start + 1] = IGNORED
        start = stop


def _rounded(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


def numpy_batch(rows: Lists, how: Collation) -> dict[str, NDArray[Any]]:
    """A batch as plain numpy arrays, see ``collate``."""
    out: dict[str, NDArray[Any]] = {}

    def new(name: str, shape: tuple[int, int]) -> NDArray[np.int64]:
        out[name] = np.empty(shape, np.int64)
        return out[name]

    collate(rows, how, new)
    return out
