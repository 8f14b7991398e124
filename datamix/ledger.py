"""What became of every record that is not in the training set: ``rejects/`` and ``removed/``, one file a source."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .phases import decide
from .phases.inputs import Ready
from .phases.prepare import read_batches
from .phases.tokens import open_batch

if TYPE_CHECKING:
    from .build import Arranged, Decided
    from .recipe import Recipe

REMOVED = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.int32()),
        ("record", pa.int64()),
        ("fate", pa.string()),
        ("reason", pa.string()),
        ("kept_source", pa.string()),
        ("kept_file", pa.int32()),
        ("kept_record", pa.int64()),
        ("similarity", pa.float32()),
        ("detail", pa.string()),
    ]
)
NOT_NEEDED = "not_needed"


def write_rejects(out: Path, sources: Sequence[Ready]) -> list[dict[str, Any]]:
    """``rejects/SOURCE.jsonl``: source, file, record, line, reason, detail and the original bytes."""
    from .publish import output

    outputs: list[dict[str, Any]] = []
    for ready in sources:
        if not ready.count("rejected_by"):
            continue
        path = out / "rejects" / f"{ready.name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        labels = {place.file: label for place, label in _labels(ready)}
        rows = 0
        with path.open("wb") as stream:
            for row in _rejects(ready, labels):
                stream.write(orjson.dumps(row) + b"\n")
                rows += 1
        outputs.append(output(out, path, "jsonl", "rejects", rows))
    return outputs


def _labels(ready: Ready) -> Iterator[tuple[Any, str]]:
    first = min((p.file for part in ready.shards.parts for p in part.places), default=0)
    for part in ready.shards.parts:
        for place in part.places:
            yield place, ready.found[place.file - first].label


def _rejects(ready: Ready, labels: dict[int, str]) -> Iterator[dict[str, Any]]:
    for part in ready.shards.parts:
        for batch in read_batches(str(part.folder / "rejects.arrow")):
            for row in batch.to_pylist():
                place = part.places[row["slice"]]
                line = row["line"]
                yield {
                    "source": ready.name,
                    "file": labels[place.file],
                    "record": place.base + row["record"],
                    "line": None if line is None else place.line_base + line,
                    "reason": row["reason"],
                    "detail": row["detail"],
                    **_raw(row["raw"] or b""),
                }


def _raw(raw: bytes) -> dict[str, str]:
    try:
        return {"raw": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {"raw": base64.b64encode(raw).decode(), "raw_encoding": "base64"}


def used_records(decided: Decided, arranged: Arranged, number: int) -> NDArray[np.bool_]:
    """Which records of a source have a piece in the training set. ``[num_records]``."""
    order = open_batch(arranged.order.folder / "order.arrow")
    rows = np.unique(order.column("row").to_numpy()[order.column("source").to_numpy() == number])
    bins = open_batch(decided.packed[number].folder / "train.arrow").column("rows")
    offsets = bins.offsets.to_numpy()
    record = bins.values.field("record").to_numpy()
    taken = np.zeros(len(offsets) - 1, np.bool_)
    taken[rows] = True
    used = np.zeros(decided.sources[number].num_prepared, np.bool_)
    used[record[np.repeat(taken, np.diff(offsets))]] = True
    return used


def write_removed(out: Path, decided: Decided, arranged: Arranged, recipe: Recipe) -> list[dict[str, Any]]:
    """``removed/SOURCE.parquet``: every record that was read but not used, in the order of the files."""
    from .publish import output

    names = [r.name for r in decided.sources]
    fates = [open_batch(decided.fates.folder / f"fates-{i}.arrow") for i in range(len(names))]
    references = _reference_names(recipe)
    outputs: list[dict[str, Any]] = []
    for number, ready in enumerate(decided.sources):
        table = pa.concat_tables(
            [
                _cleaned(ready),
                _decided(number, names + references, fates, used_records(decided, arranged, number)),
            ]
        )
        table = table.sort_by([("file", "ascending"), ("record", "ascending")])
        if table.num_rows:
            path = out / "removed" / f"{ready.name}.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(table, path, compression="zstd", row_group_size=1 << 16)
            outputs.append(output(out, path, "parquet", "removed", table.num_rows))
    return outputs


def _reference_names(recipe: Recipe) -> list[str]:
    return list(recipe.dedupe.against) if recipe.dedupe else []


def _cleaned(ready: Ready) -> pa.Table:
    tables: list[pa.Table] = []
    for part in ready.shards.parts:
        for batch in read_batches(str(part.folder / "cleaned.arrow")):
            slices = batch.column("slice").to_numpy()
            base = np.array([p.base for p in part.places], np.int64)
            file = np.array([p.file for p in part.places], np.int32)
            record = base[slices] + batch.column("record").to_numpy()
            tables.append(
                _table(
                    ready.name,
                    len(record),
                    {
                        "file": file[slices],
                        "record": record,
                        "fate": "cleaned",
                        "reason": batch.column("reason"),
                    },
                )
            )
    return pa.concat_tables(tables) if tables else REMOVED.empty_table()


def _decided(
    number: int, names: Sequence[str], fates: Sequence[pa.RecordBatch], used: NDArray[np.bool_]
) -> pa.Table:
    own = fates[number]
    fate = own.column("fate").to_numpy()
    gone = np.flatnonzero(
        (fate == decide.REMOVED)
        | (fate == decide.DROPPED)
        | (fate == decide.UNUSED)
        | ((fate == decide.POOL) & ~used)
    )
    kept_source, kept_record = (own.column(n).to_numpy()[gone] for n in ("kept_source", "kept_record"))
    kept_file, kept_ordinal = np.full(len(gone), -1, np.int32), np.full(len(gone), -1, np.int64)
    for other in np.unique(kept_source):
        if 0 <= other < len(fates):
            here = kept_source == other
            kept_file[here] = fates[other].column("file").to_numpy()[kept_record[here]]
            kept_ordinal[here] = fates[other].column("record").to_numpy()[kept_record[here]]
        elif other >= 0:
            kept_ordinal[kept_source == other] = kept_record[kept_source == other]
    reason = own.column("reason").cast(pa.string()).take(pa.array(gone)).fill_null(NOT_NEEDED)
    said = np.array(["unused", *decide.FATES[1:]])[fate[gone]]
    removed = fate[gone] == decide.REMOVED
    columns = {
        "file": own.column("file").to_numpy()[gone],
        "record": own.column("record").to_numpy()[gone],
        "fate": pa.array(said.tolist(), pa.string()),
        "reason": reason,
        "kept_source": pa.array([names[i] if i >= 0 else None for i in kept_source.tolist()], pa.string()),
        "kept_file": pa.array(kept_file, mask=kept_file < 0),
        "kept_record": pa.array(kept_ordinal, mask=kept_ordinal < 0),
        "similarity": pa.array(own.column("similarity").to_numpy()[gone], mask=~removed),
        "detail": own.column("detail").take(pa.array(gone)),
    }
    return _table(names[number], len(gone), columns)


def _table(source: str, num_rows: int, columns: dict[str, Any]) -> pa.Table:
    made = []
    for field in REMOVED:
        value = source if field.name == "source" else columns.get(field.name)
        if value is None or isinstance(value, str):
            made.append(pa.array([value] * num_rows, field.type))
        else:
            made.append(
                pa.array(value, field.type) if not isinstance(value, pa.Array) else value.cast(field.type)
            )
    return pa.Table.from_arrays(made, schema=REMOVED)
