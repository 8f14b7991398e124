"""The text of emitted records and of their pieces, for formats that hold text.

A record costs a read. The text of a piece of a cut document costs one more tokenization of the document, whose places are
stored for the pieces to come.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.core.errors import DataError
from datamix.core.records import SCHEMAS
from datamix.pipeline.rows import RowSet, SourceColumns, by_source
from datamix.pipeline.shards import take
from datamix.tokenize import load

_MAX_PLACES = 1 << 24  # of tokens in documents, 4 bytes each


class RecordTexts:
    """The text of the emitted records of one split, by (file, record)."""

    def __init__(self, rows: RowSet) -> None:
        self._sources = [SourceColumns(s) for s in rows.sources]
        self._encode = rows.encode
        self._starts: OrderedDict[tuple[int, int], NDArray[np.int32]] = OrderedDict()

    @cached_property
    def _places(self) -> dict[int, tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Of each file: its source, its records in order, and their rows in that source."""
        places: dict[int, tuple[int, NDArray[np.int64], NDArray[np.int64]]] = {}
        for number, source in enumerate(self._sources):
            files, records = source.identities
            for name, rows in by_source(files):
                places[name] = (number, records[rows], rows)
        return places

    def _rows(
        self, files: NDArray[np.int64], records: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each record, and its row there."""
        source_of, rows = np.empty((2, len(files)), np.int64)
        for file, at in by_source(files):
            source_of[at], known, known_rows = self._places[file]
            rows[at] = known_rows[np.searchsorted(known, records[at])]
        return source_of, rows

    def fetch_many(self, files: NDArray[np.int64], records: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Records as their rows of ``records.SCHEMAS``, in the order asked; of truncated ones the messages that are left."""
        texts: list[dict[str, Any]] = [{}] * len(files)
        source_of, rows = self._rows(files, records)
        for number, at in by_source(source_of):
            source = self._sources[number]
            table = take(source.records, rows[at], SCHEMAS[source.kind].names)
            for place, record in zip(at.tolist(), table.to_pylist(), strict=True):
                texts[place] = record
            for batch, fitted, places in source.fitted(rows[at]):
                for place, turns in zip(at[places].tolist(), batch.take(fitted).to_pylist(), strict=True):
                    # of a pair's answer too: it was rendered whole
                    texts[place] |= {"messages": turns, "chosen": None}
        return texts

    def piece_texts(
        self,
        files: NDArray[np.int64],
        records: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> list[str | None]:
        """The text of pieces, tokens ``start..start + length`` of a document each; None of a conversation."""
        texts: list[str | None] = [None] * len(files)
        source_of, rows = self._rows(files, records)
        for number, at in by_source(source_of):
            source = self._sources[number]
            if source.kind != "text":
                continue
            num_tokens = take(source.tokens, rows[at], ["length"]).column(0).to_numpy()
            is_whole = (starts[at] == 0) & (lengths[at] == num_tokens)
            if is_whole.any():
                whole = take(source.records, rows[at[is_whole]], ["text"]).column(0).to_pylist()
                for place, text in zip(at[is_whole].tolist(), whole, strict=True):
                    texts[place] = text
            for row, cut in by_source(np.where(is_whole, -1, rows[at])):  # one document in memory at a time
                if row >= 0:
                    text = take(source.records, np.array([row]), ["text"]).column(0)[0].as_py()
                    borders = self._borders(number, row, text, int(num_tokens[cut[0]]))
                    for place in at[cut].tolist():
                        start, stop = starts[place], starts[place] + lengths[place]
                        texts[place] = text[borders[start] : borders[stop]]
        return texts

    def _borders(self, number: int, row: int, text: str, num_tokens: int) -> NDArray[np.int32]:
        """Where each token of a document begins, in characters, and where the last ends. Raises DataError: unknown."""
        if (number, row) in self._starts:
            self._starts.move_to_end((number, row))
            return self._starts[number, row]
        if self._encode is None:
            raise DataError(
                "this format holds text, and a document is cut over rows of a set that an older datamix built; build the set "
                "again, or write a format of tokens"
            )
        borders = load(self._encode).document_starts(text)
        if borders is None or len(borders) != num_tokens + 1:
            why = (
                "is cut for fill in the middle"
                if borders is None
                else "has other tokens than its text gives now"
            )
            raise DataError(
                f"this format holds text, and a document that is cut over rows {why}; write a format of tokens instead"
            )
        self._starts[number, row] = borders.astype(np.int32)
        while sum(map(len, self._starts.values())) > _MAX_PLACES and len(self._starts) > 1:
            self._starts.popitem(last=False)
        return self._starts[number, row]
