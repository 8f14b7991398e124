"""Dealing the rows of each global batch to ranks, so that no rank sees one source only.

The order on disk has a period where shares are round: with two sources at a half each and two ranks that take every
second row, each rank would see one source. So the rows of every aligned window of one global batch are permuted by a
seed and each rank takes its part of the permuted window. Which rows a batch holds does not change, hence neither do the
bounds at its borders; the order depends on neither ranks, workers nor where a run was resumed. Stateless: any batch is
one hash and one sort of ``global_batch`` numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datamix.identity import mix64, salt


def deal(num_rows: int, global_batch: int, seed: int) -> NDArray[np.int64]:
    """Places 0..num_rows-1, permuted inside each aligned window of ``global_batch``; the last may be shorter."""
    whole = num_rows - num_rows % global_batch
    keys = mix64(np.arange(num_rows, dtype=np.uint64) ^ salt(seed, "deal", global_batch))
    order = np.argsort(keys[:whole].reshape(-1, global_batch), axis=1)
    order += np.arange(0, whole, global_batch)[:, None]
    return np.concatenate([order.ravel(), whole + np.argsort(keys[whole:])])


def batch_places(num_rows: int, global_batch: int, seed: int, batch: int) -> NDArray[np.int64]:
    """The places of global batch number ``batch`` in the order they are dealt: a window of ``deal``, on its own."""
    first = batch * global_batch
    places = np.arange(first, min(first + global_batch, num_rows), dtype=np.int64)
    keys = mix64(places.astype(np.uint64) ^ salt(seed, "deal", global_batch))
    return places[np.argsort(keys)]


def rank_places(places: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """The part of a dealt batch that ``rank`` takes; the parts of all ranks join to the batch in order.

    Raises:
        ValueError: the batch cannot be shared evenly, or there is no such rank.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of the {world_size} ranks 0..{world_size - 1}")
    if len(places) % world_size:
        raise ValueError(
            f"a batch of {len(places)} rows cannot be dealt evenly to {world_size} ranks: take a multiple of {world_size}"
        )
    share = len(places) // world_size
    return places[rank * share : (rank + 1) * share]
