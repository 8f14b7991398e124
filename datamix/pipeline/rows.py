"""Rows of the training set, made from tokens on disk in the order of the schedule.

A row is pieces of records (``bins``), so some rows are flattened to their pieces and every column follows from these. Tokens
are copied by the kernel that fills a loader's batches. Memory: one batch of about two million tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.arrays import IGNORE_INDEX, offsets_from_lengths, open_batch
from datamix.core.hashing import canonical
from datamix.core.records import PIECE, TURN_FIELDS
from datamix.exporters import SetInfo, Weighing
from datamix.pipeline.gather_tokens import AddressTable
from datamix.pipeline.shards import RecordStore, SourceShards, TokenStore, take
from datamix.tokenize import EncodeSpec

_BATCH_TOKENS = 1 << 21
_BATCH_ROWS = 4096


@dataclass(frozen=True)
class SourceRows:
    """All that a row of one source is made of: names of files."""

    source: SourceShards
    bins: Path  # the rows of this split, as pieces
    fates: Path  # file and record of every prepared record


@dataclass(frozen=True)
class RowSet:
    """One split of a set as integers and names of files: enough to make any of its rows."""

    info: SetInfo
    sources: tuple[SourceRows, ...]
    num_rows: int
    order: Path | None  # None: the rows of the only source, in its order (validation)
    stage_ends: tuple[int, ...]
    encode: EncodeSpec | None = None  # pretrain: finds the text of a piece of a document


class SourceColumns:
    """One source, opened: its bins, its identities, its tokens and its records, each when first needed."""

    def __init__(self, rows: SourceRows) -> None:
        self.name, self.kind = rows.source.name, rows.source.kind
        self._rows = rows

    @cached_property
    def bins(self) -> pa.RecordBatch:
        return open_batch(self._rows.bins)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where the pieces of each row begin, ``[num_rows + 1]``."""
        offsets: NDArray[np.int64] = self.bins.column("rows").offsets.to_numpy().astype(np.int64)
        return offsets

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

    def fitted(self, records: NDArray[np.int64]) -> Iterator[tuple[pa.Array, pa.Array, NDArray[np.int64]]]:
        """Messages of the truncated among ``records``: a column, their rows in it, their places among those asked."""
        for batch, rows, places in self.tokens.batches(records):
            if "messages" in batch.schema.names:  # caches of older versions have none
                yield batch.column("messages"), pa.array(rows), places


def by_source(source_of: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each source among ``source_of``, and its places there."""
    for number in np.unique(source_of):
        yield int(number), np.flatnonzero(source_of == number)


class RowView:
    """Some rows of the training set, flattened to pieces in order."""

    def __init__(
        self, sources: Sequence[SourceColumns], source_of: NDArray[np.int64], row_of: NDArray[np.int64]
    ) -> None:
        self._sources = sources
        counts = np.zeros(len(row_of), np.int64)
        for number, at in by_source(source_of):
            offsets, rows = sources[number].offsets, row_of[at]
            counts[at] = offsets[rows + 1] - offsets[rows]
        self.row_pieces = offsets_from_lengths(counts)  # [num_rows + 1]
        self.piece_source = np.repeat(source_of, counts)
        self.record = np.empty(len(self.piece_source), np.int64)
        self.start, self.length = np.empty((2, len(self.piece_source)), np.int32)
        for number, at in by_source(source_of):
            rows = _ranges(sources[number].offsets[row_of[at]], counts[at])
            pieces = sources[number].bins.column("rows").values
            of_source = self.piece_source == number
            for name in ("record", "start", "length"):
                getattr(self, name)[of_source] = pieces.field(name).to_numpy()[rows]
        self.row_begin = offsets_from_lengths(self.length)[self.row_pieces]  # tokens, [num_rows + 1]

    def records(self) -> pa.Array:
        """The ``records`` column: which pieces of which records each row holds."""
        file, record = np.empty(len(self.record), np.int32), np.empty(len(self.record), np.int64)
        for number, at in by_source(self.piece_source):
            files, ordinals = self._sources[number].identities
            file[at], record[at] = files[self.record[at]], ordinals[self.record[at]]
        flat = pa.StructArray.from_arrays([file, record, self.start, self.length], fields=list(PIECE))
        return pa.ListArray.from_arrays(pa.array(self.row_pieces.astype(np.int32)), flat)

    def column(self, name: str, tokens: bool = False) -> pa.Array:
        """A column of the prepared records of these pieces, or of their ``tokens``; one value a piece."""
        parts: list[pa.Array] = []
        places: list[NDArray[np.int64]] = []
        for number, at in by_source(self.piece_source):
            source = self._sources[number]
            table = take(source.tokens if tokens else source.records, self.record[at], [name])
            parts.append(table.column(0).combine_chunks())
            places.append(at)
        return pa.concat_arrays(parts).take(pa.array(np.argsort(np.concatenate(places), kind="stable")))

    def prompts(self) -> pa.Array:
        """The messages of these records, of truncated ones those that are left."""
        pool, index = [self.column("messages")], np.arange(len(self.record))
        for number, at in by_source(self.piece_source):
            for batch, rows, places in self._sources[number].fitted(self.record[at]):
                index[at[places]] = sum(map(len, pool)) + np.arange(len(rows))
                pool.append(batch.take(rows))
        messages = pa.concat_arrays(pool).take(pa.array(index)) if len(pool) > 1 else pool[0]
        if all(source.kind != "sft" for source in self._sources):
            return messages
        lists = messages.to_pylist()  # conversations give the turns before their last answer
        for number, at in by_source(self.piece_source):
            for i in at.tolist() if self._sources[number].kind == "sft" else ():
                answers = [n for n, turn in enumerate(lists[i]) if turn["role"] == "assistant"]
                lists[i] = lists[i][: answers[-1]] if answers else lists[i]
        return pa.array(lists, messages.type)

    def weigh(self, loss_weights: NDArray[np.float32]) -> None:
        """Multiply what is trained, ``[num_tokens]``, by the weights of its turns."""
        begin = offsets_from_lengths(self.length)
        for piece, factors in enumerate(self.column("weights", tokens=True)):
            if factors.is_valid:
                start, length = self.start[piece], self.length[piece]
                loss_weights[begin[piece] : begin[piece + 1]] *= factors.values.to_numpy()[
                    start : start + length
                ]

    def meta(self, packed: bool) -> pa.Array:
        """The ``keep_meta`` fields of each row's records as JSON: an object, or a list of them where rows are packed."""
        texts = self.column("meta").to_pylist()
        if not packed:
            return pa.array([texts[i] for i in self.row_pieces[:-1]], pa.string())
        rows = [texts[a:b] for a, b in zip(self.row_pieces[:-1], self.row_pieces[1:], strict=True)]
        return pa.array(["[" + ",".join(text or "null" for text in row) + "]" for row in rows], pa.string())


def _ranges(begin: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[5, 9], [2, 3]`` -> ``[5, 6, 9, 10, 11]``."""
    ends = np.cumsum(counts)
    result: NDArray[np.int64] = np.arange(counts.sum()) + np.repeat(begin - (ends - counts), counts)
    return result


class RowReader:
    """Any rows of a set, by their places in the training order."""

    lengths_at_hand = True

    def __init__(self, rows: RowSet) -> None:
        self._set = rows
        self._sources = [SourceColumns(s) for s in rows.sources]

    def __reduce__(self) -> tuple[type[RowReader], tuple[RowSet]]:
        return RowReader, (self._set,)  # another process maps the files itself

    @cached_property
    def _order(self) -> tuple[NDArray[np.uint16], NDArray[np.int64]] | None:
        if self._set.order is None:
            return None
        order = open_batch(self._set.order)
        # to_numpy loads pandas
        sources, rows = (order.column(name).buffers()[1] for name in ("source", "row"))
        return np.frombuffer(sources, np.uint16, len(order)), np.frombuffer(rows, np.int64, len(order))

    @cached_property
    def _addresses(self) -> AddressTable:
        sources, info = self._set.sources, self._set.info
        order = self._order or (np.empty(0, np.uint16), np.empty(0, np.int64))
        shards = [s.source.shards for s in sources]
        return AddressTable(order, [s.bins for s in sources], shards, info.kind == "sft", info.packed)

    def __len__(self) -> int:
        return self._set.num_rows

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._set.info.schema.names)

    def locate(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source and row at each place."""
        if self._order is None:
            return np.zeros(len(places), np.int64), places
        source, row = self._order
        return source[places].astype(np.int64), row[places].astype(np.int64)

    def read(self, places: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """The rows at some places, in the order asked; source and stage need no token reads."""
        info, names = self._set.info, list(columns or self.columns)
        source_of, row_of = self.locate(places)
        stage_ends = np.array(self._set.stage_ends, np.int64)
        stage_of = np.minimum(np.searchsorted(stage_ends, places, side="right"), len(info.stages) - 1)
        arrays = {
            "source": _named([s.name for s in self._sources], source_of),
            "stage": _named(info.stages, stage_of),
        }
        if "weight" in names:
            trained = [s.bins.column("loss_tokens").to_numpy() for s in self._sources]
            arrays["weight"] = weights(info.weighing, trained, source_of, row_of)
        if not arrays.keys() >= set(names):
            view = RowView(self._sources, source_of, row_of)
            is_language = info.kind in ("pretrain", "sft")
            made = self._language_columns(view, places) if is_language else _text_columns(info, view)
            arrays |= {"records": view.records(), **made}
            if "meta" in names:
                arrays["meta"] = view.meta(info.packed)
        schema = pa.schema([info.schema.field(name) for name in names])
        return pa.RecordBatch.from_arrays([arrays[name] for name in names], schema=schema)

    def _language_columns(self, view: RowView, places: NDArray[np.int64]) -> dict[str, pa.Array]:
        names = ("input_ids", "labels", "position_ids")[: 3 if self._set.info.packed else 2]
        block = np.empty((len(names), int(view.row_begin[-1])), np.int64)
        self.fill(block, names, np.array(places, np.int64), view.row_begin[:-1].copy())
        offsets = pa.array(view.row_begin.astype(np.int32))
        lists = {
            name: pa.ListArray.from_arrays(offsets, values.astype(np.int32))
            for name, values in zip(names, block, strict=True)
        }
        if self._set.info.loss_weights:
            loss_weights = (block[1] != IGNORE_INDEX).astype(np.float32)
            view.weigh(loss_weights)
            lists["loss_weights"] = pa.ListArray.from_arrays(offsets, loss_weights)
        if not self._set.info.packed:
            ones = np.ones(block.shape[1], np.int8)
            return {**lists, "attention_mask": pa.ListArray.from_arrays(offsets, ones)}
        pieces = pa.array(view.row_pieces.astype(np.int32))
        return {**lists, "seq_lengths": pa.ListArray.from_arrays(pieces, view.length)}

    def num_tokens(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of the rows at some places."""
        return self._addresses.lengths(places)

    def fill(
        self,
        block: NDArray[np.int64],
        columns: Sequence[str],
        places: NDArray[np.int64],
        begin: NDArray[np.int64],
    ) -> None:
        """Copy the columns of each row to ``block[:, begin[i]:]``."""
        self._addresses.fill(block, columns, places, begin)

    def table(self, columns: Sequence[str], start: int, stop: int) -> pa.Table:
        """Rows ``start..stop``."""
        return pa.Table.from_batches([self.read(np.arange(start, stop), columns)])

    def batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Rows ``start..stop`` in batches of about two million tokens."""
        total = offsets_from_lengths(self.num_tokens(np.arange(start, stop)))
        a = 0
        while a < stop - start:
            b = int(np.searchsorted(total, total[a] + _BATCH_TOKENS, side="right")) - 1
            b = min(max(b, a + 1), a + _BATCH_ROWS, stop - start)
            yield self.read(np.arange(start + a, start + b))
            a = b


def _text_columns(info: SetInfo, view: RowView) -> dict[str, pa.Array]:
    """The columns of preference and prompt rows: one record a row."""
    prompt = {
        "prompt_ids": view.column("prompt", tokens=True),
        "prompt": _turns(view.prompts(), info),
        "tools": view.column("tools"),
    }
    if info.chat_kwargs is not None:
        common = json.loads(info.chat_kwargs)
        merged = [common | json.loads(text or "{}") for text in view.column("kwargs").to_pylist()]
        prompt["chat_template_kwargs"] = pa.array([canonical(kwargs) for kwargs in merged], pa.string())
    if info.kind == "prompt":
        return {**prompt, "reference": view.column("reference")}
    if not info.paired:
        return {
            **prompt,
            "completion_ids": view.column("chosen", tokens=True),
            "label": view.column("label"),
            "completion": _turns(view.column("chosen"), info),
        }
    return {
        **prompt,
        "chosen_completion_ids": view.column("chosen", tokens=True),
        "rejected_completion_ids": view.column("rejected", tokens=True),
        "margin": view.column("margin"),
        "chosen": _turns(view.column("chosen"), info),
        "rejected": _turns(view.column("rejected"), info),
    }


def _turns(messages: pa.Array, info: SetInfo) -> pa.Array:
    """``messages`` with role and content, which every trainer reads, and where a set has them reasoning and calls."""
    flat = messages.values
    content = flat.field("content") if info.tools else pc.fill_null(flat.field("content"), "")
    names = TURN_FIELDS if info.tools else TURN_FIELDS[:2]
    fields = [content if name == "content" else flat.field(name) for name in names]
    return pa.ListArray.from_arrays(messages.offsets, pa.StructArray.from_arrays(fields, list(names)))


def _named(names: Sequence[str], codes: NDArray[np.int64]) -> pa.Array:
    indices = pa.array(codes.astype(np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string())).cast(pa.string())


def weights(
    how: Weighing | None,
    loss_tokens: Sequence[NDArray[np.int64]],
    source_of: NDArray[np.int64],
    row_of: NDArray[np.int64],
) -> pa.Array:
    """The weight of row ``row_of[i]`` of source ``source_of[i]``; ``loss_tokens[s]`` are those of the rows of source s."""
    from datamix import mix

    assert how is not None, "the schema has a weight only where rows are weighed"
    trained = np.zeros(len(row_of), np.int64)
    for number, at in by_source(source_of):
        trained[at] = loss_tokens[number][row_of[at]]
    target: mix.LossNorm = "example" if how.trainer == "token" else "token"
    return pa.array(mix.row_weights(trained, how.trainer, target, how.mean_loss_tokens))
