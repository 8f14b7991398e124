"""One pass over the emitted rows: everything that they show is counted as they stream by.

Memory: one batch of rows, and what the ledger stores a record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.audit.fates import AMOUNTS, Inputs, Uses
from datamix.audit.findings import Check, Findings, Unchecked, first_line
from datamix.audit.prefix import PrefixDeviation, read_stages
from datamix.audit.row_laws import (
    RowShape,
    RowWeights,
    amounts,
    broken_laws,
    piece_losses,
    pieces,
    wrong_columns,
)
from datamix.audit.seeded_order import SeededOrder
from datamix.audit.trained_spans import TrainedSpans, control_ids, masked_within_turns, turn_headers
from datamix.core.content import ContentDigest, files_digest
from datamix.pipeline.rows import RowReader

_BATCH_TOKENS = 1 << 20


@dataclass(frozen=True)
class RowShard:
    """One Parquet file of rows, as the manifest lists it; of a virtual set its rows in the cache."""

    path: Path
    name: str  # below the set's folder
    rows: RowReader | None = None


class Recount:
    """What the rows of ``train/`` show, and what the manifest says that they should."""

    def __init__(self, manifest: dict[str, Any], out: Path) -> None:
        encode, packing, kind = manifest["recipe"]["encode"], manifest["packing"], manifest["kind"]
        mixture, norm = manifest["mixture"], manifest["recipe"]["mix"].get("loss_norm")
        self.unit = mixture["unit"]
        self.weights = RowWeights(norm["trainer"]) if isinstance(norm, dict) else None
        best_fit, vocab_size = packing["strategy"] == "best_fit", manifest["tokenizer"]["vocab_size"]
        limit, weighed = encode.get("max_length"), self.weights is not None
        self._shape = RowShape(kind, best_fit, limit, vocab_size, weighed)
        self.inputs = Inputs.of(manifest)
        self.prefix = PrefixDeviation(read_stages(mixture, list(self.inputs.names)))
        self.uses = Uses(self.inputs)
        self._trains_all = kind == "sft" and encode.get("loss_on", "assistant") == "all"
        self._control = control_ids(out / "tokenizer" / "tokenizer.json")
        self._spans: TrainedSpans | None = None
        if kind == "sft" and not self._trains_all and not encode.get("mask"):
            folder, kwargs = out / "tokenizer", manifest["recipe"].get("chat_template_kwargs")
            self._spans = TrainedSpans(self._control, turn_headers(folder, kwargs))
        # The order is checked where every row is one record, of sources that no sweep scaled down and no head was taken of.
        whole = packing["strategy"] == "none" and kind != "pretrain" and manifest.get("sample") is None
        self.order = SeededOrder(whole and not manifest.get("virtual"))
        self._stage_names = [stage["name"] for stage in mixture["stages"]]
        self._stage = 0  # of the last row
        self.by_source = np.zeros((len(self.inputs.names), len(AMOUNTS)), np.int64)
        self.by_stage = np.zeros((len(self._stage_names), len(AMOUNTS)), np.int64)
        self.largest = 0  # cost of the largest row, in the unit
        self._content: list[str] = []  # the digest of each file of train/
        self._laws, self._masks, self._owners = Findings("rows"), Findings("masks"), Findings("sources")
        self.stages = Findings("stages")

    def add_train(self, shard: RowShard) -> None:
        """Count one file of ``train/``; files come in the order of training."""
        content = ContentDigest()
        for batch, first, source in self._batches(shard):
            content.update(batch)
            parts, counted = pieces(batch), amounts(batch, self._shape.kind)
            losses = piece_losses(batch, self._shape.kind)
            if len(losses) != len(parts.file):  # damaged pieces, which another check reports
                losses = np.zeros(len(parts.file), np.int64)
            self.uses.add(parts, losses)
            self.order.add(source, self.inputs.number(parts.file, parts.record))
            cost = counted.of(self.unit)
            if self.weights is not None:
                self.weights.count(counted.loss_tokens)
            stage = self._stages_of(batch, shard, first)
            self.largest = max(self.largest, int(cost.max(initial=0)))
            columns = [np.ones_like(cost), counted.records, counted.tokens, counted.loss_tokens]
            table, known = np.stack(columns, axis=1), source >= 0
            np.add.at(self.by_source, source[known], table[known])
            np.add.at(self.by_stage, stage, table)
            for index in np.unique(stage[known]):
                mask = known & (stage == index)
                self.prefix.add(int(index), source[mask], cost[mask])
        self._content.append(content.hexdigest())

    def add_validation(self, shard: RowShard) -> NDArray[np.int64]:
        """Hold one file of ``validation/`` against the laws; the numbers of its records, each once."""
        numbers = [np.zeros(0, np.int64)]
        for batch, _, _ in self._batches(shard):
            parts = pieces(batch)
            numbers.append(self.inputs.number(parts.file, parts.record))
        return np.unique(np.concatenate(numbers))

    def _batches(self, shard: RowShard) -> Iterator[tuple[pa.RecordBatch, int, NDArray[np.int64]]]:
        """Batches of a shard, each with the number of its first row and the sources of its rows.

        That a shard cannot be decoded or lacks a column of the row format is a broken law, not an error.
        """
        first, name = 0, shard.name
        size = max(16, _BATCH_TOKENS // (self._shape.max_length or 4096))
        try:
            if shard.rows is not None:
                batches = shard.rows.batches(0, len(shard.rows))
            else:
                file = pq.ParquetFile(shard.path)
                if problem := wrong_columns(file.schema_arrow, self._shape):
                    self._laws.add(f"{name} {problem}")
                    return
                batches = file.iter_batches(batch_size=size)
            for batch in batches:
                for broken in broken_laws(batch, self._shape):
                    self._laws.add(f"{name} row {first + broken.row:,} {broken.sentence}", broken.num)
                counted, row_name = amounts(batch, self._shape.kind), f"{name} row"
                idle = counted.loss_tokens == 0
                self._masks.add_row(idle, row_name, first, "trains nothing")
                if self._trains_all:
                    untrained = counted.tokens - counted.loss_tokens > counted.records
                    text = "masks more than first tokens and whole turns, the recipe trains all"
                    within = masked_within_turns(batch, self._control)
                    self._masks.add_row(untrained & within, row_name, first, text)
                if self._spans is not None:
                    self._spans.add(batch, row_name, first)
                if self.weights is not None:
                    self.weights.add(batch.column("weight"), counted.loss_tokens, row_name, first)
                yield batch, first, self._check_owners(batch, name, first)
                first += batch.num_rows
        except (OSError, ValueError) as error:  # Arrow's own errors are ValueErrors
            self._laws.add(f"{name} cannot be read: {first_line(error)}")

    def _check_owners(self, batch: pa.RecordBatch, name: str, first: int) -> NDArray[np.int64]:
        """The source of each row, -1 where unknown; every record of the row must belong to it."""
        column, parts = batch.column("source"), pieces(batch)
        source, rows = _codes(column, list(self.inputs.names)), parts.rows()
        number = self.inputs.number(parts.file, parts.record)
        known = number >= 0
        owner = np.where(known, self.inputs.source[np.where(known, parts.file, 0)], source[rows])

        def moved(piece: int) -> str:
            row, record = int(rows[piece]), self.inputs.record(int(number[piece]))
            return f"{name} row {first + row:,} is of source {column[row]}, but holds {record}"

        self._owners.add_first(
            np.flatnonzero(source < 0),
            lambda row: f"{name} row {first + row:,} is of an unknown source {column[row].as_py()!r}",
        )
        self._owners.add_first(
            np.flatnonzero(~known),
            lambda piece: f"{name} row {first + rows[piece]:,} holds a record that no input file has",
        )
        self._owners.add_first(np.flatnonzero(owner != source[rows]), moved)
        return source

    def _stages_of(self, batch: pa.RecordBatch, shard: RowShard, first: int) -> NDArray[np.int64]:
        """The stage of each row, as an index that never falls."""
        column = batch.column("stage")
        stage = _codes(column, self._stage_names)
        self.stages.add_first(
            np.flatnonzero(stage < 0),
            lambda row: f"{shard.name} row {first + row:,} is of an unknown stage {column[row].as_py()!r}",
        )
        rising = np.maximum.accumulate(np.maximum(stage, self._stage)) if len(stage) else stage
        self.stages.add_first(
            np.flatnonzero((rising != stage) & (stage >= 0)),
            lambda row: (
                f"{shard.name} row {first + row:,} goes back to the stage {self._stage_names[stage[row]]}"
            ),
        )
        self._stage = int(rising[-1]) if len(rising) else self._stage
        return rising

    def check_rows(self, manifest: dict[str, Any]) -> tuple[list[Check], list[Unchecked]]:
        """The verdicts that rows alone allow: content, laws, masks, owners; and what their masks leave open."""
        content = Findings("content")
        detail = "a virtual set: its rows are in the cache and were recounted there"
        if manifest["content_sha256"] is not None:
            detail = "the decoded rows hash to content_sha256"
            digest = files_digest(self._content)
            content.expect("the hash of the decoded rows", manifest["content_sha256"], digest)
        counted, left_open = self._spans.conclude(self._masks) if self._spans else ("", [])
        num_rows = int(self.by_source[:, 0].sum())
        checks = [
            content.check(detail),
            self._laws.check(f"{num_rows:,} rows obey every law of their kind"),
            self._masks.check(f"every row trains something{counted}"),
            self._owners.check("every record belongs to the source of its row"),
        ]
        return checks, left_open


def _codes(column: pa.Array, names: list[str]) -> NDArray[np.int64]:
    """The index of each value in ``names``; -1 where it is not there."""
    index = pc.index_in(column, value_set=pa.array(names, column.type)).fill_null(-1)
    codes: NDArray[np.int64] = index.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes
