"""What became of every record that is not in the training set: ``rejects/`` and ``removed/``, one file a source."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from datamix.pipeline.prepare import read_batches
from datamix.pipeline.prepare_sources import PreparedSource
from datamix.pipeline.shards import used_records
from datamix.pipeline.steps import Arranged, Decided
from datamix.pipeline.write_shards import output

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
_USED = len(select.FATES) - 1
_ORDER = [("file", "ascending"), ("record", "ascending")]


def write_rejects(out: Path, decided: Decided) -> list[dict[str, Any]]:
    """``rejects/SOURCE.jsonl``: source, file, record, line, reason, detail and the original bytes; none of what is excluded."""
    outputs: list[dict[str, Any]] = []
    excluded = decided.select.excluded or ((),) * len(decided.sources)
    for source, left_out in zip(decided.sources, excluded, strict=True):
        if not source.count("rejected_by"):
            continue
        path = out / "rejects" / f"{source.name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        rows = 0
        with path.open("wb") as stream:
            for row in _rejects(source, dict(left_out)):
                stream.write(orjson.dumps(row) + b"\n")
                rows += 1
        outputs.append(output(out, path, "jsonl", "rejects", rows))
    return outputs


def _rejects(
    source: PreparedSource, excluded: Mapping[int, tuple[int, ...] | None]
) -> Iterator[dict[str, Any]]:
    first = min((p.file for part in source.shards.parts for p in part.places), default=0)
    for part in source.shards.parts:
        for batch in read_batches(str(part.folder / "rejects.arrow")):
            for row in batch.to_pylist():
                place, line, raw = part.places[row["slice"]], row["line"], row["raw"] or b""
                entry = {
                    "source": source.name,
                    "file": source.files[place.file - first].label,
                    "record": place.base + row["record"],
                    "line": None if line is None else place.line_base + line,
                    "reason": row["reason"],
                    "detail": row["detail"],
                }
                records = excluded.get(place.file, ())
                if records is None or entry["record"] in records:
                    yield {**entry, "detail": "excluded by the recipe", "raw": ""}
                    continue
                try:
                    yield {**entry, "raw": raw.decode("utf-8")}
                except UnicodeDecodeError:
                    yield {**entry, "raw": base64.b64encode(raw).decode(), "raw_encoding": "base64"}


@dataclass(frozen=True)
class Account:
    """The fate of every record of one source: the furthest that any part of it came."""

    counts: dict[str, int]  # fate -> records; "used" and "validation" among them
    reasons: dict[str, dict[str, int]]  # fate -> reason -> records
    removed: pa.Table  # the lines of ``removed/``, in the order of the files


def account(decided: Decided, arranged: Arranged, number: int) -> Account:
    """Settle one source. A record that gave several (scored answers, pairs) counts once."""
    source = decided.sources[number]
    names = [*(r.name for r in decided.sources), *(r.source.name for r in decided.select.against)]
    fates = [open_batch(decided.fates.folder / f"fates-{i}.arrow") for i in range(len(decided.sources))]
    order, bins = arranged.order.folder / "order.arrow", decided.packed[number].folder / "train.arrow"
    used = used_records(order, bins, number, source.num_prepared)
    fate = fates[number].column("fate").to_numpy()
    code = np.where((fate == select.POOL) & ~used, select.UNUSED, fate)
    lines = source.count("cleaned_by").total() + source.count("rejected_by").total()
    gave_one = lines + source.num_prepared == sum(source.file_records)  # every record
    rows = np.flatnonzero(code < select.VALIDATION) if gave_one else np.arange(len(code))
    table = pa.concat_tables([_cleaned(source), _decided(number, names, fates, code, rows)])
    counts: Counter[str] = Counter()
    if gave_one:
        table = table.sort_by(_ORDER)
        counts |= {"used": int((code == _USED).sum()), "validation": int((code == select.VALIDATION).sum())}
    else:  # a line a part: the one that came furthest is the record's
        rank = pc.index_in(table["fate"], pa.array(select.FATES))
        table = table.append_column("rank", rank).sort_by([*_ORDER, ("rank", "descending")])
        file, record = table["file"].to_numpy(), table["record"].to_numpy()
        first = np.append(True, (np.diff(file) != 0) | (np.diff(record) != 0))
        table = table.filter(pa.array(first)).drop_columns(["rank"])
    reasons: dict[str, dict[str, int]] = {}
    counted = table.group_by(["fate", "reason"]).aggregate([([], "count_all")]).to_pylist()
    for row in sorted(counted, key=lambda r: (r["fate"], r["reason"])):
        counts[row["fate"]] += row["count_all"]
        reasons.setdefault(row["fate"], {})[row["reason"]] = row["count_all"]
    removed = table.filter(pc.invert(pc.is_in(table["fate"], pa.array(["used", "validation"]))))
    return Account(dict(counts), reasons, removed)


def write_removed(out: Path, decided: Decided, accounts: Sequence[Account]) -> list[dict[str, Any]]:
    """``removed/SOURCE.parquet``: every record that was read but not used."""
    outputs: list[dict[str, Any]] = []
    for source, settled in zip(decided.sources, accounts, strict=True):
        if settled.removed.num_rows:
            path = out / "removed" / f"{source.name}.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(settled.removed, path, compression="zstd", row_group_size=1 << 16)
            outputs.append(output(out, path, "parquet", "removed", settled.removed.num_rows))
    return outputs


def _cleaned(source: PreparedSource) -> pa.Table:
    tables = [REMOVED.empty_table()]
    for part in source.shards.parts:
        for batch in read_batches(str(part.folder / "cleaned.arrow")):
            file, record = part.identify(batch)
            columns = {"file": file, "record": record, "fate": "cleaned", "reason": batch.column("reason")}
            tables.append(_table(source.name, len(record), columns))
    return pa.concat_tables(tables)


def _decided(
    number: int,
    names: Sequence[str],
    fates: Sequence[pa.RecordBatch],
    code: NDArray[np.uint8],
    at: NDArray[np.int64],
) -> pa.Table:
    """The lines of the prepared records ``at``: who was kept instead is named by its file and ordinal there."""
    batch, rows = fates[number], pa.array(at)
    kept_source, kept_record = (batch.column(n).to_numpy()[at] for n in ("kept_source", "kept_record"))
    kept_file, kept_ordinal = np.full(len(at), -1, np.int32), np.full(len(at), -1, np.int64)
    for other in np.unique(kept_source[kept_source >= 0]):
        theirs = kept_source == other
        if other < len(fates):
            kept_file[theirs] = fates[other].column("file").to_numpy()[kept_record[theirs]]
            kept_ordinal[theirs] = fates[other].column("record").to_numpy()[kept_record[theirs]]
        else:  # a reference
            kept_ordinal[theirs] = kept_record[theirs]
    columns = {
        "file": batch.column("file").to_numpy()[at],
        "record": batch.column("record").to_numpy()[at],
        "fate": _words(select.FATES, code[at]),
        "reason": batch.column("reason").take(rows).cast(pa.string()).fill_null(NOT_NEEDED),
        "kept_source": _words(names, kept_source),
        "kept_file": pa.array(kept_file, mask=kept_file < 0),
        "kept_record": pa.array(kept_ordinal, mask=kept_ordinal < 0),
        "similarity": pa.array(batch.column("similarity").to_numpy()[at], mask=code[at] != select.REMOVED),
        "detail": batch.column("detail").take(rows),
    }
    return _table(names[number], len(at), columns)


def _words(names: Sequence[str], codes: NDArray[Any]) -> pa.Array:
    """Names by number; null where the number is negative."""
    indices = pa.array(codes.astype(np.int32), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string())).cast(pa.string())


def _table(source: str, num_rows: int, columns: dict[str, Any]) -> pa.Table:
    """Lines of ``removed/``; a column that is a string or absent is the same in every line."""
    arrays = []
    for field in REMOVED:
        value = source if field.name == "source" else columns.get(field.name)
        array = pa.array([value] * num_rows) if value is None or isinstance(value, str) else pa.array(value)
        arrays.append(array.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=REMOVED)
