"""Ids end to end without a header: what the raw token formats share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.write.arrays import as_tokens, piece_ends, ragged

IGNORED = -100  # the label that no loss counts


def write_ids(batch: pa.RecordBatch, stream: BinaryIO, dtype: np.dtype[Any]) -> None:
    """Append the ids of a batch."""
    stream.write(as_tokens(ragged(batch, "input_ids").flat, dtype).data)


def write_mask(batch: pa.RecordBatch, stream: BinaryIO) -> None:
    """Append one byte a token: 1 where its label counts."""
    stream.write((ragged(batch, "labels").flat != IGNORED).view(np.uint8).data)


class Ends:
    """Where rows and documents end, in tokens from the start of the file; 8 bytes each."""

    def __init__(self) -> None:
        self._rows: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._documents: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]

    def add(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """Note a batch; return the ends of its documents ``[num_documents]``."""
        done = self._rows[-1][-1]
        lengths = ragged(batch, "input_ids").lengths
        if not len(lengths):
            return np.zeros(0, np.int64)
        self._rows.append(done + np.cumsum(lengths))
        self._documents.append(done + piece_ends(batch))
        return self._documents[-1]

    @property
    def rows(self) -> NDArray[np.int64]:
        """``[num_rows + 1]``, from 0."""
        return np.concatenate(self._rows)

    @property
    def documents(self) -> NDArray[np.int64]:
        """``[num_documents + 1]``, from 0."""
        return np.concatenate(self._documents)


def pour(
    batches: Iterable[pa.RecordBatch], tokens: BinaryIO, dtype: np.dtype[Any], mask: BinaryIO | None = None
) -> Ends:
    """Append the ids of all rows to ``tokens`` and, where asked, the mask of their labels; return the ends."""
    ends = Ends()
    for batch in batches:
        write_ids(batch, tokens, dtype)
        if mask is not None:
            write_mask(batch, mask)
        ends.add(batch)
    return ends
