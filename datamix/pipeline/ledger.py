"""What became of every record that is not in the training set: ``rejects/`` and ``removed/``, one file a source."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.core.arrays import open_batch
from datamix.pipeline import select
from datamix.pipeline.outputs import output
from datamix.pipeline.prepare import read_batches
from datamix.pipeline.prepare_sources import PreparedSource
from datamix.pipeline.shards import used_records
from datamix.pipeline.state import Arranged, Decided

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
_USED = len(select.FATE_CODES)
_FATES = (*select.FATE_CODES, "used")
# how far a part of a record came
_FURTHER = (
    "cleaned",
    "removed",
    "dropped",
    "unused",
    "validation",
    "used",
)


def write_rejects(out: Path, sources: Sequence[PreparedSource]) -> list[dict[str, Any]]:
    """``rejects/SOURCE.jsonl``: source, file, record, line, reason, detail and the original bytes."""
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


def _labels(ready: PreparedSource) -> Iterator[tuple[Any, str]]:
    first = min((p.file for part in ready.shards.parts for p in part.places), default=0)
    for part in ready.shards.parts:
        for place in part.places:
            yield place, ready.found[place.file - first].label


def _rejects(ready: PreparedSource, labels: dict[int, str]) -> Iterator[dict[str, Any]]:
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


def _used(decided: Decided, arranged: Arranged, number: int) -> NDArray[np.bool_]:
    """Which records of a source have a piece in the training set. ``[num_records]``."""
    order, bins = arranged.order.folder / "order.arrow", decided.packed[number].folder / "train.arrow"
    return used_records(order, bins, number, decided.sources[number].num_prepared)


@dataclass(frozen=True)
class Account:
    """The fate of every record of one source: the furthest that any part of it came."""

    counts: dict[str, int]  # fate -> records; "used" and "validation" among them
    reasons: dict[str, dict[str, int]]  # fate -> reason -> records
    removed: pa.Table  # the lines of ``removed/``, in the order of the files


def account(decided: Decided, arranged: Arranged, number: int, references: Sequence[str]) -> Account:
    """Settle one source. A record that gave several (scored answers, pairs) counts once."""
    ready = decided.sources[number]
    names = [*(r.name for r in decided.sources), *references]
    fates = [open_batch(decided.fates.folder / f"fates-{i}.arrow") for i in range(len(decided.sources))]
    fate = fates[number].column("fate").to_numpy()
    code = np.where(
        _used(decided, arranged, number), _USED, np.where(fate == select.POOL, select.UNUSED, fate)
    )
    lines = sum(ready.count("cleaned_by").values()) + sum(ready.count("rejected_by").values())
    alone = lines + ready.num_prepared == sum(ready.file_records)  # every record gave one
    here = np.flatnonzero((code != _USED) & (code != select.VALIDATION)) if alone else np.arange(len(code))
    table = pa.concat_tables([_cleaned(ready), _decided(number, names, fates, code, here)])
    table = table.sort_by([("file", "ascending"), ("record", "ascending")])
    counts: Counter[str] = Counter()
    if alone:
        counts |= {"used": int((code == _USED).sum()), "validation": int((code == select.VALIDATION).sum())}
    else:
        table = _furthest(table)
    reasons: dict[str, dict[str, int]] = {}
    counted = table.group_by(["fate", "reason"]).aggregate([([], "count_all")]).to_pylist()
    for row in sorted(counted, key=lambda r: (r["fate"], r["reason"])):
        counts[row["fate"]] += row["count_all"]
        reasons.setdefault(row["fate"], {})[row["reason"]] = row["count_all"]
    removed = table.filter(pc.invert(pc.is_in(table["fate"], pa.array(["used", "validation"]))))
    return Account(dict(counts), reasons, removed)


def _furthest(table: pa.Table) -> pa.Table:
    """One line a record, where rows that gave several have one line a part."""
    rank = pc.index_in(table["fate"], pa.array(_FURTHER))
    table = table.append_column("rank", rank).sort_by(
        [("file", "ascending"), ("record", "ascending"), ("rank", "descending")]
    )
    file, record = table["file"].to_numpy(), table["record"].to_numpy()
    first = np.append(True, (np.diff(file) != 0) | (np.diff(record) != 0))
    return table.filter(pa.array(first)).drop_columns(["rank"])


def write_removed(out: Path, decided: Decided, accounts: Sequence[Account]) -> list[dict[str, Any]]:
    """``removed/SOURCE.parquet``: every record that was read but not used."""
    outputs: list[dict[str, Any]] = []
    for ready, settled in zip(decided.sources, accounts, strict=True):
        if settled.removed.num_rows:
            path = out / "removed" / f"{ready.name}.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(settled.removed, path, compression="zstd", row_group_size=1 << 16)
            outputs.append(output(out, path, "parquet", "removed", settled.removed.num_rows))
    return outputs


def _cleaned(ready: PreparedSource) -> pa.Table:
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
    number: int,
    names: Sequence[str],
    fates: Sequence[pa.RecordBatch],
    code: NDArray[np.uint8],
    here: NDArray[np.int64],
) -> pa.Table:
    """The lines of prepared records ``here``: who was kept instead is named by its own file and ordinal."""
    own = fates[number]
    kept_source, kept_record = (own.column(n).to_numpy()[here] for n in ("kept_source", "kept_record"))
    kept_file, kept_ordinal = np.full(len(here), -1, np.int32), np.full(len(here), -1, np.int64)
    for other in np.unique(kept_source):
        theirs = kept_source == other
        if 0 <= other < len(fates):
            kept_file[theirs] = fates[other].column("file").to_numpy()[kept_record[theirs]]
            kept_ordinal[theirs] = fates[other].column("record").to_numpy()[kept_record[theirs]]
        elif other >= 0:
            kept_ordinal[theirs] = kept_record[theirs]
    rows = pa.array(here)
    columns = {
        "file": own.column("file").to_numpy()[here],
        "record": own.column("record").to_numpy()[here],
        "fate": _words(_FATES, code[here]),
        "reason": own.column("reason").take(rows).cast(pa.string()).fill_null(NOT_NEEDED),
        "kept_source": _words(names, kept_source),
        "kept_file": pa.array(kept_file, mask=kept_file < 0),
        "kept_record": pa.array(kept_ordinal, mask=kept_ordinal < 0),
        "similarity": pa.array(own.column("similarity").to_numpy()[here], mask=code[here] != select.REMOVED),
        "detail": own.column("detail").take(rows),
    }
    return _table(names[number], len(here), columns)


def _words(names: Sequence[str], codes: NDArray[Any]) -> pa.Array:
    """Names by number; null where the number is negative."""
    indices = pa.array(codes.astype(np.int32), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string())).cast(pa.string())


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
