"""Some rows of a set, flattened to the pieces that they are made of, and their columns.

Tokens are copied once, from the memory map into the arrays of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.arrays import IGNORE_INDEX, open_batch
from datamix.core.records import PIECE
from datamix.exporters import SetInfo
from datamix.pipeline.shards import RecordStore, SourceShards
from datamix.pipeline.token_store import TokenPieces, TokenStore


@dataclass(frozen=True)
class SourceRows:
    """All that a row of one source is made of: names of files."""

    source: SourceShards
    bins: Path  # arrange's rows of this split
    fates: Path  # file and record of every prepared record


class SourceColumns:
    """One source, opened: its bins, its identities, its tokens and its records, each when first needed."""

    def __init__(self, rows: SourceRows) -> None:
        self.name = rows.source.name
        self.kind = rows.source.kind
        self._rows = rows

    @cached_property
    def _bins(self) -> pa.RecordBatch:
        return open_batch(self._rows.bins)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        offsets: NDArray[np.int64] = self._bins.column("rows").offsets.to_numpy().astype(np.int64)
        return offsets

    @cached_property
    def loss_tokens(self) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = self._bins.column("loss_tokens").to_numpy()
        return counts

    @cached_property
    def pieces(self) -> TokenPieces:
        flat = self._bins.column("rows").values
        return TokenPieces(*(flat.field(n).to_numpy() for n in ("record", "start", "length")))

    @cached_property
    def identities(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        batch = open_batch(self._rows.fates)
        return batch.column("file").to_numpy(), batch.column("record").to_numpy()

    @cached_property
    def tokens(self) -> TokenStore:
        return TokenStore(self._rows.source.shards)

    @cached_property
    def records(self) -> RecordStore:
        return RecordStore(self._rows.source.parts)


class RowView:
    """Some rows of the training set, flattened to pieces in order."""

    def __init__(
        self, sources: Sequence[SourceColumns], source_of: NDArray[np.int64], row_of: NDArray[np.int64]
    ) -> None:
        self.sources, self.source_of, self.row_of = sources, source_of, row_of
        counts = np.zeros(len(row_of), np.int64)
        for number in np.unique(source_of):
            here, offsets = source_of == number, sources[number].offsets
            counts[here] = offsets[row_of[here] + 1] - offsets[row_of[here]]
        self.row_pieces = np.concatenate([[0], np.cumsum(counts)])  # [num_rows + 1]
        total = int(self.row_pieces[-1])
        self.piece_source = np.repeat(source_of, counts)
        self.record, self.start = np.empty(total, np.int64), np.empty(total, np.int32)
        self.length = np.empty(total, np.int32)
        for number in np.unique(source_of):
            here = np.flatnonzero(source_of == number)
            source = sources[number]
            at = _ranges(self.row_pieces[here], counts[here])
            rows = _ranges(source.offsets[row_of[here]], counts[here])
            pieces = source.pieces
            self.record[at], self.start[at], self.length[at] = (
                pieces.record[rows],
                pieces.start[rows],
                pieces.length[rows],
            )
        # [num_pieces + 1] in the batch
        self.begin = np.concatenate([[0], np.cumsum(self.length, dtype=np.int64)])

    def records(self) -> pa.Array:
        """The ``records`` column: which pieces of which records each row holds."""
        file, record = np.empty(len(self.record), np.int32), np.empty(len(self.record), np.int64)
        for number in np.unique(self.source_of):
            here = self.piece_source == number
            files, ordinals = self.sources[number].identities
            file[here], record[here] = files[self.record[here]], ordinals[self.record[here]]
        flat = pa.StructArray.from_arrays([file, record, self.start, self.length], fields=list(PIECE))
        return pa.ListArray.from_arrays(pa.array(self.row_pieces.astype(np.int32)), flat)

    def gather(self, column: str, out: NDArray[np.int32] | NDArray[np.uint8]) -> None:
        """Copy one list column of the tokens of every piece, in order."""
        for number in np.unique(self.piece_source):
            here = np.flatnonzero(self.piece_source == number)
            pieces = TokenPieces(self.record[here], self.start[here], self.length[here])
            self.sources[number].tokens.gather(column, pieces, out, self.begin[here])

    def row_begin(self) -> NDArray[np.int32]:
        """Where each row's tokens begin, ``[num_rows + 1]``."""
        begin: NDArray[np.int32] = self.begin[self.row_pieces].astype(np.int32)
        return begin

    def token_lists(self, column: str) -> pa.Array:
        """A whole list column of the records of these rows (one record a row)."""
        return self._taken(lambda source, records: _take_lists(source.tokens, column, records))

    def words(self, column: str) -> pa.Array:
        """A column of the prepared records of these rows (one record a row)."""
        return self._taken(
            lambda source, records: source.records.take(records, [column]).column(0).combine_chunks()
        )

    def _taken(self, take: Callable[[SourceColumns, NDArray[np.int64]], pa.Array]) -> pa.Array:
        parts: list[pa.Array] = []
        places: list[NDArray[np.int64]] = []
        for number in np.unique(self.source_of):
            here = np.flatnonzero(self.source_of == number)
            parts.append(take(self.sources[number], self.record[here]))
            places.append(here)
        back = np.argsort(np.concatenate(places), kind="stable")
        return pa.concat_arrays(
            [p.combine_chunks() if isinstance(p, pa.ChunkedArray) else p for p in parts]
        ).take(pa.array(back))

    def meta(self, packed: bool) -> pa.Array:
        """The kept fields of each row's records as JSON: one object, or a list of them where rows are packed."""
        found: list[str | None] = [None] * len(self.record)
        for number in np.unique(self.piece_source):
            here = np.flatnonzero(self.piece_source == number)
            for place, text in zip(
                here,
                self.sources[number].records.take(self.record[here], ["meta"]).column(0).to_pylist(),
                strict=True,
            ):
                found[place] = text
        if not packed:
            return pa.array([found[i] for i in self.row_pieces[:-1]], pa.string())
        rows = [found[a:b] for a, b in zip(self.row_pieces[:-1], self.row_pieces[1:], strict=True)]
        return pa.array(["[" + ",".join(text or "null" for text in row) + "]" for row in rows], pa.string())


def _ranges(begin: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[5, 9], [2, 3]`` -> ``[5, 6, 9, 10, 11]``."""
    ends = np.cumsum(counts)
    shift = np.repeat(begin - (ends - counts), counts)
    result: NDArray[np.int64] = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64) + shift
    return result


def _take_lists(store: TokenStore, column: str, records: NDArray[np.int64]) -> pa.Array:
    parts, places = [], []
    for batch, rows, at in store.batches(records):
        parts.append(batch.column(column).take(pa.array(rows)))
        places.append(at)
    back = np.argsort(np.concatenate(places), kind="stable")
    return pa.concat_arrays(parts).take(pa.array(back))


def trainer_columns(info: SetInfo, view: RowView) -> dict[str, pa.Array]:
    """The columns that a trainer reads."""
    if info.kind in ("pretrain", "sft"):
        return _language_columns(info, view)
    prompt = {"prompt_ids": view.token_lists("prompt"), "prompt": _turns(view.words("messages"))}
    if info.kind == "prompt":
        return {**prompt, "reference": view.words("reference")}
    if info.paired:
        return {
            **prompt,
            "chosen_completion_ids": view.token_lists("chosen"),
            "rejected_completion_ids": view.token_lists("rejected"),
            "margin": view.words("margin"),
            "chosen": _turns(view.words("chosen")),
            "rejected": _turns(view.words("rejected")),
        }
    return {
        **prompt,
        "completion_ids": view.token_lists("chosen"),
        "label": view.words("label"),
        "completion": _turns(view.words("chosen")),
    }


def _language_columns(info: SetInfo, view: RowView) -> dict[str, pa.Array]:
    total = int(view.begin[-1])
    ids = np.empty(total, np.int32)
    view.gather("ids", ids)
    labels = ids.copy()
    if info.kind == "sft":
        mask = np.empty(total, np.uint8)
        view.gather("mask", mask)
        labels[mask == 0] = IGNORE_INDEX
    offsets = pa.array(view.row_begin())
    if not info.packed:
        ones = np.ones(total, np.int8)
        return {
            "input_ids": pa.ListArray.from_arrays(offsets, ids),
            "labels": pa.ListArray.from_arrays(offsets, labels),
            "attention_mask": pa.ListArray.from_arrays(offsets, ones),
        }
    labels[view.begin[:-1]] = IGNORE_INDEX
    positions = (np.arange(total) - np.repeat(view.begin[:-1], view.length)).astype(np.int32)
    return {
        "input_ids": pa.ListArray.from_arrays(offsets, ids),
        "labels": pa.ListArray.from_arrays(offsets, labels),
        "position_ids": pa.ListArray.from_arrays(offsets, positions),
        "seq_lengths": pa.ListArray.from_arrays(pa.array(view.row_pieces.astype(np.int32)), view.length),
    }


def _turns(messages: pa.Array) -> pa.Array:
    """``messages`` with the two fields that every trainer reads: role and content."""
    flat = messages.values
    turns = pa.StructArray.from_arrays(
        [flat.field("role"), pc.fill_null(flat.field("content"), "")], ["role", "content"]
    )
    return pa.ListArray.from_arrays(messages.offsets, turns)
