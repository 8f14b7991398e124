"""Which rows make a batch, and how: padded to the longest, or joined into one row of documents kept apart by their positions.

*Which*: a seeded permutation inside each global batch. If rank r of W took every W-th row, an interleaved mixture could show
it one source only. Dealing the rows of each window of ``batch_size * world_size`` by a permutation breaks that lock and moves
no row across a window, so every bound of the mixture holds at every global batch. The order depends on the first row of the
window alone: whatever the number of ranks, the rows before a window are done and the rows after it are not.

*How*: ids and labels become int64, what losses and embeddings of every framework take; each value is copied once, from the
mapped file to its place in the batch. A batch is one block of memory, ``int64[num_columns, num_rows, width]``, made when it
is asked for; where its rows go is worked out for many batches at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.core.arrays import IGNORE_INDEX
from datamix.core.hashing import mix64, permutation, salt
from datamix.load.stores import RowStore

_STEPS_AT_ONCE = 64
Batch = dict[str, Any]  # name -> int64[num_rows, width]; weight -> float32[num_rows]
# (num_columns, (num_rows, width)) -> an uninitialised block, and its columns as they are handed out
NewBlock = Callable[[int, tuple[int, int]], tuple[NDArray[np.int64], Sequence[Any]]]


@dataclass(frozen=True)
class Collation:
    """How rows become a batch."""

    filler_id: int  # token id of padded places
    multiple: int  # the width is a multiple of this
    packed: bool  # one row of all documents, instead of one row each


def collate(
    rows: RowStore, columns: Sequence[str], places: NDArray[np.int64], how: Collation, new: NewBlock
) -> Iterator[Batch]:
    """Batches of the rows at ``places``, ``[num_batches, num_rows]``, in blocks that ``new`` gives out.

    Padded: ``input_ids``, ``labels`` and, as the rows have them, ``attention_mask`` or ``position_ids``, each
    ``int64[num_rows, width]``. Packed: ``input_ids``, ``labels``, ``position_ids``, each ``int64[1, width]``; positions
    restart at each document, and the first label of each is ignored, for no document predicts the next. Both with
    ``weight``, ``float32[num_rows]``, where the rows have one.
    """
    make = _joined if how.packed else _padded
    for part in (places,) if rows.lengths_at_hand else places[:, None]:
        lengths = rows.num_tokens(part.ravel()).reshape(part.shape)
        batches = make(rows, columns, part, lengths, how, new)
        yield from _weighed(rows, part, batches) if "weight" in rows.columns else batches


def _weighed(rows: RowStore, places: NDArray[np.int64], batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches with their rows' weights, which are close together: a batch is dealt from consecutive rows."""
    first = int(places.min())
    column = rows.table(["weight"], first, int(places.max()) + 1).column("weight")
    weights = np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])[places - first]
    for batch, weight in zip(batches, weights, strict=True):
        yield {**batch, "weight": weight}


def _padded(
    rows: RowStore,
    columns: Sequence[str],
    places: NDArray[np.int64],
    lengths: NDArray[np.int64],
    how: Collation,
    new: NewBlock,
) -> Iterator[Batch]:
    num_rows = places.shape[1]
    widths = _rounded(lengths.max(axis=1), how.multiple)
    begins = widths[:, None] * np.arange(num_rows)
    short = lengths.min(axis=1) < widths
    for i, width in enumerate(widths.tolist()):
        block, values = new(len(columns), (num_rows, width))
        if short[i]:
            _pad(block, columns, lengths[i].tolist(), how.filler_id)
        rows.fill(block.reshape(len(columns), -1), columns, places[i], begins[i])
        yield dict(zip(columns, values, strict=True))


def _pad(block: NDArray[np.int64], columns: Sequence[str], lengths: Sequence[int], filler_id: int) -> None:
    """Fill the places behind the tokens of each row."""
    width = block.shape[2]
    fills = {"input_ids": filler_id, "labels": IGNORE_INDEX}
    for i, length in enumerate(lengths):
        if length < width:
            for name, values in zip(columns, block[:, i], strict=True):
                values[length:] = np.arange(width - length) if name == "position_ids" else fills.get(name, 0)


def _joined(
    rows: RowStore,
    columns: Sequence[str],
    places: NDArray[np.int64],
    lengths: NDArray[np.int64],
    how: Collation,
    new: NewBlock,
) -> Iterator[Batch]:
    copied = ("input_ids", "labels", "position_ids")[: 3 if "position_ids" in columns else 2]
    ends = lengths.cumsum(axis=1)
    begins, totals = ends - lengths, ends[:, -1]
    for i, (total, width) in enumerate(
        zip(totals.tolist(), _rounded(totals, how.multiple).tolist(), strict=True)
    ):
        block, values = new(3, (1, width))
        ids, labels, positions = lines = block.reshape(3, width)
        ids[total:], labels[total:] = how.filler_id, IGNORE_INDEX
        positions[total:] = np.arange(width - total)
        if "position_ids" not in copied:
            positions[:total] = np.arange(total) - np.repeat(begins[i], lengths[i])
        rows.fill(lines[: len(copied)], copied, places[i], begins[i])
        labels[begins[i][lengths[i] > 0]] = IGNORE_INDEX
        yield dict(zip(("input_ids", "labels", "position_ids"), values, strict=True))


def _rounded(widths: NDArray[np.int64], multiple: int) -> NDArray[np.int64]:
    return -(-widths // multiple) * multiple


def numpy_block(num_columns: int, shape: tuple[int, int]) -> tuple[NDArray[np.int64], Sequence[Any]]:
    """For batches of plain numpy arrays."""
    block = np.empty((num_columns, *shape), np.int64)
    return block, list(block)


@dataclass(frozen=True)
class Deal:
    """How the rows of a set are dealt."""

    num_rows: int
    batch_size: int  # rows a rank and step
    world_size: int
    seed: int

    @property
    def window(self) -> int:
        """Rows of a global batch."""
        return self.batch_size * self.world_size

    @cached_property
    def _salt(self) -> np.uint64:
        return salt(self.seed, "deal")

    def num_steps(self, start: int) -> int:
        """Steps from row ``start`` to the end. Fewer rows than ranks make no step: they cannot be dealt."""
        full, rest = divmod(max(0, self.num_rows - start), self.window)
        return full + (rest >= self.world_size)

    def places(self, start: int, rank: int) -> NDArray[np.int64]:
        """Rows that ``rank`` trains of the window at ``start``; a last, smaller window is dealt evenly."""
        size = min(self.window, self.num_rows - start)
        order = permutation(size, mix64(np.array([start], np.uint64) ^ self._salt)[0])
        low, high = rank * size // self.world_size, (rank + 1) * size // self.world_size
        return start + order[low:high]

    def walk(self, start: int, steps: range, rank: int) -> Iterator[NDArray[np.int64]]:
        """``places`` of some steps counted from row ``start``, many at once: ``[num_steps, num_rows]``."""
        for low in range(0, len(steps), _STEPS_AT_ONCE):
            begin = start + np.array(steps[low : low + _STEPS_AT_ONCE], np.int64) * self.window
            whole = begin[begin + self.window <= self.num_rows]
            if len(whole):
                seeds = mix64(whole.astype(np.uint64) ^ self._salt)
                orders = np.argsort(mix64(np.arange(self.window, dtype=np.uint64) ^ seeds[:, None]), axis=1)
                yield whole[:, None] + orders[:, rank * self.batch_size : (rank + 1) * self.batch_size]
            for last in begin[len(whole) :].tolist():
                yield self.places(last, rank)[None]


def in_order(start: int, stop: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Rows ``start..stop`` in order, many batches at once: ``[num_batches, num_rows]``; the last may be smaller."""
    for low in range(start, stop, _STEPS_AT_ONCE * batch_size):
        places = np.arange(low, min(low + _STEPS_AT_ONCE * batch_size, stop), dtype=np.int64)
        whole = len(places) - len(places) % batch_size
        for part in (places[:whole].reshape(-1, batch_size), places[None, whole:]):
            if part.size:
                yield part
