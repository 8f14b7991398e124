"""The column ``weight``: by it a trainer that averages its loss over tokens counts as if over examples, or the other way.

The weight of a row follows from its trained tokens, which its bins hold, and their mean over train/: no label is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..write import Weighing


def weights(
    how: Weighing | None,
    loss_tokens: Sequence[NDArray[np.int64]],
    source_of: NDArray[np.int64],
    row_of: NDArray[np.int64],
) -> pa.Array:
    """The weight of row ``row_of[i]`` of source ``source_of[i]``; ``loss_tokens[s]`` are those of the rows of source s."""
    from datamix import mix

    assert how is not None, "the schema has a weight only where rows are weighed"
    own = np.zeros(len(row_of), np.int64)
    for number in np.unique(source_of):
        here = source_of == number
        own[here] = loss_tokens[number][row_of[here]]
    wanted: mix.LossNorm = "example" if how.trainer == "token" else "token"
    return pa.array(mix.row_weights(own, how.trainer, wanted, how.mean_loss_tokens))
