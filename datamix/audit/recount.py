"""One pass over the emitted rows: everything that they show is counted as they stream by.

Memory: one batch of rows, and what the ledger keeps a record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.audit.fates import Inputs, Uses
from datamix.audit.findings import Findings, first_line
from datamix.audit.prefix import PrefixDeviation, read_stages
from datamix.audit.row_laws import Pieces, Shape, amounts, broken_laws, piece_losses, pieces
from datamix.audit.row_weights import RowWeights
from datamix.audit.seeded_order import SeededOrder
from datamix.audit.turn_ends import TurnEnds, control_ids
from datamix.audit.turn_starts import TurnHeaders, TurnStarts
from datamix.audit.unchecked import Unchecked
from datamix.core.content import ContentDigest
from datamix.core.contracts import UNITS
from datamix.core.records import row_schema
from datamix.pipeline.rows import RowReader

AMOUNTS = ("rows", *UNITS)
_BATCH_TOKENS = 1 << 20


@dataclass(frozen=True)
class RowShard:
    """One Parquet file of rows, as the manifest lists it; of a virtual set its rows in the cache."""

    path: Path
    name: str  # below the set's folder
    rows: RowReader | None = None


@dataclass
class Recount:
    """What the rows of ``train/`` show, and what the manifest says that they should."""

    shape: Shape
    inputs: Inputs
    prefix: PrefixDeviation
    uses: Uses
    turns: TurnEnds
    starts: TurnStarts
    order: SeededOrder
    stage_names: list[str]
    unit: str
    loss_on: str
    weights: RowWeights | None  # None: rows have none
    by_source: NDArray[np.int64]  # [num_sources, AMOUNTS]
    by_stage: NDArray[np.int64]  # [num_stages, AMOUNTS]
    largest: int = 0  # cost of the largest row, in the unit
    content: list[str] = field(default_factory=list)  # the digest of each file of train/
    laws: Findings = field(default_factory=lambda: Findings("rows"))
    masks: Findings = field(default_factory=lambda: Findings("masks"))
    owners: Findings = field(default_factory=lambda: Findings("sources"))
    stages: Findings = field(default_factory=lambda: Findings("stages"))
    _stage: int = 0  # of the last row

    @staticmethod
    def of(manifest: dict[str, Any], out: Path) -> Recount:
        """An empty count for one set."""
        inputs = Inputs.of(manifest)
        names = [s["name"] for s in manifest["mixture"]["stages"]]
        encode = manifest["recipe"]["encode"]
        weights = RowWeights.of(manifest)
        tokenizer = out / "tokenizer" / "tokenizer.json"
        return Recount(
            shape=Shape(
                manifest["kind"],
                manifest["packing"]["strategy"] == "best_fit",
                encode.get("max_length"),
                manifest["tokenizer"]["vocab_size"],
                weights is not None,
            ),
            inputs=inputs,
            prefix=PrefixDeviation(read_stages(manifest["mixture"], list(inputs.names))),
            uses=Uses(inputs),
            turns=TurnEnds(control_ids(tokenizer)),
            starts=TurnStarts(_headers(out, manifest)),
            order=SeededOrder(_has_whole_records(manifest)),
            stage_names=names,
            unit=manifest["mixture"]["unit"],
            loss_on=encode.get("loss_on", "assistant"),
            weights=weights,
            by_source=np.zeros((len(inputs.names), len(AMOUNTS)), np.int64),
            by_stage=np.zeros((len(names), len(AMOUNTS)), np.int64),
        )

    def unchecked(self) -> list[Unchecked]:
        """What the masks of these rows leave open."""
        claims: list[Unchecked] = []
        if self.shape.kind != "sft" or self.loss_on == "all":
            return claims
        if not self.starts.telling:
            claims.append(Unchecked("where trained spans begin: the template opens turns with plain text"))
        if not self.turns.telling:
            claims.append(Unchecked("where trained spans end: the template ends turns with plain text"))
        return claims

    def add_train(self, shard: RowShard) -> None:
        """Count one file of ``train/``; files come in the order of training."""
        content = ContentDigest()
        for batch, first in self._batches(shard):
            content.update(batch)
            source = self._owners(batch, shard, first)
            emitted = pieces(batch)
            self.uses.add(emitted, _fitting(piece_losses(batch, self.shape.kind), emitted))
            self.order.add(source, self.inputs.number(emitted.file, emitted.record))
            held = amounts(batch, self.shape.kind)
            cost = held.of(self.unit)
            if self.weights is not None:
                self.weights.count(held.loss_tokens)
            stage = self._stages_of(batch, shard, first)
            self.largest = max(self.largest, int(cost.max(initial=0)))
            table = np.stack([np.ones_like(cost), held.records, held.tokens, held.loss_tokens], axis=1)
            np.add.at(self.by_source, source[source >= 0], table[source >= 0])
            np.add.at(self.by_stage, stage, table)
            known = source >= 0
            for index in np.unique(stage[known]):
                chosen = known & (stage == index)
                self.prefix.add(int(index), source[chosen], cost[chosen])
        self.content.append(content.hexdigest())

    def add_validation(self, shard: RowShard) -> NDArray[np.int64]:
        """Hold one file of ``validation/`` against the laws; the numbers of its records, each once."""
        numbers = [np.zeros(0, np.int64)]
        for batch, first in self._batches(shard):
            self._owners(batch, shard, first)
            held = pieces(batch)
            numbers.append(self.inputs.number(held.file, held.record))
        return np.unique(np.concatenate(numbers))

    def _batches(self, shard: RowShard) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Batches of a shard that hold the columns of the contract, and the number of their first row."""
        first = 0
        for batch in self._read(shard):
            for broken in broken_laws(batch, self.shape):
                self.laws.add(f"{shard.name} row {first + broken.row:,} {broken.sentence}", broken.num_found)
            self._check_masks(batch, f"{shard.name} row", first)
            if self.weights is not None:
                loss = amounts(batch, self.shape.kind).loss_tokens
                self.weights.hold(batch.column("weight"), loss, f"{shard.name} row", first)
            yield batch, first
            first += batch.num_rows

    def _read(self, shard: RowShard) -> Iterator[pa.RecordBatch]:
        """What of a shard can be decoded; that it cannot be is a broken law, not an error."""
        if shard.rows is not None:
            yield from shard.rows.batches(0, len(shard.rows))
            return
        size = max(16, _BATCH_TOKENS // (self.shape.max_length or 4096))
        try:
            file = pq.ParquetFile(shard.path)
            problem = _wrong_columns(file.schema_arrow, self.shape)
            if problem:
                self.laws.add(f"{shard.name} {problem}")
            else:
                yield from file.iter_batches(batch_size=size)
        except (OSError, ValueError) as error:  # Arrow's own errors are ValueErrors
            self.laws.add(f"{shard.name} cannot be read: {first_line(error)}")

    def _check_masks(self, batch: pa.RecordBatch, place: str, first: int) -> None:
        held = amounts(batch, self.shape.kind)
        idle = np.flatnonzero(held.loss_tokens == 0)
        if len(idle):
            self.masks.add(f"{place} {first + idle[0]:,} trains nothing", len(idle))
        if self.shape.kind == "sft" and self.loss_on == "all":
            untrained = np.flatnonzero(held.tokens - held.loss_tokens > held.records)
            if len(untrained):
                where = f"{place} {first + untrained[0]:,}"
                self.masks.add(f"{where} masks more than first tokens, the recipe trains all", len(untrained))
        if self.shape.kind == "sft" and self.loss_on != "all":
            self.turns.add(batch, place, first)
            self.starts.add(batch, place, first)

    def _owners(self, batch: pa.RecordBatch, shard: RowShard, first: int) -> NDArray[np.int64]:
        """The source of each row, -1 where unknown; every record of the row must belong to it."""
        source = _codes(batch.column("source"), list(self.inputs.names))
        unknown = np.flatnonzero(source < 0)
        if len(unknown):
            told = batch.column("source")[int(unknown[0])].as_py()
            self.owners.add(
                f"{shard.name} row {first + unknown[0]:,} is of an unknown source {told!r}", len(unknown)
            )
        held = pieces(batch)
        rows = held.rows()
        number = self.inputs.number(held.file, held.record)
        lost = np.flatnonzero(number < 0)
        if len(lost):
            self.owners.add(
                f"{shard.name} row {first + rows[lost[0]]:,} holds a record that no input file has", len(lost)
            )
        owner = np.where(number >= 0, self.inputs.source[np.where(number >= 0, held.file, 0)], source[rows])
        moved = np.flatnonzero(owner != source[rows])
        if len(moved):
            row, said = int(rows[moved[0]]), batch.column("source")[int(rows[moved[0]])].as_py()
            told = f"is said to be of {said}, but holds {self.inputs.record(int(number[moved[0]]))}"
            self.owners.add(f"{shard.name} row {first + row:,} {told}", len(moved))
        return source

    def _stages_of(self, batch: pa.RecordBatch, shard: RowShard, first: int) -> NDArray[np.int64]:
        """The stage of each row, as an index that never falls."""
        stage = _codes(batch.column("stage"), self.stage_names)
        unknown = np.flatnonzero(stage < 0)
        if len(unknown):
            told = batch.column("stage")[int(unknown[0])].as_py()
            self.stages.add(
                f"{shard.name} row {first + unknown[0]:,} is of an unknown stage {told!r}", len(unknown)
            )
        rising = np.maximum.accumulate(np.maximum(stage, self._stage)) if len(stage) else stage
        back = np.flatnonzero((rising != stage) & (stage >= 0))
        if len(back):
            told = f"goes back to the stage {self.stage_names[stage[back[0]]]}"
            self.stages.add(f"{shard.name} row {first + back[0]:,} {told}", len(back))
        self._stage = int(rising[-1]) if len(rising) else self._stage
        return rising


def _has_whole_records(manifest: dict[str, Any]) -> bool:
    """Whether every row is one record, of sources that no sweep scaled down and no head was taken of."""
    whole = manifest["packing"]["strategy"] == "none" and manifest["kind"] != "pretrain"
    return whole and not manifest.get("virtual") and manifest.get("sample") is None


def _fitting(losses: NDArray[np.int64], held: Pieces) -> NDArray[np.int64]:
    """One number a piece, also of rows whose pieces are damaged, which another check tells."""
    return losses if len(losses) == len(held.file) else np.zeros(len(held.file), np.int64)


def _headers(out: Path, manifest: dict[str, Any]) -> TurnHeaders | None:
    recipe = manifest["recipe"]
    if manifest["kind"] != "sft" or recipe["encode"].get("loss_on") == "all":
        return None
    return TurnHeaders.of(out / "tokenizer", recipe.get("chat_template_kwargs"))


def _codes(column: pa.Array, names: list[str]) -> NDArray[np.int64]:
    """The index of each value in ``names``; -1 where it is not there."""
    found = pc.index_in(column, value_set=pa.array(names, column.type))
    codes: NDArray[np.int64] = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _wrong_columns(schema: pa.Schema, shape: Shape) -> str:
    """What the columns of a shard have that rows of this kind do not, or the other way; "" where they agree."""
    paired = "completion_ids" not in schema.names
    wanted = row_schema(shape.kind, shape.packed, paired, "meta" in schema.names, shape.weighed)
    for name in wanted.names:
        if name not in schema.names:
            return f"lacks the column {name}"
        if schema.field(name).type != wanted.field(name).type:
            return f"has the column {name} as {schema.field(name).type}, not {wanted.field(name).type}"
    more = [name for name in schema.names if name not in wanted.names]
    return f"has a column {more[0]} that rows do not" if more else ""
