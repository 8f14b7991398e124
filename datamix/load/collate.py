"""Rows to batches: padded to the longest, or joined into one row of documents kept apart by their positions.

Ids and labels become int64, what losses and embeddings of every framework take; each value is copied once, from the
mapped file to its place in the batch. A batch is one block of memory, ``int64[num_columns, num_rows, width]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.load.stores import RowStore

IGNORED = -100  # the label that no loss counts
NewBlock = Callable[[tuple[str, ...], tuple[int, int]], NDArray[np.int64]]  # (names, shape) -> uninitialised


@dataclass(frozen=True)
class Collation:
    """How rows become a batch."""

    filler_id: int  # token id of padded places
    multiple: int  # the width is a multiple of this
    packed: bool  # one row of all documents, instead of one row each


def collate(
    rows: RowStore, columns: Sequence[str], places: NDArray[np.int64], how: Collation, new: NewBlock
) -> None:
    """Fill the block that ``new`` gives out with the rows at ``places``.

    Padded: ``input_ids``, ``labels`` and, as the rows have them, ``attention_mask`` or ``position_ids``, each
    ``int64[num_rows, width]``. Packed: ``input_ids``, ``labels``, ``position_ids``, each ``int64[1, width]``; positions
    restart at each document, and the first label of each is ignored, for no document predicts the next.
    """
    lengths = rows.num_tokens(places)
    if how.packed:
        _join(rows, columns, places, lengths, how, new)
    else:
        _pad(rows, columns, places, lengths, how, new)


def _pad(
    rows: RowStore,
    columns: Sequence[str],
    places: NDArray[np.int64],
    lengths: NDArray[np.int64],
    how: Collation,
    new: NewBlock,
) -> None:
    sizes = lengths.tolist()
    width = _rounded(max(sizes), how.multiple)
    block = new(tuple(columns), (len(sizes), width))
    fills = {"input_ids": how.filler_id, "labels": IGNORED}
    for i, length in enumerate(sizes):
        if length < width:
            for name, values in zip(columns, block[:, i], strict=True):
                values[length:] = np.arange(width - length) if name == "position_ids" else fills.get(name, 0)
    flat = block.reshape(len(columns), -1)
    rows.fill(dict(zip(columns, flat, strict=True)), places, np.arange(len(sizes)) * width)


def _join(
    rows: RowStore,
    columns: Sequence[str],
    places: NDArray[np.int64],
    lengths: NDArray[np.int64],
    how: Collation,
    new: NewBlock,
) -> None:
    ends = np.cumsum(lengths)
    total, begin = int(ends[-1]), ends - lengths
    width = _rounded(total, how.multiple)
    ids, labels, positions = new(("input_ids", "labels", "position_ids"), (1, width))[:, 0]
    ids[total:], labels[total:] = how.filler_id, IGNORED
    positions[total:] = np.arange(width - total)
    out = {"input_ids": ids, "labels": labels}
    if "position_ids" in columns:
        out["position_ids"] = positions
    else:
        positions[:total] = np.arange(total) - np.repeat(begin, lengths)
    rows.fill(out, places, begin)
    labels[begin[lengths > 0]] = IGNORED


def _rounded(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


def numpy_batch(
    rows: RowStore, columns: Sequence[str], places: NDArray[np.int64], how: Collation
) -> dict[str, NDArray[Any]]:
    """A batch as plain numpy arrays, see ``collate``."""
    out: dict[str, NDArray[Any]] = {}

    def new(names: tuple[str, ...], shape: tuple[int, int]) -> NDArray[np.int64]:
        block = np.empty((len(names), *shape), np.int64)
        out.update(zip(names, block, strict=True))
        return block

    collate(rows, columns, places, how, new)
    return out
