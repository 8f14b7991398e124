"""What the kernels that find words work in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamix.duplicates.kernels import WINDOW_BYTES


class Scratch(NamedTuple):
    """What one thread works in; never shared."""

    window: NDArray[np.uint8]  # [WINDOW_BYTES + 256]
    edges: NDArray[np.uint16]  # [WINDOW_BYTES + 64] where runs of the window start and end, in turns
    words: NDArray[np.uint64]  # [WINDOW_BYTES / 2 + 256] word hashes of the window, after those carried over
    starts: NDArray[np.int32]  # [0 or as words] byte of the window at which each word starts
    shingles: NDArray[np.uint64]  # [as words]


def new_scratch(ngram: int, starts: bool = False) -> Scratch:
    """Scratch for shingles of ``ngram`` words; with ``starts`` the place of each word is noted as well."""
    num_words = WINDOW_BYTES // 2 + 256 + ngram
    return Scratch(
        np.empty(WINDOW_BYTES + 256, np.uint8),
        np.empty(WINDOW_BYTES + 64, np.uint16),
        np.empty(num_words, np.uint64),
        np.empty(num_words if starts else 0, np.int32),
        np.empty(num_words, np.uint64),
    )
